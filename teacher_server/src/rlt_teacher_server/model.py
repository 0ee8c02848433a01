"""The model that explains, as far as the server knows it: name, hash, tokenizer, limits. No weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlt_client.prompts import TextCodec
from rlt_client.schemas.common import ModelRef
from rlt_service.checkpoint import UnusableModel, read_json
from rlt_service.revision import model_revision, resolve_model

__all__ = ["TeacherModel", "UnusableModel", "load_model"]


@dataclass(frozen=True, slots=True)
class TeacherModel:
    ref: ModelRef
    codec: TextCodec
    eos_token_ids: tuple[int, ...]
    """Every token that ends the model's turn, by its configuration and its tokenizer."""
    folder: Path
    max_positions: int | None
    """Positions of the model, by its configuration."""


def load_model(name_or_dir: str) -> TeacherModel:
    """Raises:
    ModelNotFound: there is no such model.
    UnusableModel: its configuration cannot be read.
    UnusableTokenizer: its tokenizer cannot be read.
    """
    folder = resolve_model(name_or_dir)
    config = read_json(folder / "config.json")
    codec = TextCodec.of_folder(folder)
    generation = folder / "generation_config.json"
    named = [config.get("eos_token_id"), read_json(generation).get("eos_token_id") if generation.is_file() else None]
    return TeacherModel(
        ref=ModelRef(name=_name(name_or_dir), revision=model_revision(folder)),
        codec=codec,
        eos_token_ids=_flat([*named, codec.eos_token_id]),
        folder=folder,
        max_positions=config.get("max_position_embeddings"),
    )


def _name(name_or_dir: str) -> str:
    """A folder is called by its last part: its whole path is nobody's business."""
    path = Path(name_or_dir).expanduser()
    return path.resolve().name if path.is_dir() else name_or_dir


def _flat(found: list[int | list[int] | None]) -> tuple[int, ...]:
    lists = [value if isinstance(value, list) else [value] for value in found if value is not None]
    return tuple(dict.fromkeys(token for tokens in lists for token in tokens))
