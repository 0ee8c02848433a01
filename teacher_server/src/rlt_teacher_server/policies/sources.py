"""Folders that policies come from: inside the allowed roots, and really of the served model. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from rlt_client.prompts import TextCodec
from rlt_client.schemas.models import ModelKind
from rlt_service.checkpoint import (
    ADAPTER_CONFIG,
    UnusableModel,
    check_adapter,
    first_line,
    read_json,
    tensor_shapes,
)
from rlt_service.paths import AllowedRoots
from rlt_service.revision import ModelNotFound, model_revision
from rlt_teacher_server.model import TeacherModel

__all__ = ["Sources"]

UNTOLD: Final = frozenset(
    (
        "_name_or_path",
        "transformers_version",
        "architectures",
        "auto_map",
        "torch_dtype",
        "dtype",
        "use_cache",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "attention_dropout",
        "hidden_dropout",
        "resid_dropout",
        "classifier_dropout",
    )
)
"""Fields of a configuration that do not change what weights compute here: trainers and versions of transformers write
them as they like. A turn ends where the served model's does, and engines know their number format."""
TOLD: Final = 5  # differences that a refusal lists


class Sources:
    """Args:
    model: what every policy is a version of.
    """

    def __init__(self, roots: AllowedRoots, model: TeacherModel) -> None:
        self._roots = roots
        self._model = model

    def inside(self, folder: Path) -> None:
        """Raises `InvalidRequest` (path_not_allowed): the roots may be others than when it was published."""
        self._roots.resolve(str(folder))

    def said(self, error: Exception) -> str:
        """Without the roots: where they lie is nobody's business."""
        return self._roots.hide(str(error))

    def folder(self, source: str, kind: ModelKind) -> Path:
        """Raises:
        InvalidRequest: path_not_allowed, for what lies in the folder too.
        ModelNotFound: there is no such folder, or none of this kind.
        """
        folder = self._roots.contain(self._roots.resolve(source))
        wanted = ADAPTER_CONFIG if kind is ModelKind.lora else "config.json"
        if not (folder / wanted).is_file():
            raise ModelNotFound(f"not a folder of a {kind} policy, it has no {wanted}: {folder}")
        return folder

    def check(self, folder: Path, kind: ModelKind) -> str:
        """The content hash of a folder whose policy may be loaded. Raises as `compare`, and `ModelNotFound`."""
        self.compare(folder, kind)
        try:
            return model_revision(folder)
        except OSError as error:  # somebody clears it away
            raise UnusableModel(f"{folder}: it cannot be read: {first_line(error)}") from error

    def compare(self, folder: Path, kind: ModelKind) -> None:
        """With the served model; of weights only the headers are read.

        Raises:
            UnusableModel, UnusableTokenizer: it is of another kind, architecture or tokenizer, or it is not whole.
        """
        if kind is ModelKind.lora:
            check_adapter(folder)
        else:
            self._same_architecture(folder)
            self._same_tensors(folder)
        self._same_tokenizer(folder)

    def _same_tokenizer(self, folder: Path) -> None:
        """A folder need not have one."""
        if not (folder / "tokenizer.json").is_file():
            return
        own, served = TextCodec.of_folder(folder), self._model.codec
        if own.vocabulary_hash() != served.vocabulary_hash() and _backend(own) != _backend(served):
            raise UnusableModel(f"{folder}: its tokenizer is not that of {self._model.ref.name}")

    def _same_architecture(self, folder: Path) -> None:
        own, served = (read_json(each / "config.json") for each in (folder, self._model.folder))
        if _differences(own, served) and (found := _normalised_differences(folder, self._model.folder, own, served)):
            raise UnusableModel(f"{folder}: its architecture is not that of {self._model.ref.name}: {_list(found)}")

    def _same_tensors(self, folder: Path) -> None:
        """Engines read what they know by name, and keep the old values of what is missing."""
        own, served = tensor_shapes(folder), self._shapes
        if served is None:
            return
        wrong = [name for name in sorted(own.keys() | served.keys()) if own.get(name) != served.get(name)]
        if read_json(folder / "config.json").get("tie_word_embeddings"):
            wrong = [name for name in wrong if not name.endswith("lm_head.weight")]  # written by some, left out by some
        if wrong:
            told = _list(wrong)
            raise UnusableModel(f"{folder}: weights are missing, too many, or of another shape than served: {told}")

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]] | None:
        """None of a served model whose weights are pickles."""
        try:
            return tensor_shapes(self._model.folder)
        except UnusableModel:
            return None


def _differences(own: Mapping[str, Any], served: Mapping[str, Any]) -> list[str]:
    names = sorted((own.keys() | served.keys()) - UNTOLD)
    return [name for name in names if own.get(name) != served.get(name)]


def _normalised_differences(folder: Path, model: Path, own: Mapping[str, Any], served: Mapping[str, Any]) -> list[str]:
    """With defaults filled in and old names of fields translated, where transformers knows the architecture."""
    from transformers import AutoConfig

    try:
        full = [AutoConfig.from_pretrained(each, local_files_only=True).to_dict() for each in (folder, model)]
    except Exception:  # whatever transformers raises for an architecture or a field that it does not know
        return _differences(own, served)
    return _differences(*full)


def _backend(codec: TextCodec) -> dict[str, Any]:
    """Without what trainers leave in it, which gives no text other ids."""
    shape: dict[str, Any] = json.loads(codec.tokenizer.backend_tokenizer.to_str())
    return shape | {"padding": None, "truncation": None}


def _list(names: list[str]) -> str:
    return ", ".join(_head(names))


def _head(names: list[str]) -> Iterator[str]:
    yield from names[:TOLD]
    if len(names) > TOLD:
        yield f"and {len(names) - TOLD} more"
