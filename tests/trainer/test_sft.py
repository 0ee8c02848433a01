"""`rlt-trainer sft` on a tiny model: what is trained on, what comes out, and going on after the end of a process."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers import trainer as transformers_trainer

from rlt_client.prompts import TextCodec
from rlt_trainer import sft
from rlt_trainer.__main__ import main
from rlt_trainer.config import SFTConfig
from rlt_trainer.config.distill import TraceShape
from rlt_trainer.config.sections import Data, Model, TextRole, Texts, TooLong
from rlt_trainer.errors import BadConfig, BadData
from rlt_trainer.texts import NOT_LEARNED
from rlt_trainer.tokenized import Tokenizing, tokenized

Settings = Callable[..., dict[str, Any]]


def trained(told: dict[str, Any]) -> Path:
    return sft.run(SFTConfig(**told))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Losses(TrainerCallback):
    """The losses of runs that are made while this is there."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.seen.append(logs["loss"])


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    watching = Losses()
    monkeypatch.setattr(transformers_trainer, "DEFAULT_CALLBACKS", [*transformers_trainer.DEFAULT_CALLBACKS, watching])
    return watching


def examples(tiny_base: Path, trace_file: Path, folder: Path, roles: tuple[TextRole, ...], **texts: Any) -> Any:
    tokenizing = Tokenizing(
        Model(name=str(tiny_base)), Texts(format="mini", **{"max_tokens": 64, **texts}), TraceShape.raw, roles
    )
    return tokenized(Data(path=str(trace_file)), tokenizing, folder)


def learned(codec: TextCodec, example: dict[str, list[int]]) -> tuple[str, str]:
    """(what is read, what is learned) of an example."""
    assert len(example["input_ids"]) == len(example["labels"])
    start = example["labels"].count(NOT_LEARNED)
    assert example["labels"][start:] == example["input_ids"][start:]
    return codec.decode(example["input_ids"][:start]), codec.decode(example["input_ids"][start:])


def test_both_roles_of_a_row_are_written(tiny_base: Path, trace_file: Path, tmp_path: Path) -> None:
    codec = TextCodec.of_folder(tiny_base)
    made = examples(tiny_base, trace_file, tmp_path, (TextRole.teacher, TextRole.student))
    first = json.loads(trace_file.read_text().partition("\n")[0])
    question, answer, explanation = first["question"], first["answer"], first["explanation"].strip()
    assert len(made) == 128
    assert learned(codec, made[0]) == (f"{question} = {answer} >", f"{explanation} # $")
    assert learned(codec, made[1]) == (f"{question} >", f"{explanation} # {answer} $")


def test_tokens_lie_on_the_disk_and_are_written_once(
    tiny_base: Path, trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = examples(tiny_base, trace_file, tmp_path, (TextRole.teacher,))
    assert [Path(file["filename"]).parent for file in made.cache_files] == [tmp_path]
    monkeypatch.setattr(Tokenizing, "__call__", lambda *_: pytest.fail("written again"))
    assert examples(tiny_base, trace_file, tmp_path, (TextRole.teacher,)).to_list() == made.to_list()


def test_several_processes_write_the_same(
    tiny_base: Path, trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = examples(tiny_base, trace_file, tmp_path / "alone", (TextRole.teacher,))
    monkeypatch.setattr("rlt_trainer.tokenized._PER_WORKER", 32)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    together = examples(tiny_base, trace_file, tmp_path / "together", (TextRole.teacher,))
    assert len(list((tmp_path / "together").glob("*.arrow"))) == 2
    assert together.to_list() == alone.to_list()


SHORT = 18  # tokens; the prompts have 11, and the explanations of 9 to 12 words end with two more


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("rlt_trainer")]


def test_what_is_too_long_is_left_out_and_told(
    tiny_base: Path, trace_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(BadData, match="no text of at most 18 tokens"):
        examples(tiny_base, trace_file, tmp_path, (TextRole.teacher,), max_tokens=SHORT)
    longest = max(len(each) for each in examples(tiny_base, trace_file, tmp_path, (TextRole.teacher,))["input_ids"])
    made = examples(
        tiny_base, trace_file, tmp_path, (TextRole.teacher, TextRole.student), max_tokens=longest
    )  # a student's text is no longer than a teacher's here
    assert len(made) == 128
    assert said(caplog) == []


def test_a_cut_text_has_no_end(
    tiny_base: Path, trace_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = examples(
            tiny_base, trace_file, tmp_path, (TextRole.teacher,), max_tokens=SHORT, too_long=TooLong.truncate
        )
    codec = TextCodec.of_folder(tiny_base)
    assert {len(each) for each in made["input_ids"]} == {SHORT}
    assert all("#" not in learned(codec, each)[1] and "$" not in learned(codec, each)[1] for each in made)
    assert said(caplog) == ["64 of 64 texts were cut to 18 tokens: their end is not learned"]


def test_a_text_that_is_too_long_can_be_an_error(tiny_base: Path, trace_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"row 1: \d+ tokens, where texts.max_tokens is 18"):
        examples(tiny_base, trace_file, tmp_path, (TextRole.teacher,), max_tokens=SHORT, too_long=TooLong.error)


def test_a_run_leaves_a_model_with_its_tokenizer_in_the_dtype_that_was_asked_for(settings: Settings) -> None:
    folder = trained(settings(model={"dtype": "bfloat16"}, training={"steps": 2}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert folder.name == "model"
    assert model.dtype == torch.bfloat16
    assert tokenizer("Q 1 A +5")["input_ids"] == TextCodec.of_folder(folder).tokenizer("Q 1 A +5")["input_ids"]
    assert not (folder.parent / "tokens").exists()


def test_packed_texts_do_not_see_each_other(settings: Settings, losses: Losses, tmp_path: Path) -> None:
    """All 64 texts in one update, in whatever order: the same loss and the same weights after it."""
    whole = {"steps": 1, "batch_size": 64, "micro_batch_size": 16}
    apart = weights(trained(settings(training=whole)))
    packed = {"steps": 1, "batch_size": 16, "micro_batch_size": 4}  # four texts of 27 to 31 tokens in each
    told = settings(output=str(tmp_path / "packed"), packing=True, texts={"max_tokens": 128}, training=packed)
    together = weights(trained(told))
    assert losses.seen[0] == pytest.approx(losses.seen[1], rel=1e-5)
    assert all(torch.allclose(apart[name], together[name], atol=1e-5) for name in apart)


def test_an_adapter_is_saved_beside_the_model_that_it_makes(settings: Settings, tiny_base: Path) -> None:
    told = settings(model={"lora": {"rank": 4, "alpha": 8}}, training={"steps": 2})
    folder = trained(told)
    ids = torch.arange(12)[None]
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    before = base(ids).logits
    added = PeftModel.from_pretrained(base, str(folder.parent / "adapter"))
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, added(ids).logits, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, before, atol=1e-3)


def test_a_run_that_goes_on_ends_with_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    """With dropout, so that the state of random numbers counts too."""

    def run(name: str, **given: Any) -> dict[str, torch.Tensor]:
        lora = {"rank": 4, "alpha": 8, "dropout": 0.2}
        told = settings(output=str(tmp_path / name), model={"lora": lora}, checkpoints={"every": 2, "keep": 2}, **given)
        return weights(trained(told))

    whole = run("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for gone in ("checkpoint-6", "model"):
        shutil.rmtree(tmp_path / "again" / gone)
    (tmp_path / "again" / "checkpoint-7").mkdir()  # of a killed run
    assert same(whole, run("again"))
    assert {path.name for path in (tmp_path / "again").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    assert not same(whole, run("seed", seed=1))


def test_a_used_folder_is_refused_where_going_on_is_not_allowed(settings: Settings) -> None:
    told = settings(training={"steps": 1}, checkpoints={"resume": False})
    trained(told)
    with pytest.raises(BadConfig, match="holds model: name another output"):
        trained(told)


def test_figures_go_to_the_run_s_own_logs_and_to_stderr(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained(settings(training={"steps": 3}, logging={"to": ["tensorboard"], "every": 2})).parent
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    told = capsys.readouterr()
    assert [line.split("  ")[0] for line in told.err.splitlines() if "loss" in line][:2] == ["step 1/3", "step 2/3"]
    assert told.out == ""


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"logging": {"to": ["trackio"]}}, "logging.to trackio needs the package trackio, which is not installed"),
        ({"training": {"strategy": "zero3"}}, "training.strategy zero3 needs the package deepspeed"),
        ({"texts": {"format": "none"}}, "there is no format 'none'"),
        ({"texts": {"format": "stratos"}}, "chat template"),
        ({"data": {"columns": {"explanation": "answers"}}}, "no column 'answers'"),
        ({"model": {"name": "/nowhere"}}, "/nowhere"),
        ({"model": {"attention": "none_such"}}, "cannot be loaded"),
        ({"model": {"lora": {"targets": ["none_such"]}}}, "none_such"),
        ({"texts": {"max_tokens": 8}}, "no text of at most 8 tokens"),
    ],
    ids=["logger", "deepspeed", "format", "template", "column", "model", "attention", "lora", "length"],
)
def test_what_cannot_be_done_is_one_line_and_status_1(
    settings: Settings,
    given: dict[str, Any],
    reason: str,
    config_file: Callable[[dict[str, Any]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sft", "--config", str(config_file(settings(**given)))]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlt-trainer sft: ")]
    assert len(lines) == 1
    assert reason in lines[0]
