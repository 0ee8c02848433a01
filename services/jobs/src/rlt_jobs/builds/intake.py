"""Problems into a build, those that it has already told apart."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.builds import BuildKind, BuildProblem
from rlt_jobs.builds import repository
from rlt_jobs.builds.models import Build

__all__ = ["MAX_BAD_ROWS", "take_in", "tell_bad_rows", "tell_duplicates"]

MAX_BAD_ROWS = 1_000
"""Refused rows of a build that are events of their own: enough to see what is wrong, and no flood."""


async def take_in(session: AsyncSession, build: Build, rows: Sequence[BuildProblem], *, deduplicate: bool) -> None:
    """Append problems to a build that the caller has locked, and count them.

    Where the same question, answer and system were there before, kind `generate` drops the row; kind `score` keeps it,
    for its explanation is another one, and notes the first of its kind.
    """
    if not deduplicate:
        await repository.add_problems(session, build.id, build.problems, rows)
        build.problems += len(rows)
        return
    hashes = [repository.problem_hash(row) for row in rows]
    known = await repository.same_problems(session, build.id, hashes) if build.problems else {}
    kept, repeats, duplicates = _sorted_out(rows, hashes, known, build)
    await repository.add_problems(session, build.id, build.problems, kept, repeats)
    build.problems += len(kept)
    build.duplicates += duplicates


def _sorted_out(
    rows: Sequence[BuildProblem], hashes: Sequence[bytes], known: dict[bytes, int], build: Build
) -> tuple[list[BuildProblem], dict[int, int], int]:
    """(rows to keep, the first problem that is the same by the number of each that is kept, how many are the same)."""
    kept: list[BuildProblem] = []
    repeats: dict[int, int] = {}
    duplicates = 0
    for row, hash in zip(rows, hashes, strict=True):
        idx = build.problems + len(kept)
        first = known.setdefault(hash, idx)
        if first != idx:
            duplicates += 1
            if build.kind is BuildKind.generate:
                continue
            repeats[idx] = first
        kept.append(row)
    return kept, repeats, duplicates


async def tell_bad_rows(session: AsyncSession, build: Build, bad: Sequence[tuple[int, str]]) -> None:
    """Count refused rows; the first ones become events, and one more says that the others are only counted."""
    room = max(0, MAX_BAD_ROWS - build.bad_rows)
    await repository.add_events(session, build.id, "bad_row", bad[:room])
    if build.bad_rows <= MAX_BAD_ROWS < build.bad_rows + len(bad):
        detail = f"{MAX_BAD_ROWS} refused rows are listed; further ones are only counted, in `bad_rows`"
        await repository.add_events(session, build.id, "bad_rows", [(None, detail)])
    build.bad_rows += len(bad)


async def tell_duplicates(session: AsyncSession, build: Build) -> None:
    """One event for all of them, once everything is read."""
    if build.duplicates:
        became = "were dropped" if build.kind is BuildKind.generate else "are ranked with the first of their kind"
        detail = f"{build.duplicates} rows repeat question, answer and system of an earlier one and {became}"
        await repository.add_events(session, build.id, "duplicates", [(None, detail)])
