"""The file that remembers the policies across restarts: which there are, which is active, and what was before."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rlt_client.errors import APIError, RLTError
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.models import ModelKind
from rlt_service.checkpoint import first_line
from rlt_teacher_server.model import TeacherModel
from rlt_teacher_server.policies.sources import Sources
from rlt_teacher_server.policies.versions import Book, Version

__all__ = ["StateFile", "UnusableState", "recall"]

log = logging.getLogger(__name__)


class UnusableState(RLTError):
    """The file of policies is there but cannot be used."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    policy: ModelRef
    kind: ModelKind
    folder: Path
    base: ModelRef | None = None
    wanted: bool = False
    served_name: str | None = None


class _State(BaseModel):
    """Versions in the order in which they were published; `history`: the latest first."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    model: ModelRef
    active: ModelRef
    history: list[ModelRef]
    versions: list[_Entry]


class StateFile:
    """One writer at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser().absolute()
        self._written: str | None = None

    def read(self) -> _State | None:
        """None if there is no such file yet.

        Raises:
            UnusableState: it cannot be read, or is not what this server writes.
        """
        try:
            return _State.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnusableState(f"{self._path}: the file of policies cannot be read: {first_line(error)}") from error
        except ValidationError as error:
            [first, *_] = error.errors(include_url=False)
            where = ".".join(map(str, first["loc"]))
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            hint = "mend it, or move it away to begin with the served model alone"
            raise UnusableState(f"{self._path} is no file of policies ({reason}): {hint}") from error

    async def write(self, book: Book) -> None:
        """Whole or not at all, whatever happens meanwhile. Nothing is written twice.

        Raises:
            UnusableState: it cannot be written.
        """
        text = _state(book).model_dump_json(indent=1, exclude_defaults=True)
        if text == self._written:
            return
        try:
            await asyncio.to_thread(self._replace, text)
        except OSError as error:
            raise UnusableState(f"{self._path}: the file of policies cannot be written: {error.strerror}") from error
        self._written = text

    def _replace(self, text: str) -> None:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(name).unlink()
            raise
        _sync(self._path.parent)


def _sync(folder: Path) -> None:
    """A name that is not on the disk yet would be gone after a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _state(book: Book) -> _State:
    return _State(
        model=book.base.ref,
        active=book.active.ref,
        history=[version.ref for version in book.history],
        versions=[_entry(version) for version in book.versions],
    )


def _entry(version: Version) -> _Entry:
    adapter = version.stay.held.adapter if version.stay else None
    return _Entry(
        policy=version.ref,
        kind=version.kind,
        folder=version.folder,
        base=version.base.ref if version.base else None,
        wanted=version.wanted,
        served_name=adapter.name if adapter else version.served_before,
    )


def recall(state: _State | None, model: TeacherModel, sources: Sources) -> Book:
    """What the file knows, as far as it is still there. The rest is told in the log and in `detail` of its version.

    Reads the files of what is to be loaded; of other versions the content is looked at when they are activated. A
    server that is started with another model than before begins with that one: a rollback leads to what was active.
    """
    book = Book.of(model)
    if state is None:
        return book
    same_model = state.model.revision == model.ref.revision
    for entry in _bases_first(state.versions):
        _recall(entry, book, None if same_model else sources)
    order = [entry.policy for entry in state.versions]
    book.versions.sort(key=lambda version: order.index(version.ref) if version.ref in order else len(order))
    before = state.history if same_model else [state.active, *state.history]
    book.history = [version for ref in before if (version := book.find(ref.name, ref.revision)) is not None]
    if same_model:
        _activate(state.active, book, sources)
    for version in book.versions:
        if version.wanted and version.detail is None and version.full.ref.revision == book.active.full.ref.revision:
            _check(version, sources)
    return book


def _bases_first(entries: list[_Entry]) -> Iterator[_Entry]:
    yield from (entry for entry in entries if entry.base is None)
    yield from (entry for entry in entries if entry.base is not None)


def _recall(entry: _Entry, book: Book, other_model: Sources | None) -> None:
    """`other_model`: what full weights are compared with, where the model is not the one of before."""
    if entry.policy == book.base.ref:
        return
    base = book.find(entry.base.name, entry.base.revision) if entry.base else None
    if (entry.kind is ModelKind.lora) != (base is not None):
        log.warning("a policy is forgotten: its base is not served any more", extra=_facts(entry.policy))
        return
    version = Version(entry.policy, entry.kind, entry.folder, base, entry.wanted, served_before=entry.served_name)
    if not entry.folder.is_dir():
        _warn(version, f"its folder is gone: {entry.folder}")
    elif other_model is not None and entry.kind is ModelKind.full and not _fits(version, other_model):
        return
    book.put(version)


def _fits(version: Version, sources: Sources) -> bool:
    try:
        sources.compare(version.folder, version.kind)
    except RLTError as error:
        log.warning("a policy is forgotten", extra={**_facts(version.ref), "reason": first_line(error)})
        return False
    return True


def _activate(active: ModelRef, book: Book, sources: Sources) -> None:
    """The one that was active, or loudly the served model: a rollback then leads to the one that was active."""
    version = book.find(active.name, active.revision)
    lost = version is None
    for part in {id(v): v for v in (version, version.full)}.values() if version else ():
        lost |= part is not book.base and not _check(part, sources)
    if version is not None and not lost:
        book.active = version
        return
    if version is not None:
        book.history = [version, *book.history]
    log.error("the active policy cannot be restored: the served model takes its place", extra=_facts(active))


def _check(version: Version, sources: Sources) -> bool:
    """Whether its folder has what it had, inside the roots that are allowed now."""
    try:
        folder = sources.folder(str(version.folder), version.kind)
        found = sources.check(folder, version.kind)
    except (RLTError, OSError) as error:
        reason = error.detail if isinstance(error, APIError) else None
        _warn(version, reason or first_line(error))
        return False
    if found != version.content:
        _warn(version, f"its folder has other contents by now: {found}")
        return False
    return True


def _warn(version: Version, reason: str) -> None:
    version.lacks(reason)
    log.warning("a policy cannot be loaded", extra={**_facts(version.ref), "reason": reason})


def _facts(ref: ModelRef) -> dict[str, str]:
    return {"policy": ref.name, "revision": ref.revision}
