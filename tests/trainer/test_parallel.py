"""Several processes train one model as one process does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from rlt_trainer.arguments import shared_arguments, without_cpu_number
from rlt_trainer.config import SFTConfig
from rlt_trainer.errors import BadConfig

Settings = Callable[..., dict[str, Any]]
Launch = Callable[..., subprocess.CompletedProcess[str]]
PLUGINS = Path(__file__).parents[1] / "plugins"
KILLED = """
import sys
sys.path.insert(0, '{folder}')
import killed
killed.arm({point!r}, 4, 0)
sys.exit(killed.main(sys.argv[1:]))
"""
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def weights(output: str) -> dict[str, torch.Tensor]:
    return load_file(Path(output) / "model" / "model.safetensors")


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture
def alone(settings: Settings, launch: Launch) -> dict[str, Any]:
    """A run of one process that is done."""
    told = settings(output=settings()["output"] + "-alone")
    done = launch("sft", told)
    assert done.returncode == 0, done.stderr
    return told


@pytest.mark.slow  # each process imports torch
@pytest.mark.timeout(900)
def test_two_data_parallel_processes_give_the_same_and_go_on(
    alone: dict[str, Any], settings: Settings, launch: Launch
) -> None:
    told = settings(output=alone["output"] + "-ddp", checkpoints={"every": 3})
    done = launch("sft", told, by=(*TWO, "-m", "rlt_trainer"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{told['output']}/model\n"
    assert done.stderr.count("step 6/6  loss") == 1
    before = weights(told["output"])
    assert farthest(before, weights(alone["output"])) < 1e-5
    for gone in ("checkpoint-6", "model"):
        shutil.rmtree(Path(told["output"]) / gone)
    done = launch("sft", told, by=(*TWO, "-m", "rlt_trainer"))
    assert done.returncode == 0, done.stderr
    assert farthest(weights(told["output"]), before) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)  # three starts of one or two processes that import torch
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_two_processes_that_share_the_parameters_give_the_same_and_go_on(
    lora: Any, settings: Settings, launch: Launch, tiny_base: Path
) -> None:
    def run(name: str, *by: str, **training: Any) -> str:
        told = settings(
            output=f"{settings()['output']}-{name}",
            model={"lora": lora, "gradient_checkpointing": True},
            training=training,
            checkpoints={"every": 3},
        )
        done = launch("sft", told, by=by or ("-m", "rlt_trainer"))
        assert done.returncode == 0, done.stderr
        return str(told["output"])

    one = run("one")
    sharded = (*TWO, str(PLUGINS / "sharded.py"))
    two = run("two", *sharded, strategy="fsdp", cpu=False)
    assert farthest(weights(two), weights(one)) < 1e-5
    before = weights(two)
    assert lora is None or farthest(before, load_file(tiny_base / "model.safetensors")) > 1e-4
    for gone in ("checkpoint-6", "model"):
        shutil.rmtree(Path(two) / gone)
    assert farthest(weights(run("two", *sharded, strategy="fsdp", cpu=False)), before) == 0
    AutoModelForCausalLM.from_pretrained(Path(two) / "model")


@pytest.mark.slow
@pytest.mark.timeout(900)  # three starts of one or two processes that import torch
def test_reinforcement_learning_with_shared_parameters_gives_the_same_and_goes_on(
    settings: Settings, launch: Launch, trace_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS.parent))

    def run(name: str, *by: str, **training: Any) -> str:
        output = f"{settings()['output']}-{name}"
        told = settings(
            output=output,
            model={"gradient_checkpointing": True},
            data={"path": str(trace_file)},
            rollout={"weights": f"{output}-weights", "max_tokens": 8},
            grpo={"generations": 4, "reference": {"sync_every": 2}},
            mismatch={"least_tokens": 10**9},  # the script's log-probs are nobody's
            training={"steps": 4, **training},
            checkpoints={"every": 3},
        )
        done = launch("rl", told, by=(*by, "-m", "plugins.sharded_rl"))
        assert done.returncode == 0, done.stderr[-4000:]
        return output

    one = run("one")
    two = run("two", *TWO, strategy="fsdp", cpu=False)
    before, first = weights(two), load_file(Path(settings()["model"]["name"]) / "model.safetensors")
    assert farthest(before, weights(one)) < 1e-5
    assert farthest(before, first) > 1e-3
    for gone in ("checkpoint-4", "model"):
        shutil.rmtree(Path(two) / gone)
    assert farthest(weights(run("two", *TWO, strategy="fsdp", cpu=False)), before) == 0


@pytest.mark.slow
@pytest.mark.parametrize("point", ["update", "writing"])
def test_a_killed_run_goes_on_to_the_same_weights(
    point: str, alone: dict[str, Any], settings: Settings, launch: Launch
) -> None:
    told = settings(output=f"{alone['output']}-killed", checkpoints={"every": 2})
    killed = launch("sft", told, by=("-c", KILLED.format(folder=PLUGINS, point=point)))
    assert killed.returncode == -signal.SIGKILL
    assert not (Path(told["output"]) / "model").exists()
    done = launch("sft", told)
    assert done.returncode == 0, done.stderr
    first = {"update": "step 5/6", "writing": "step 3/6"}[point]  # after the newest whole checkpoint
    assert done.stderr.partition("  loss")[0].splitlines()[-1] == first
    assert farthest(weights(told["output"]), weights(alone["output"])) == 0


def test_several_processes_on_cpus_have_a_device_that_checkpoints_are_read_onto(tmp_path: Path) -> None:
    made = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    made.__dict__["_setup_devices"] = torch.device("cpu", 0)  # as accelerate names it
    torch.save(torch.ones(1), tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", map_location=without_cpu_number(made).device, weights_only=True)
    assert read.item() == 1


def test_the_cpu_has_one_strategy(settings: Settings) -> None:
    with pytest.raises(BadConfig, match="fsdp needs GPUs"):
        arguments(settings(training={"strategy": "fsdp"}))


def arguments(told: dict[str, Any]) -> dict[str, Any]:
    config = SFTConfig(**told)
    return shared_arguments(config, config.model, config.training, config.logging, config.checkpoints)


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


DOCUMENTED = {
    "zero_optimization": {"stage", "overlap_comm", "stage3_gather_16bit_weights_on_model_save"},
    "bf16": {"enabled"},
    "train_micro_batch_size_per_gpu": None,
    "gradient_accumulation_steps": None,
    "gradient_clipping": None,
}
"""Of deepspeed.ai/docs/config-json."""


@pytest.mark.usefixtures("everything_installed")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_is_told_in_its_own_words(stage: int, settings: Settings) -> None:
    told = arguments(settings(training={"strategy": f"zero{stage}", "cpu": False}))["deepspeed"]
    assert json.loads(json.dumps(told)) == told
    assert told["zero_optimization"]["stage"] == stage
    for name, value in told.items():
        assert set(value) <= DOCUMENTED[name] if isinstance(value, dict) else value == "auto"
    assert ("stage3_gather_16bit_weights_on_model_save" in told["zero_optimization"]) == (stage == 3)


@pytest.mark.usefixtures("everything_installed")
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_sharded_layers_recompute_in_one_way(lora: Any, settings: Settings) -> None:
    model = {"gradient_checkpointing": True, "lora": lora}
    told = arguments(settings(model=model, training={"strategy": "fsdp", "cpu": False}))
    assert told["fsdp"] is True
    assert told["fsdp_config"]["activation_checkpointing"] is (lora is None)
    assert told["gradient_checkpointing"] is (lora is not None)


@pytest.mark.parametrize(("processes", "accumulated"), [("1", 2), ("2", 1)])
def test_a_batch_is_divided_among_processes(
    processes: str, accumulated: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert arguments(settings())["gradient_accumulation_steps"] == accumulated


def test_a_batch_that_does_not_divide_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BadConfig, match="a batch of 8 is no multiple of 3 processes of 4"):
        arguments(settings())
