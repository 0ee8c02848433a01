"""Reading an upload into problems: resumable by line, and no row is dropped without a word."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import pydantic_core
from pydantic import ValidationError

from rlt_client.schemas.builds import BuildKind, BuildProblem, BuildState
from rlt_client.schemas.common import Problem
from rlt_jobs.builds import lifecycle, repository
from rlt_jobs.builds.holding import held_build
from rlt_jobs.builds.spec import Spec
from rlt_jobs.builds.work import Services
from rlt_jobs.leases import hold_build
from rlt_jobs.store.models import Upload

__all__ = ["Batch", "read_batch", "run_import"]

log = logging.getLogger(__name__)

BOM = b"\xef\xbb\xbf"
MAX_LINE = 64 * 2**20  # bytes; a longer line is a file of another kind
TEXTS = ("question", "answer", "system", "explanation")


@dataclass
class Batch:
    """Some lines of a source."""

    rows: list[BuildProblem] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Line, from 1, and what is wrong with it."""
    line: int = 0
    """Lines read so far, those of earlier batches included."""
    offset: int = 0
    """Bytes read so far."""
    ended: bool = False


async def run_import(services: Services, build_id: int) -> None:
    """Read the build's upload, batch by batch, each in a transaction; then cut it into shards."""
    async with held_build(services, build_id, BuildState.importing) as token:
        if token is not None:
            await _import(services, build_id, token)


async def _import(services: Services, build_id: int, token: UUID) -> None:
    async with services.database.begin() as session:
        build = await hold_build(session, build_id, token)
        spec = Spec.model_validate(build.spec)
        upload = await session.get_one(Upload, build.upload_id)
        line, offset = build.import_line, build.import_offset
    path = services.store.path(upload.uri)
    while True:
        try:
            batch = await asyncio.to_thread(read_batch, path, line, offset, spec, services.settings)
        except OSError as error:
            await _fail(services, build_id, "upload_missing", f"upload {upload.id} cannot be read: {error.strerror}")
            return
        line, offset = batch.line, batch.offset
        if await _write(services, build_id, token, batch):
            return


async def _write(services: Services, build_id: int, token: UUID, batch: Batch) -> bool:
    """One batch, fenced. Returns whether it was the last."""
    async with services.database.begin() as session:
        build = await hold_build(session, build_id, token)
        await repository.add_problems(session, build_id, build.problems, batch.rows)
        await repository.add_events(session, build_id, "bad_row", batch.bad)
        build.problems += len(batch.rows)
        build.bad_rows += len(batch.bad)
        build.import_line, build.import_offset = batch.line, batch.offset
        build.barren = 0
        await session.flush()
        if batch.ended and build.problems:
            await repository.start(session, build, shard_samples=services.settings.shard_samples)
    if batch.ended and not build.problems:
        await _fail(services, build_id, "no_problems", f"none of the {batch.line} lines is a problem; see the events")
    return batch.ended


async def _fail(services: Services, build_id: int, type: str, detail: str) -> None:
    async with services.database.begin() as session:
        await lifecycle.fail(session, build_id, Problem(type=type, title="The source cannot be used", detail=detail))


def read_batch(path: Path, line: int, offset: int, spec: Spec, settings: Any) -> Batch:
    """Up to `settings.import_batch` lines from `offset` on, `line` of them having been read before.

    Raises:
        OSError: the file cannot be read.
    """
    batch = Batch(line=line, offset=offset)
    with path.open("rb") as file:
        file.seek(offset)
        while batch.line - line < settings.import_batch:
            raw = _read_line(file)
            if not raw:
                batch.ended = True
                break
            batch.line += 1
            _take(batch, raw.removeprefix(BOM) if batch.line == 1 else raw, spec, settings.max_text_chars)
        batch.offset = file.tell()
    return batch


def _read_line(file: IO[bytes]) -> bytes:
    """The next line; of one that is too long, its beginning."""
    raw = file.readline(MAX_LINE)
    part = raw
    while part and not part.endswith(b"\n"):
        part = file.readline(MAX_LINE)
    return raw


def _take(batch: Batch, raw: bytes, spec: Spec, max_chars: int) -> None:
    if not raw.strip():
        return
    try:
        batch.rows.append(_problem(raw, spec, max_chars))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        batch.bad.append((batch.line, f"{where}: {first['msg'].removeprefix('Value error, ')}"))
    except ValueError as error:
        batch.bad.append((batch.line, str(error)))


def _problem(raw: bytes, spec: Spec, max_chars: int) -> BuildProblem:
    """Raises `ValueError` with what is wrong, for people."""
    if len(raw) >= MAX_LINE:
        raise ValueError(f"the line is longer than {MAX_LINE} bytes")
    try:
        row = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"not an object but {type(row).__name__}")
    found = {name: row.pop(column) for name in TEXTS if (column := spec.columns.get(name, name)) in row}
    if spec.kind is BuildKind.score and not isinstance(found.get("explanation"), str):
        raise ValueError("explanation: kind score takes a text to score")
    if spec.kind is BuildKind.generate and "explanation" in found:
        row[spec.columns.get("explanation", "explanation")] = found.pop("explanation")
    problem = BuildProblem(**found, meta=_meta(row))
    for name in TEXTS:
        if len(getattr(problem, name) or "") > max_chars:
            raise ValueError(f"{name}: longer than {max_chars} characters")
    return problem


def _meta(rest: dict[str, Any]) -> dict[str, Any] | None:
    """The fields that are not read; a lone object `meta` stands for itself."""
    if rest.keys() == {"meta"} and isinstance(rest["meta"], dict):
        return dict(rest["meta"])
    return rest or None
