"""`rlt-trainer evaluate`: `results.json` and `samples.parquet` in the output folder, and a table on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas as pd
from datasets import Dataset

from rlt_client.prompts import Untokenizable
from rlt_trainer.answers import check_right_answer
from rlt_trainer.config.evaluate import EvaluateConfig
from rlt_trainer.config.sections import Data, TextRole
from rlt_trainer.data import read_rows
from rlt_trainer.errors import BadData
from rlt_trainer.evaluate.benchmarks import benchmarked, harness
from rlt_trainer.evaluate.drawing import draw, settings
from rlt_trainer.evaluate.report import judged, summary, table
from rlt_trainer.evaluate.sampling import Ask, Sampler, seed_of
from rlt_trainer.models import load_codec
from rlt_trainer.texts import Writer, named_format

__all__ = ["run"]

RESULTS: Final = "results.json"
SAMPLES: Final = "samples.parquet"
FINISHED: Final = "finished.jsonl"
PACKAGES: Final = ("rlt-trainer", "torch", "transformers", "math-verify")


@dataclass(frozen=True, slots=True)
class Problems:
    """Rows of question, answer and, perhaps, system; each is asked for `samples` times, in their order."""

    rows: Dataset
    asks: Sequence[Ask]


def run(config: EvaluateConfig) -> Path:
    """Evaluate, or go on where a killed evaluation stopped; the folder of the results.

    Raises:
        BadConfig, BadData: a model, a format or problems that cannot be used, or a folder with another evaluation.
        TrainingError: samples cannot be drawn now; those that were are kept.
    """
    if config.benchmarks:
        harness()
    writer = Writer(load_codec(config.model), named_format(config.texts.format, config.texts.formats))
    problems = _problems(config.data, config, writer) if config.data else None
    sampler = _sampler(config, writer)
    config.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"model": dict(sampler.model), "format": writer.format.ref.model_dump()}
    results |= {"sampling": settings(config), "versions": {name: version(name) for name in PACKAGES}}
    if problems is not None and config.data is not None:
        results["data"] = {"path": config.data.path, **_evaluated(config, writer, sampler, problems)}
    if config.benchmarks:
        results["benchmarks"] = benchmarked(config, writer, sampler)
    _write(config.output / RESULTS, json.dumps(results, indent=2) + "\n")
    sys.stdout.write(table(results))
    return config.output


def _problems(data: Data, config: EvaluateConfig, writer: Writer) -> Problems:
    rows = read_rows(data, want=["question", "answer"], may=["system"])
    asks: list[Ask] = []
    for number, row in enumerate(rows):
        try:
            check_right_answer(config.match, row["answer"])
            prompt = writer.prompt(TextRole.student, row["question"], row["answer"], row.get("system"))
        except (BadData, Untokenizable) as error:
            raise BadData(f"{data.path}: row {number + 1}: {error}") from error
        asks += [Ask(prompt, seed_of(config.seed, number, sample)) for sample in range(config.samples)]
    return Problems(rows, asks)


def _sampler(config: EvaluateConfig, writer: Writer) -> Sampler:
    if config.engine is not None:
        from rlt_trainer.evaluate.server import ServerSampler

        return ServerSampler(config, config.engine, writer)
    from rlt_trainer.evaluate.inprocess import TransformersSampler

    return TransformersSampler(config, writer)


def _evaluated(config: EvaluateConfig, writer: Writer, sampler: Sampler, problems: Problems) -> dict[str, Any]:
    drawn = draw(config, sampler, problems.asks, config.output / FINISHED)
    per = config.samples
    found = [
        [judged(config, writer, row, number, sample) for sample in drawn[number * per : (number + 1) * per]]
        for number, row in enumerate(problems.rows)
    ]
    rows = pd.DataFrame([asdict(sample) | {"right": sample.right} for problem in found for sample in problem])
    fresh = config.output / f".{SAMPLES}"
    rows.to_parquet(fresh)
    fresh.rename(config.output / SAMPLES)
    return summary(config, found)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text, encoding="utf-8")
    fresh.rename(path)
