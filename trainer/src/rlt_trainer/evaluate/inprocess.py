"""Samples by transformers, in this process: for small models. A server with paged memory is much faster for others."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from rlt_trainer.answers import text_of
from rlt_trainer.config.evaluate import EvaluateConfig
from rlt_trainer.errors import BadConfig
from rlt_trainer.evaluate.sampling import Ask, Sample, room
from rlt_trainer.revision import folder_revision
from rlt_trainer.texts import Writer

__all__ = ["TransformersSampler"]


class TransformersSampler:
    """Raises `BadConfig` for a model that is not there or cannot be read."""

    def __init__(self, config: EvaluateConfig, writer: Writer) -> None:
        self._config = config
        self._writer = writer
        self._model: Any = _loaded(config)
        self._context: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._ends = _end_ids(self._model, writer)
        # the model's own may hold penalties and cuts
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # annotated only in part

    @cached_property
    def model(self) -> Mapping[str, str | None]:
        name = self._config.model.name
        revision = folder_revision(Path(name)) if Path(name).is_dir() else self._model.config._commit_hash
        return {"name": name, "revision": revision, "dtype": self._config.model.dtype}

    def sample(self, asks: Sequence[Ask], have: Container[int], keep: Callable[[int, Sample], None]) -> None:
        """In batches of like lengths, which are the same when a killed evaluation goes on."""
        limits = [room(ask.prompt_ids, self._config.max_new_tokens, self._context) for ask in asks]
        longest_first = sorted(range(len(asks)), key=lambda place: -len(asks[place].prompt_ids))
        for batch in _batches(longest_first, self._config.batch_size):
            missing = [place for place in batch if place not in have]
            if missing:
                drawn = self._generate([asks[place] for place in missing], [limits[place] for place in missing])
                for place, sample in zip(missing, drawn, strict=True):
                    keep(place, sample)

    @torch.inference_mode()
    def _generate(self, asks: Sequence[Ask], limits: Sequence[int]) -> list[Sample]:
        width = max(len(ask.prompt_ids) for ask in asks)
        padded = [[0] * (width - len(ask.prompt_ids)) + list(ask.prompt_ids) for ask in asks]
        mask = [[0] * (width - len(ask.prompt_ids)) + [1] * len(ask.prompt_ids) for ask in asks]
        ends = _Ends(self._writer, self._ends, width, limits)
        written = self._model.generate(
            torch.tensor(padded, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            max_new_tokens=max(limits),
            do_sample=False,  # _Draws has drawn: one candidate is left
            logits_processor=self._draws([ask.seed for ask in asks]),
            stopping_criteria=StoppingCriteriaList([ends]),
        )
        rows: list[list[int]] = written[:, width:].tolist()
        return [
            Sample(self._text(row[:length]), length, truncated)
            for row, length, truncated in zip(rows, ends.lengths, ends.truncated, strict=True)
        ]

    def _draws(self, seeds: Sequence[int]) -> LogitsProcessorList:
        config = self._config
        if config.temperature == 0:
            return LogitsProcessorList()
        cut = [TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []
        return LogitsProcessorList([TemperatureLogitsWarper(config.temperature), *cut, _Draws(seeds)])

    def _text(self, ids: Sequence[int]) -> str:
        return text_of(self._writer.codec, self._writer.format, ids)


class _Draws(LogitsProcessor):
    """Draws each row's token with random numbers that follow from its own seed alone, one for each token."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._random = [random.Random(seed) for seed in seeds]  # noqa: S311 sampling must be reproducible

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 transformers passes both
        """The token where a uniform number falls in the cumulated probabilities; all others are ruled out. [B, V]"""
        cumulated = scores.double().softmax(dim=-1).cumsum(dim=-1)
        uniform = torch.tensor([row.random() for row in self._random], dtype=torch.float64, device=scores.device)
        total = cumulated[:, -1:]
        point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(cumulated, point, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class _Ends(StoppingCriteria):
    """Which rows are done, and how many tokens they have: at the format's end tag, an end of text, or their limit."""

    def __init__(self, writer: Writer, end_ids: set[int], width: int, limits: Sequence[int]) -> None:
        self._codec = writer.codec
        self._tag = writer.format.student.after_answer.strip()
        self._window = len(self._tag.encode()) + 1  # each token but the last is at least a byte of the tag
        self._end_ids = end_ids
        self._width = width
        self._limits = limits
        self.lengths = [0] * len(limits)
        self.truncated = [False] * len(limits)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002 transformers passes both
        new = input_ids.shape[1] - self._width
        tails = input_ids[:, -min(new, self._window) :].tolist()
        for row, tail in enumerate(tails):
            if not self.lengths[row]:
                ended = self._ended(tail)
                if ended or new >= self._limits[row]:
                    self.lengths[row], self.truncated[row] = new, not ended
        return torch.tensor([bool(length) for length in self.lengths], device=input_ids.device)

    def _ended(self, tail: list[int]) -> bool:
        return tail[-1] in self._end_ids or bool(self._tag and self._tag in self._codec.decode(tail))


def _loaded(config: EvaluateConfig) -> Any:
    model = config.model
    options = {"attn_implementation": model.attention} if model.attention else {}
    device = "cpu" if config.cpu or not torch.cuda.is_available() else "cuda"
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.name,
            revision=model.revision or "main",
            dtype=getattr(torch, model.dtype),
            device_map={"": device},  # read straight onto it
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise BadConfig(f"model {model.name} cannot be loaded: {error}") from error
    return loaded.eval()


def _end_ids(model: Any, writer: Writer) -> set[int]:
    """All tokens that end a text: a chat model's generation config names several."""
    told = model.generation_config.eos_token_id if model.generation_config else None
    listed = told if isinstance(told, list) else [told]
    return {id_ for id_ in (*listed, writer.codec.eos_token_id) if id_ is not None}


def _batches(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))
