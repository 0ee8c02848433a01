"""The benchmarks of the trainer: their arithmetic, their models, and that the ones for a GPU run without one."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

from rlt_client.formats import shipped_formats
from rlt_client.prompts import TextCodec, content, teacher_prompt

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = [str(ROOT / part / "benchmarks") for part in ("services/common", "reward_server", "teacher_server")]
SECONDS: Final = "step_time"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found here, and by the programs that they start."""
    folders = [*FOLDERS, str(ROOT / "trainer" / "benchmarks")]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def checkpoint(folder: Path, seconds: list[float]) -> Path:
    steps: list[dict[str, Any]] = [{"step": number, SECONDS: each} for number, each in enumerate(seconds, 1)]
    history = [*steps, {"step": len(seconds), "train_runtime": sum(seconds)}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def test_the_first_step_and_the_summary_of_a_run_do_not_count(tmp_path: Path) -> None:
    runs = import_module("trainer_bench.runs")
    ran = runs.Ran.read(checkpoint(tmp_path, [9.0, 2.0, 4.0]))
    assert [step[SECONDS] for step in ran.steps] == [2.0, 4.0]
    assert ran.peak_gib > 0


def test_a_run_of_one_step_says_nothing(tmp_path: Path) -> None:
    runs = import_module("trainer_bench.runs")
    with pytest.raises(ValueError, match="more than 1 steps"):
        runs.Ran.read(checkpoint(tmp_path, [9.0]))


def test_the_share_of_waiting_is_of_all_the_time() -> None:
    wait = import_module("trainer_bench.wait")
    figures = wait._figures([8.0, 9.0, 10.0], [2.0, 1.0, 0.0])
    assert figures == {"step s": "", "generating s": 9.0, "waiting s": 1.0, "waiting": "10.0%"}  # 3 of 30 seconds
    whole = wait._figures([8.0, 9.0, 10.0], [2.0, 1.0, 0.0], [20.0, 20.0, 20.0])
    assert (whole["step s"], whole["waiting"]) == (20.0, "5.0%")  # 3 of 60


def test_the_samples_of_a_round_are_equally_long_and_of_questions_of_their_own(tiny_warmup: Path) -> None:
    wait = import_module("trainer_bench.wait")
    ways = wait._RollOuts(tiny_warmup, "http://localhost:1", "http://localhost:2", groups=2, longest=60)
    assert ways._seeds(1) == ways._seeds(1)
    assert len(set(ways._seeds(1) + ways._seeds(2))) == 2 * 2 * wait.GENERATIONS
    one, other = ({each.question for each in ways._problems(f"1 {name}")} for name in wait.WAYS)
    assert len(one) == len(other) == 2
    assert not one & other


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_every_version_that_is_published_has_other_weights(tiny_warmup: Path, lora: bool) -> None:
    publish = import_module("trainer_bench.publish")
    model = import_module("rlt_trainer.tiny.model").load_model(tiny_warmup)
    names = set(model.state_dict())
    with publish._trained(model, lora=lora) as trained:
        before = {name: value.clone() for name, value in trained.state_dict().items()}
        publish._change(trained)
        changed = [name for name, value in trained.state_dict().items() if not value.equal(before[name])]
    assert changed
    assert all((publish.ADAPTER in name) == lora for name in changed)
    assert set(model.state_dict()) == names


def test_a_random_model_has_a_word_for_every_id_and_takes_the_miniature_s_format(tmp_path: Path) -> None:
    torch = import_module("torch")
    models = import_module("trainer_bench.models")
    model = models.save_random(models.SMALL, tmp_path, torch.bfloat16)
    codec = TextCodec.of_folder(tmp_path)
    ids = list(range(models.SMALL.vocab))
    assert codec.encode([content(codec.decode(ids))]).ids == ids
    assert model.config.head_dim >= 32
    format = shipped_formats()["mini"]
    assert codec.encode(teacher_prompt(codec, format, format.probe.question, format.probe.answer)).ids


def test_the_shapes_have_the_sizes_that_their_names_say() -> None:
    models = import_module("trainer_bench.models")
    sizes = [shape.layers * shape.layer_weights + shape.head_weights for shape in (models.QWEN_05B, models.QWEN_15B)]
    assert [round(size / 1e9, 2) for size in sizes] == [0.49, 1.54]


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_runs_without_one() -> None:
    gpu, models, runs = (import_module(f"trainer_bench.{name}") for name in ("gpu", "models", "runs"))
    work = runs.Work(steps=3, batch=8, generations=4, max_tokens=24, micro_batch=4)
    record = gpu.run("test", shapes=(models.SMALL,), work=work, device="cpu")
    assert [row.way for row in record.rows] == ["LoRA", "full weights"]
    for row in record.rows:
        assert row.figures["tokens a completion"] > work.max_tokens / 2  # one token in 256 ends a text, at random
        assert row.figures["step s"] > row.figures["generating s"] > 0
        assert row.figures["GPU in use GiB"] is None
