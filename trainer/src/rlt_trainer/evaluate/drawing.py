"""All samples of an evaluation, those that an earlier, killed one drew among them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from transformers.utils.logging import tqdm

from rlt_client.errors import RLTError
from rlt_trainer.config.evaluate import EvaluateConfig
from rlt_trainer.errors import BadConfig, BadData, TrainingError
from rlt_trainer.evaluate.sampling import Ask, Finished, Sample, Sampler

__all__ = ["draw", "settings"]

TELL_S: Final = 60.0  # between lines on how far it is, where there is no bar

log = logging.getLogger(__name__)


def draw(config: EvaluateConfig, sampler: Sampler, asks: Sequence[Ask], path: Path) -> list[Sample]:
    """The samples in the order they are asked for.

    Args:
        path: file that keeps them.

    Raises:
        BadConfig: the file has samples of another evaluation.
        TrainingError: some cannot be drawn now; the others are kept.
    """
    with Finished(path, _purpose(config, sampler, asks)) as finished:
        _draw_missing(sampler, asks, finished)
    return [finished.samples[place] for place in range(len(asks))]


def settings(config: EvaluateConfig) -> dict[str, Any]:
    """What shapes a sample, besides model and prompt."""
    return config.model_dump(include={"temperature", "top_p", "max_new_tokens", "samples", "seed"})


def _purpose(config: EvaluateConfig, sampler: Sampler, asks: Sequence[Ask]) -> str:
    told = [dict(sampler.model), settings(config), [[list(ask.prompt_ids), ask.seed] for ask in asks]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _draw_missing(sampler: Sampler, asks: Sequence[Ask], finished: Finished) -> None:
    told = time.monotonic()
    with tqdm(total=len(asks), initial=len(finished.samples), unit="sample", disable=None) as bar:

        def keep(place: int, sample: Sample) -> None:
            nonlocal told
            finished.keep(place, sample)
            bar.update()
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                log.info("%d of %d samples are there", len(finished.samples), len(asks))

        try:
            sampler.sample(asks, set(finished.samples), keep)
        except (BadConfig, BadData):
            raise
        except RLTError as error:
            there = f"{len(finished.samples)} of {len(asks)} samples are there"
            raise TrainingError(f"{error}; {there}, and the same command goes on with the rest") from error
