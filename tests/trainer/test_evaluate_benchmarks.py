"""Public benchmarks: against a stand-in for lm-eval-harness with its signatures, and against itself where it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from rlt_trainer.config import EvaluateConfig
from rlt_trainer.errors import BadConfig, BadData
from rlt_trainer.evaluate.run import run
from rlt_trainer.evaluate.sampling import Finished
from rlt_trainer.tiny import problems

COUNT = 8
QUESTIONS = problems(COUNT, seed=7)
Make = Callable[..., EvaluateConfig]


@pytest.fixture
def make(tmp_path: Path, tiny_warmup: Path) -> Make:
    def config(**changed: Any) -> EvaluateConfig:
        told: dict[str, Any] = {
            "output": tmp_path / "found",
            "model": {"name": str(tiny_warmup), "dtype": "float32"},
            "benchmarks": ["chains"],
            "texts": {"format": "mini"},
            "max_new_tokens": 40,
            "cpu": True,
        }
        return EvaluateConfig(**(told | changed))

    return config


@dataclass
class Instance:
    args: tuple[str, dict[str, Any]]
    task_name: str = "chains"


class LM:
    """As `lm_eval.api.model.LM`: what it keeps besides is for processes that share the work."""

    def __init__(self) -> None:
        self._rank = 0
        self._world_size = 1


def simple_evaluate(  # as of lm-eval 0.4.13
    model: str | LM,
    model_args: str | dict[str, Any] | None = None,
    tasks: list[Any] | None = None,
    num_fewshot: int | None = None,
    batch_size: int | str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
    use_cache: str | None = None,
    cache_requests: bool = False,
    rewrite_requests_cache: bool = False,
    delete_requests_cache: bool = False,
    limit: float | None = None,
    samples: dict[str, list[int]] | None = None,
    bootstrap_iters: int = 100_000,
    check_integrity: bool = False,
    write_out: bool = False,
    log_samples: bool = True,
    evaluation_tracker: Any = None,
    system_instruction: str | None = None,
    apply_chat_template: bool | str = False,
    fewshot_as_multiturn: bool = True,
    gen_kwargs: Any = None,
    task_manager: Any = None,
    verbosity: Any = None,
    predict_only: bool = False,
    random_seed: int = 0,
    numpy_random_seed: int = 1234,
    torch_random_seed: int = 1234,
    fewshot_random_seed: int = 1234,
    confirm_run_unsafe_code: bool = False,
    metadata: dict[str, Any] | None = None,
) -> dict[str, Any]:
    if not isinstance(model, LM):
        raise TypeError(f"The value of `model` passed to simple_evaluate() was of type {type(model)}")
    [task] = tasks or []
    if task == "choices":
        model.loglikelihood([Instance(("Q", {}), task)])  # type: ignore[attr-defined]
    if task != "chains":
        raise KeyError(task)
    requests = [Instance((each.question, {"until": ["$"], "do_sample": False})) for each in QUESTIONS]
    answers: Sequence[str] = model.generate_until(requests)  # type: ignore[attr-defined]
    right = [float(answer == each.answer) for answer, each in zip(answers, QUESTIONS, strict=True)]
    rows = [{"doc_id": n, "resps": [[answer]], "exact_match": right[n]} for n, answer in enumerate(answers)]
    figures = {"alias": "chains", "exact_match,none": sum(right) / COUNT, "exact_match_stderr,none": "N/A"}
    return {
        "results": {"chains": figures},
        "versions": {"chains": 1.0},
        "n-shot": {"chains": 0},
        "samples": {"chains": rows} if log_samples else {},
        "config": {"model_args": "not for a record"},
        "lm_eval_version": "0.4.13",
    }


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
    modules["lm_eval"].simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    modules["lm_eval.api.model"].LM = LM  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def by_hand(make: Make, tmp_path: Path) -> dict[str, Any]:
    """The same questions as rows: the same prompts and seeds, so the same answers."""
    file = tmp_path / "questions.jsonl"
    rows = [{"question": each.question, "answer": each.answer} for each in QUESTIONS]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = make(output=tmp_path / "rows", benchmarks=[], data={"path": str(file)}, match="exact")
    return results(run(config))["data"]


@pytest.mark.usefixtures("harness")
def test_tasks_are_answered_as_problems_are(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(make())
    found = results(folder)["benchmarks"]
    right = by_hand(make, tmp_path)["pass_at"]["1"]["value"]
    assert found["results"]["chains"]["exact_match,none"] == right
    assert found["lm_eval_version"] == "0.4.13"
    assert "config" not in found
    rows = [json.loads(line) for line in (folder / "benchmarks" / "chains.jsonl").read_text().splitlines()]
    assert sum(row["exact_match"] for row in rows) == right * COUNT
    assert all(row["resps"][0][0].isdigit() for row in rows)  # without thoughts and tags
    assert f"{right:.4f}" in capsys.readouterr().out


@pytest.mark.usefixtures("harness")
def test_a_benchmark_goes_on_with_the_samples_that_are_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(run(make()))
    monkeypatch.setattr(Finished, "keep", lambda *_: pytest.fail("it is there"))
    assert results(run(make())) == before


@pytest.mark.usefixtures("harness")
def test_an_unknown_task_is_named(make: Make) -> None:
    with pytest.raises(BadData, match="lm-eval cannot run chanes: KeyError: 'chanes'"):
        run(make(benchmarks=["chanes"]))


@pytest.mark.usefixtures("harness")
def test_a_task_of_likelihoods_is_none_for_a_student(make: Make) -> None:
    with pytest.raises(BadConfig, match="choices compares the log-likelihoods"):
        run(make(benchmarks=["choices"]))


@pytest.mark.usefixtures("harness")
def test_tasks_of_ones_own_are_added_to_the_harness_s(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    tasks = ModuleType("lm_eval.tasks")
    tasks.TaskManager = lambda *, include_path: include_path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.setattr(
        sys.modules["lm_eval"],
        "simple_evaluate",
        lambda **told: given.append(told["task_manager"]) or simple_evaluate(**told),
    )
    run(make(tasks=tmp_path))
    run(make(output=tmp_path / "without"))
    assert given == [str(tmp_path), None]
    with pytest.raises(BadConfig, match="tasks: no/such is no folder"):
        run(make(output=tmp_path / "none", tasks="no/such"))
    with pytest.raises(ValidationError, match="`tasks` are files for `benchmarks`"):
        make(benchmarks=[], data={"path": "rows.jsonl"}, tasks=tmp_path)


def test_without_the_harness_nothing_is_loaded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BadConfig, match=r"pip install 'rlt-trainer\[benchmarks\]'"):
        run(make(model={"name": "no/model"}))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra rlt-trainer[benchmarks] is not installed")
def test_the_harness_itself(make: Make, tmp_path: Path) -> None:
    wanted = by_hand(make, tmp_path)["pass_at"]["1"]["value"]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "chains.yaml").write_text(
        f"""
task: chains
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "questions.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["$"], do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
    )
    found = results(run(make(tasks=tasks)))["benchmarks"]
    assert found["results"]["chains"]["exact_match,none"] == wanted
    assert found["n-samples"]["chains"]["effective"] == COUNT
