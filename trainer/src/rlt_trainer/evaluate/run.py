"""`rlt-trainer evaluate`: `results.json` and `samples.parquet` in the output folder, and a table on stdout."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas as pd
from datasets import Dataset
from transformers.utils.logging import tqdm

from rlt_client.errors import RLTError
from rlt_client.prompts import Untokenizable
from rlt_trainer.config.evaluate import EvaluateConfig
from rlt_trainer.config.sections import Data, TextRole
from rlt_trainer.data import read_rows
from rlt_trainer.errors import BadData, TrainingError
from rlt_trainer.evaluate.report import judged, summary, table
from rlt_trainer.evaluate.sampling import Ask, Finished, Sample, Sampler, seed_of
from rlt_trainer.models import load_codec
from rlt_trainer.texts import Writer, named_format

__all__ = ["run"]

RESULTS: Final = "results.json"
SAMPLES: Final = "samples.parquet"
FINISHED: Final = "finished.jsonl"
PACKAGES: Final = ("rlt-trainer", "torch", "transformers", "math-verify")


def run(config: EvaluateConfig) -> Path:
    """Evaluate, or go on where a killed evaluation stopped; the folder of the results.

    Raises:
        BadConfig, BadData: a model, a format or problems that cannot be used, or a folder with another evaluation.
        TrainingError: samples cannot be drawn now; those that were are kept.
    """
    writer = Writer(load_codec(config.model), named_format(config.texts.format, config.texts.formats))
    problems = _problems(config.data, config, writer) if config.data else None
    sampler = _sampler(config, writer)
    config.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"model": dict(sampler.model), "format": writer.format.ref.model_dump()}
    results |= {"sampling": _sampling(config), "versions": {name: version(name) for name in PACKAGES}}
    if problems is not None and config.data is not None:
        results["data"] = {"path": config.data.path, **_evaluated(config, writer, sampler, problems)}
    _write(config.output / RESULTS, json.dumps(results, indent=2) + "\n")
    sys.stdout.write(table(results))
    return config.output


@dataclass(frozen=True, slots=True)
class Problems:
    """Rows of question, answer and, perhaps, system; and what is asked: `samples` times each, in their order."""

    rows: Dataset
    asks: Sequence[Ask]

    def purpose(self, config: EvaluateConfig, sampler: Sampler) -> str:
        """Hash of everything that decides what the samples are."""
        asked = [[list(ask.prompt_ids), ask.seed] for ask in self.asks]
        told = [dict(sampler.model), _sampling(config), asked]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _problems(data: Data, config: EvaluateConfig, writer: Writer) -> Problems:
    rows = read_rows(data, want=["question", "answer"], may=["system"])
    asks: list[Ask] = []
    for number, row in enumerate(rows):
        try:
            prompt = writer.prompt(TextRole.student, row["question"], row["answer"], row.get("system"))
        except Untokenizable as error:
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
    with Finished(config.output / FINISHED, problems.purpose(config, sampler)) as finished:
        drawn = sampled(sampler, problems.asks, finished)
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


def sampled(sampler: Sampler, asks: Sequence[Ask], finished: Finished) -> list[Sample]:
    """All samples, those that are there already among them.

    Raises:
        TrainingError: some cannot be drawn now; the others are kept.
    """
    with tqdm(total=len(asks), initial=len(finished.samples), unit="sample", disable=None) as bar:

        def keep(place: int, sample: Sample) -> None:
            finished.keep(place, sample)
            bar.update()

        try:
            sampler.sample(asks, set(finished.samples), keep)
        except BadData:
            raise
        except RLTError as error:
            there = (
                f"{len(finished.samples)} of {len(asks)} samples are there, and the same command goes on with the rest"
            )
            raise TrainingError(f"{error}; {there}") from error
    return [finished.samples[place] for place in range(len(asks))]


def _sampling(config: EvaluateConfig) -> dict[str, Any]:
    names = {"temperature", "top_p", "max_new_tokens", "samples", "seed"}
    return config.model_dump(include=names)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text, encoding="utf-8")
    fresh.rename(path)
