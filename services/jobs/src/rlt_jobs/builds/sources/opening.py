"""The one way to a source's rows, wherever they lie, and what can be said of it before it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import BuildKind, Source, SourceFormat
from rlt_client.schemas.common import FieldError
from rlt_jobs.builds.sources import csv, hub, jsonl, kinds, lines, parquet
from rlt_jobs.builds.sources.rows import Position, Row, SourceError
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Damaged, Store
from rlt_jobs.store.models import Upload
from rlt_service.paths import AllowedRoots

__all__ = ["Sources", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """An upload as it lies in the store."""

    uri: str
    format: SourceFormat

    @classmethod
    def of(cls, upload: Upload) -> Self:
        return cls(upload.uri, SourceFormat(upload.format))


class Sources:
    """Opens sources within what the settings allow."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._roots = AllowedRoots(settings.data_roots)

    def check(self, source: Source) -> None:
        """Refuse at once what can be known at once: a path that is not there or not allowed, a hub that is not.

        Raises:
            InvalidRequest
        """
        if source.path is not None:
            self._file(source.path)
        elif source.hub is not None:
            self._check_hub(source.hub.name)

    def pinned(self, source: Source) -> Source:
        """The same, meaning the same rows tomorrow. Raises `SourceError`."""
        if source.hub is None:
            return source
        self._allowed(source)
        return source.model_copy(update={"hub": hub.pinned(source.hub, self._roots)})

    def rows(self, source: Source, kind: BuildKind, upload: Stored | None, at: Position) -> Iterator[Row]:
        """The rows from a position on. Opened when the first is asked for, closed with the iterator.

        Raises:
            SourceError: the source cannot be used, whatever its rows are.
            StoreUnavailable: the store of uploads does not answer now.
        """
        if source.hub is not None:
            self._allowed(source)
            yield from hub.rows(source.hub, at, source, kind, self._roots)
            return
        file, format = self._open(source, upload)
        with closing(file):
            most = self._settings.max_upload_bytes if upload is not None else None  # other files are the operator's
            yield from _rows_of_file(file, format, at, source, kind, most)

    def _open(self, source: Source, upload: Stored | None) -> tuple[IO[bytes], SourceFormat]:
        if upload is not None:
            try:
                return self._store.open(upload.uri), source.format or upload.format
            except Damaged as error:
                raise SourceError("upload_missing", f"the upload cannot be read: {error}") from error
        assert source.path is not None
        self._allowed(source)
        try:
            file = self._file(source.path).open("rb")
        except OSError as error:
            raise SourceError("path_missing", f"{source.path} cannot be read: {error.strerror}") from error
        return file, source.format or kinds.of_file(source.path, file)

    def _allowed(self, source: Source) -> None:
        """The settings may have changed since the build was accepted."""
        try:
            self.check(source)
        except InvalidRequest as error:
            raise SourceError(error.type, error.errors[0].detail if error.errors else str(error.detail)) from error

    def _file(self, path: str) -> Path:
        if not self._settings.data_roots:
            raise _refusal("path", "this service has no folders that builds may read", "paths_not_allowed")
        file = self._roots.resolve(path)
        if not file.is_file():
            what = "is a folder; name a file in it" if file.is_dir() else "does not exist"
            raise _refusal("path", f"{path} {what}", "path_missing")
        return file

    def _check_hub(self, name: str) -> None:
        if hub.local_folder(name, self._roots):
            return
        if not self._settings.allow_hub:
            detail = f"no folder that builds may read is called {name}, and this service reads nothing from the hub"
            raise _refusal("hub", detail, "hub_not_allowed")
        if not hub.REPOSITORY.fullmatch(name):
            raise _refusal("hub/name", "want owner/name of a data set", "invalid_request")


def _rows_of_file(
    file: IO[bytes], format: SourceFormat, at: Position, source: Source, kind: BuildKind, most: int | None
) -> Iterator[Row]:
    if format is SourceFormat.parquet:
        yield from parquet.rows(file, at, source, kind, most)
        return
    with lines.readable():
        text = lines.plain(file, most)
        if format is SourceFormat.csv:
            yield from csv.rows(text, at, source, kind)
        else:
            yield from jsonl.rows(text, at)


def _refusal(place: str, detail: str, type: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[FieldError(pointer=f"/source/{place}", detail=detail)], type=type)
