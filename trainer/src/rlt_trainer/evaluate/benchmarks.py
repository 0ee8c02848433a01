"""Public benchmarks through lm-eval-harness: its tasks and its scores, with samples drawn as everywhere here.

The harness would write prompts its own way, without the opening tag that students are trained behind; so it is given a
model of ours, which makes a student's prompt of each text and gives back the answer without the thoughts.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rlt_client.errors import RLTError
from rlt_client.prompts import Untokenizable
from rlt_trainer.answers import given_answer
from rlt_trainer.config.evaluate import EvaluateConfig
from rlt_trainer.config.sections import TextRole
from rlt_trainer.errors import BadConfig, BadData
from rlt_trainer.evaluate.drawing import draw
from rlt_trainer.evaluate.sampling import Ask, Sampler, seed_of
from rlt_trainer.texts import Writer

__all__ = ["benchmarked", "harness"]

FINISHED: Final = "finished-benchmarks.jsonl"
FOLDER: Final = "benchmarks"
_KEPT: Final = ("results", "groups", "versions", "n-shot", "n-samples", "task_hashes", "lm_eval_version", "git_hash")


def benchmarked(config: EvaluateConfig, writer: Writer, sampler: Sampler) -> dict[str, Any]:
    """What the harness says of each task; its judgement of each answer goes to `<output>/benchmarks/TASK.jsonl`.

    Raises:
        BadConfig: the harness is not installed, a task is none for a model that thinks and writes, or there is no such
            folder of tasks.
        BadData: there is no such task, or its problems cannot be had.
        TrainingError: samples cannot be drawn now; those that were are kept.
    """
    model = _model_class(importlib.import_module("lm_eval.api.model").LM)(config, writer, sampler)
    try:
        found: dict[str, Any] = harness().simple_evaluate(
            model=model,
            tasks=list(config.benchmarks),
            task_manager=_with(config.tasks) if config.tasks else None,
            log_samples=True,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )
    except RLTError:
        raise
    except Exception as error:  # the harness, its tasks and their downloads raise whatever they meet
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadData(f"lm-eval cannot run {', '.join(config.benchmarks)}: {told}") from error
    _write_samples(config.output / FOLDER, found.get("samples", {}))
    kept: dict[str, Any] = json.loads(
        json.dumps({name: found[name] for name in _KEPT if name in found}, default=_plain)
    )
    return kept


def harness() -> Any:
    """Raises `BadConfig` where it is not installed."""
    try:
        return importlib.import_module("lm_eval")
    except ModuleNotFoundError as error:
        raise BadConfig(f"benchmarks need lm-eval: pip install 'rlt-trainer[benchmarks]' ({error})") from error


def _with(folder: Path) -> Any:
    """The harness's tasks and those of a folder."""
    if not folder.is_dir():
        raise BadConfig(f"tasks: {folder} is no folder")
    return importlib.import_module("lm_eval.tasks").TaskManager(include_path=str(folder))


def _model_class(base: type) -> type:
    """A student as the harness knows models; a class of its own, since the harness may be absent."""

    class Student(base):  # type: ignore[misc]  # of a library that ships no types and need not be there
        def __init__(self, config: EvaluateConfig, writer: Writer, sampler: Sampler) -> None:
            super().__init__()
            self._config = config
            self._writer = writer
            self._sampler = sampler

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            prompts = [_prompt(self._writer, request.args[0]) for request in requests]
            asks = [Ask(prompt, seed_of(self._config.seed, n, 0)) for n, prompt in enumerate(prompts)]
            drawn = draw(self._config, self._sampler, asks, self._config.output / FINISHED)
            return [
                _answer(self._writer, sample.text, request.args[1].get("until") or ())
                for sample, request in zip(drawn, requests, strict=True)
            ]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            raise _only_writes(requests)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            raise _only_writes(requests)

    return Student


def _prompt(writer: Writer, text: str) -> list[int]:
    try:
        return writer.prompt(TextRole.student, text, "")
    except Untokenizable as error:
        raise BadData(f"a benchmark's text cannot be written for this model: {error}") from error


def _answer(writer: Writer, completion: str, until: str | Sequence[str]) -> str:
    """What a task may judge: the answer without the thoughts, as far as the task lets texts go; empty without one."""
    answer = given_answer(writer.format, completion) or ""
    for end in [until] if isinstance(until, str) else until:
        answer = answer.partition(end)[0]
    return answer


def _only_writes(requests: Sequence[Any]) -> BadConfig:
    task = getattr(requests[0], "task_name", None) or "a task"
    return BadConfig(
        f"{task} compares the log-likelihoods of choices, but a student is asked to think and write: want a task that "
        "lets it, such as gpqa_diamond_cot_zeroshot for GPQA"
    )


def _write_samples(folder: Path, samples: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for task, rows in samples.items():
        lines = [json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else str(value)
