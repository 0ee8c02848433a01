"""What a dry run says of memory, against what torch really allocates."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from rlt_trainer.config import DistillConfig, EvaluateConfig, RLConfig, SFTConfig
from rlt_trainer.config.sections import LoRA, Model, Strategy
from rlt_trainer.errors import BadConfig
from rlt_trainer.memory import TILE, Load, activations, cache, device, disk, states
from rlt_trainer.models import lora_config
from rlt_trainer.planning import plan
from rlt_trainer.shapes import Shape, shape_of

TOKENS = 320  # no width of the models below: what is kept is told from weights by its shape
WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256, "intermediate_size": 700}
GB = 1e9


def alone(tokens: int = TOKENS, width: int = 4, **given: Any) -> Load:
    return Load(**{"strategy": Strategy.ddp, "processes": 1, "recompute": False} | given, tokens=tokens, width=width)


def decoder(trained: int, frozen: int = 0) -> Shape:
    """Ten layers, 64 wide."""
    return Shape(trained, frozen, 10, hidden=64, queries=64, keys=64, feed_forward=256, vocabulary=1000, ends=0)


def named(uses: Any) -> dict[str, float]:
    return {use.name: use.bytes for use in uses}


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def kept_by_autograd(model: nn.Module) -> Iterator[list[torch.UntypedStorage]]:
    """Storages that are kept for a backward pass, weights and their copies aside, each once."""
    weights = {tuple(weight.shape) for weight in model.parameters()}
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and not {tuple(tensor.shape), tuple(tensor.shape[::-1])} & weights:
            found[storage.data_ptr()] = storage
        return tensor

    held: list[torch.UntypedStorage] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield held
    held += found.values()


def kept_by_layers(model: PreTrainedModel, tokens: int, *, autocast: bool) -> int:
    ids = torch.randint(0, model.config.vocab_size, (1, tokens))
    with kept_by_autograd(model) as held, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model.model(input_ids=ids, use_cache=False)
    return sum(storage.nbytes() for storage in held)


def shape_with(config: Any, parameters: int) -> Shape:
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    return Shape(
        trained=parameters,
        frozen=0,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        queries=heads * head_dim,
        keys=config.num_key_value_heads * head_dim,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        ends=0,
    )


def test_parameters_are_those_of_the_model(tiny_base: Path, base_model: LlamaForCausalLM) -> None:
    shape = shape_of(Model(name=str(tiny_base)))
    assert shape.trained == base_model.num_parameters()  # tied embeddings once
    assert (shape.frozen, shape.layers, shape.hidden, shape.queries, shape.vocabulary) == (0, 3, 64, 64, 87)


def test_an_adapter_s_parameters_are_those_of_peft(tiny_base: Path) -> None:
    lora = LoRA(rank=4)
    model = LlamaForCausalLM.from_pretrained(tiny_base)
    adapted = get_peft_model(model, lora_config(lora))  # type: ignore[arg-type]
    trained, whole = adapted.get_nb_trainable_parameters()
    shape = shape_of(Model(name=str(tiny_base), lora=lora))
    assert (shape.trained, shape.parameters) == (trained, whole)
    assert shape.frozen == whole - trained > 0


def test_a_model_of_another_make_is_counted_too(tmp_path: Path) -> None:
    GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=64, architectures=["GPT2LMHeadModel"]
    ).save_pretrained(tmp_path)
    shape = shape_of(Model(name=str(tmp_path)))
    assert (shape.layers, shape.hidden, shape.feed_forward, shape.keys) == (2, 32, 128, 32)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=f"model {tmp_path} cannot be read here: "):
        shape_of(Model(name=str(tmp_path)))


@pytest.mark.parametrize("name", ["runs/paper/teacher_sft/model", "./model", "/nowhere/model"])
def test_a_folder_that_another_stage_makes_is_told_as_such(name: str) -> None:
    told = f"there is no folder {name} yet: name a model of its shape, such as --model.name Qwen/Qwen2.5-7B-Instruct"
    with pytest.raises(BadConfig, match=f"^{told}, or a folder that has its config.json$"):
        shape_of(Model(name=name))


def test_states_are_what_torch_keeps(tiny_base: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_base)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    told = named(states(shape_of(Model(name=str(tiny_base))), alone()))
    assert told == {
        "weights (32 bit)": bytes_of(model.parameters()),
        "gradients": bytes_of(weight.grad for weight in model.parameters()),
        "AdamW: two moments": bytes_of(moments),
    }


@pytest.mark.parametrize(
    ("strategy", "gigabytes"), [(Strategy.zero1, 31.4), (Strategy.zero2, 16.6), (Strategy.zero3, 1.9)]
)
def test_zero_needs_what_its_paper_says(strategy: Strategy, gigabytes: float) -> None:
    """arXiv 1910.02054, table 1: 7.5 B parameters, 64 processes, K = 12."""
    shape = decoder(7_500_000_000)
    told = named(states(shape, alone(width=2, strategy=strategy, processes=64)))
    told.pop("layer that is gathered", None)
    assert sum(told.values()) / GB == pytest.approx(gigabytes, abs=0.05)


def test_fsdp_divides_all_states() -> None:
    shape = decoder(1_000_000)
    one = named(states(shape, alone(reference=True)))
    four = named(states(shape, alone(reference=True, strategy=Strategy.fsdp, processes=4)))
    assert four.pop("layer that is gathered") == 4 * 1_000_000 / 10
    assert four == {name: each / 4 for name, each in one.items()}


def test_an_adapter_has_gradients_and_moments_for_itself_alone() -> None:
    shape = decoder(10, frozen=1000)
    told = named(states(shape, alone()))
    assert told == {"weights (32 bit)": 4 * 1010, "gradients": 40, "AdamW: two moments": 80}


@pytest.mark.parametrize("make", [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)])
@pytest.mark.parametrize(
    ("weights", "autocast", "load"),
    [
        (torch.float32, False, alone()),
        (torch.float32, True, alone(width=2)),
        (torch.bfloat16, False, alone(width=2, strategy=Strategy.fsdp)),
    ],
    ids=["float32", "autocast", "bfloat16"],
)
def test_activations_are_what_autograd_keeps(make: Any, weights: torch.dtype, autocast: bool, load: Load) -> None:
    config_class, model_class = make
    kept = []
    for layers in (1, 3):  # the difference is two layers, without what is kept once
        config = config_class(vocab_size=500, num_hidden_layers=layers, **WIDE)
        model = model_class(config).to(weights)
        kept.append(kept_by_layers(model, TOKENS, autocast=autocast))
    reckoned = activations(shape_with(config, 1), load).bytes * 2 / 3
    assert kept[1] - kept[0] == pytest.approx(reckoned, rel=0.02)


def test_recomputing_keeps_the_layers_inputs_and_one_layer() -> None:
    shape = decoder(1)
    kept, recomputed = (activations(shape, alone(recompute=recompute)).bytes for recompute in (False, True))
    assert recomputed == kept / 10 + 10 * TOKENS * 64 * 4


def test_the_output_layer_s_tiles_are_trl_s() -> None:
    assert TILE == (chunked_logprob.TOKEN_CHUNK_SIZE, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE)


def test_checkpoints_are_as_big_as_reckoned(tiny_base: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_base)
    optimizer = torch.optim.AdamW(model.parameters())
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    written = sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".json")
    told = named(disk(shape_of(Model(name=str(tiny_base))), alone(), checkpoints=1, versions=0, moves=False))
    assert told["checkpoints"] / 2 == pytest.approx(written, rel=0.02)


def test_keys_and_values_are_those_of_transformers(base_model: LlamaForCausalLM, tiny_base: Path) -> None:
    made = base_model(input_ids=torch.zeros(2, 5, dtype=torch.long), use_cache=True).past_key_values
    kept = bytes_of(tensor for layer in made.layers for tensor in (layer.keys, layer.values))
    assert cache(shape_of(Model(name=str(tiny_base))), 4, 2 * 5).bytes == kept


def _rl(name: Path, lora: LoRA | None = None, **given: Any) -> RLConfig:
    return RLConfig(
        output=Path("out"),
        model={"name": str(name), "lora": lora},
        data={"path": "d"},
        rollout={"weights": "w"},
        training={"steps": 1, "learning_rate": 1e-6},
        **given,
    )


def _told(text: str) -> str:
    """The comments of a plan, whose other lines are TOML."""
    tomllib.loads(text)
    return "\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))


def test_a_plan_of_reinforcement_learning_has_reference_and_versions(tiny_base: Path) -> None:
    told = _told(plan(_rl(tiny_base), 4))
    assert "64 sequences = 4 processes × 16 micro-batches × 1" in told
    assert "parameters: 147,328, of which 147,328 are trained" in told
    assert "reference model" in told
    assert "published versions" in told


def test_a_plan_without_a_penalty_has_no_reference(tiny_base: Path) -> None:
    assert "reference model" not in _told(plan(_rl(tiny_base, grpo={"beta": 0})))


def test_a_plan_of_an_adapter_has_no_reference(tiny_base: Path) -> None:
    config = _rl(tiny_base, lora=LoRA(), grpo={"reference": {"sync_every": 0}})
    told = _told(plan(config))
    assert "reference model" not in told
    assert "parameters: 260,992, of which 113,664 are trained" in told


@pytest.mark.parametrize("kind", [SFTConfig, DistillConfig])
def test_a_plan_of_fine_tuning_has_neither(kind: type[SFTConfig | DistillConfig], tiny_base: Path) -> None:
    config = kind(
        output="out", model={"name": str(tiny_base)}, data={"path": "d"}, training={"epochs": 1, "learning_rate": 1e-5}
    )
    told = _told(plan(config))
    assert "AdamW: two moments" in told
    assert "reference model" not in told
    assert "published versions" not in told


def test_a_plan_of_an_evaluation_has_a_cache(tiny_base: Path) -> None:
    config = EvaluateConfig(output="out", model={"name": str(tiny_base)}, data={"path": "d"})
    assert "keys and values" in _told(plan(config))


def test_a_plan_for_a_model_that_is_not_there_still_prints_the_configuration(tmp_path: Path) -> None:
    text = plan(_rl(tmp_path / "later"))
    assert tomllib.loads(text)["model"]["name"] == str(tmp_path / "later")
    assert "memory: not reckoned, there is no folder" in _told(text)


def test_a_plan_for_processes_that_do_not_divide_the_batch_fails(tiny_base: Path) -> None:
    with pytest.raises(BadConfig, match="a batch of 64 is no multiple of 3 processes of 1"):
        plan(_rl(tiny_base), 3)


def test_what_is_reckoned_is_what_is_told(tiny_base: Path) -> None:
    config = _rl(tiny_base, texts={"max_tokens": 1024})
    load = alone(tokens=1024, width=2, recompute=True, reference=True)
    whole = sum(use.bytes for use in device(shape_of(config.model), load)) / 2**30
    assert f"{'together':<30}{whole:>10.3f}" in plan(config)
