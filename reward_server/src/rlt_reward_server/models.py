"""Loads models from folders or the hub's cache, and refuses what would give wrong numbers."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from rlt_client.errors import RLTError
from rlt_client.prompts import TextCodec
from rlt_client.schemas.common import ModelRef
from rlt_reward_server.scorer import CausalScorer
from rlt_reward_server.settings import Settings
from rlt_service.revision import model_revision, resolve_model

__all__ = ["LoadedModel", "Models", "UnusableModel", "load_models"]

log = logging.getLogger(__name__)


class UnusableModel(RLTError):
    """A model folder that is there but cannot be served."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    ref: ModelRef
    codec: TextCodec
    scorer: CausalScorer


@dataclass(frozen=True, slots=True)
class Models:
    student: LoadedModel
    teacher: LoadedModel | None


def load_models(settings: Settings) -> Models:
    """The student, and the teacher if one is hosted; loaded once where both are the same folder.

    Raises:
        ModelNotFound: there is no such folder or name.
        UnusableModel, UnsupportedModel: it cannot be served.
    """
    disable_progress_bar()  # the log is lines of JSON
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    student = _load(settings.student, settings)
    if settings.teacher is None:
        return Models(student, None)
    if resolve_model(settings.teacher) == resolve_model(settings.student):
        name = _name(settings.teacher)
        return Models(
            student, LoadedModel(ModelRef(name=name, revision=student.ref.revision), student.codec, student.scorer)
        )
    teacher = _load(settings.teacher, settings)
    if teacher.codec.vocabulary_hash() != student.codec.vocabulary_hash():
        raise UnusableModel(
            f"the tokenizers of {settings.student} and {settings.teacher} differ: student and teacher must share one, "
            "since their log-probs are compared token by token"
        )
    return Models(student, teacher)


def _load(name_or_dir: str, settings: Settings) -> LoadedModel:
    started = time.perf_counter()
    path = resolve_model(name_or_dir)
    codec = _codec(path)
    scorer = CausalScorer(_weights(path, settings), max_batch_tokens=settings.max_batch_tokens)
    if codec.vocab_size > scorer.vocab_size:
        raise UnusableModel(f"{path}: its tokenizer has {codec.vocab_size} tokens, its embedding {scorer.vocab_size}")
    ref = ModelRef(name=_name(name_or_dir), revision=model_revision(path))
    figures = {"seconds": round(time.perf_counter() - started, 2), "dtype": scorer.dtype, "device": str(scorer.device)}
    log.info("model loaded", extra={"model": ref.name, "revision": ref.revision, **figures})
    return LoadedModel(ref, codec, scorer)


def _name(name_or_dir: str) -> str:
    """A folder is called by its last part: its whole path is nobody's business."""
    path = Path(name_or_dir).expanduser()
    return path.resolve().name if path.is_dir() else name_or_dir


def _codec(path: Path) -> TextCodec:
    try:
        return TextCodec(AutoTokenizer.from_pretrained(path, local_files_only=True))
    except Exception as error:  # transformers raises whatever its parsers raise; each means that it cannot be read
        raise UnusableModel(f"{path}: its tokenizer cannot be used: {_first_line(error)}") from error


def _weights(path: Path, settings: Settings) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=settings.dtype, local_files_only=True, output_loading_info=True
        )
        model, found = loaded
        model.to(_device(settings.device))
    except Exception as error:  # as above: broken files, unknown architectures, too little memory
        raise UnusableModel(f"{path}: the model cannot be loaded: {_first_line(error)}") from error
    wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if wrong:  # transformers fills these with random numbers and only warns
        raise UnusableModel(f"{path}: weights are missing or of another shape: {', '.join(wrong[:5])}")
    return model


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
