"""SQL of builds: submitting, what is missing, totals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    LargeBinary,
    Row,
    Select,
    and_,
    cast,
    column,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Conflict, InvalidRequest, NotFound
from rlt_client.schemas.builds import BuildProblem, BuildState, ShardState
from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds.models import Build, Dataset, Event, Problem, Sample, Scorer, Shard
from rlt_jobs.builds.outcomes import RETRIED
from rlt_jobs.builds.spec import Spec
from rlt_jobs.database import copy_rows
from rlt_jobs.leases import Claimed, ring_shards
from rlt_service import telemetry

__all__ = [
    "ScorerChanged",
    "ScorerKey",
    "Totals",
    "add_engines",
    "add_events",
    "add_problems",
    "build_of_key",
    "dataset_id",
    "find_build",
    "insert_build",
    "lock_build",
    "missing",
    "newest_event",
    "pin_scorer",
    "problem_hash",
    "problems",
    "problems_of_shard",
    "same_problems",
    "scorer_of",
    "start",
    "tell_unscored",
    "totals",
    "work_of",
]

MOST_SHARDS = 10_000  # of a build; their sums take 5 to 10 ms

_PROBLEM = ("build_id", "idx", "question_hash", "question", "answer", "system", "explanation", "first_idx", "meta")


class ScorerChanged(Conflict):
    """The reward server now computes something else than this build's other scores."""

    default_type = "scorer_changed"
    title = "The scorer is not the one that this build began with"


async def dataset_id(session: AsyncSession, owner: str, name: str) -> int:
    """The owner's data set of that name, made if it is new."""
    made = postgresql.insert(Dataset).values(owner=owner, name=name).on_conflict_do_nothing()
    await session.execute(made)
    found = await session.scalar(select(Dataset.id).where(Dataset.owner == owner, Dataset.name == name))
    assert found is not None
    return found


async def insert_build(session: AsyncSession, **values: Any) -> Build | None:
    """A new build in state `importing`, or None where the owner's idempotency key was used before."""
    made = (
        postgresql.insert(Build)
        .values(state=BuildState.importing, traceparent=telemetry.traceparent(), **values)
        .on_conflict_do_nothing(index_elements=["owner", "idempotency_key"])
        .returning(Build)
    )
    return await session.scalar(made)


async def build_of_key(session: AsyncSession, owner: str, key: str | None, request_hash: bytes) -> Build:
    """The build that this Idempotency-Key was used for. Raises `InvalidRequest` where it asked for something else."""
    build = await session.scalar(select(Build).where(Build.owner == owner, Build.idempotency_key == key))
    assert build is not None
    if build.request_hash != request_hash:
        raise InvalidRequest(
            f"this Idempotency-Key was used for build {build.id}, which asks for something else",
            type="idempotency_key_reused",
        )
    return build


async def find_build(session: AsyncSession, build_id: int, owner: str) -> Build:
    """Raises `NotFound`, also for another owner's build."""
    build = await session.scalar(select(Build).where(*_mine(build_id, owner)))
    if build is None:
        raise NotFound(f"there is no build {build_id}")
    return build


def _mine(build_id: int, owner: str) -> tuple[ColumnElement[bool], ...]:
    return Build.id == build_id, Build.owner == owner, Build.deleted_at.is_(None)


async def lock_build(session: AsyncSession, build_id: int, owner: str) -> Build:
    mine = select(Build).where(*_mine(build_id, owner)).with_for_update(key_share=True)
    build = await session.scalar(mine)
    if build is None:
        raise NotFound(f"there is no build {build_id}")
    return build


async def add_problems(
    session: AsyncSession,
    build_id: int,
    first: int,
    rows: Iterable[BuildProblem],
    repeats: Mapping[int, int] | None = None,
) -> None:
    """Append problems by COPY, numbered from `first`. `repeats`: the first problem that is the same, by number."""
    firsts = repeats or {}
    copied = (_problem(build_id, idx, row, firsts.get(idx)) for idx, row in enumerate(rows, first))
    await copy_rows(session, "problems", _PROBLEM, copied)


def _problem(build_id: int, idx: int, row: BuildProblem, first_idx: int | None) -> Sequence[Any]:
    meta = None if row.meta is None else json.dumps(row.meta, ensure_ascii=False)
    texts = (row.question, row.answer, row.system, row.explanation)
    return (build_id, idx, problem_hash(row), *texts, first_idx, meta)


def problem_hash(row: BuildProblem) -> bytes:
    """SHA-256 of question, answer and system, framed so that no two problems spell the same."""
    return hashlib.sha256(json.dumps([row.question, row.answer, row.system]).encode()).digest()


async def same_problems(session: AsyncSession, build_id: int, hashes: Sequence[bytes]) -> dict[bytes, int]:
    """The first problem of the build by hash, where it has one.

    One probe of the index a hash, by the LIMIT: the planner's figures of a table that grows are old, and by those it
    would read the whole build for each batch.
    """
    array = cast(list(hashes), postgresql.ARRAY(LargeBinary))
    given = func.unnest(array).table_valued(column("hash", LargeBinary)).render_derived(name="given")
    same = (
        select(Problem.question_hash, Problem.idx)
        .where(Problem.build_id == build_id, Problem.first_idx.is_(None), Problem.question_hash == given.c.hash)
        .limit(1)
        .lateral("same")
    )
    query = select(same.c.question_hash, same.c.idx).select_from(given).join(same, literal(True))
    return {row.question_hash: row.idx for row in await session.execute(query)}


def problems_of_shard(problems: int, n: int, shard_samples: int) -> int:
    """How many problems a shard of a build has: of very large builds more, since a look at one sums its shards."""
    return max(1, shard_samples // n, -(-problems // MOST_SHARDS))


async def start(session: AsyncSession, build: Build, *, shard_samples: int) -> None:
    """Cut an imported build into shards and let workers at it."""
    step = problems_of_shard(build.problems, build.n, shard_samples)
    lo = func.generate_series(0, build.problems - 1, step).column_valued("lo")
    hi = func.least(lo + step, build.problems)
    cut = select(literal(build.id), lo, hi, (hi - lo) * build.n)
    await session.execute(insert(Shard).from_select(["build_id", "lo", "hi", "total"], cut))
    build.state = BuildState.running
    build.started_at = func.now()
    build.barren = 0
    build.lease_token = build.lease_until = build.worker = None
    await session.flush()
    await ring_shards(session, Shard.build_id == build.id)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the shards of one build."""

    total: int
    gen: dict[str, int]
    scored: int
    score_error: int
    prompt_tokens: int
    completion_tokens: int
    tokens_per_s: float
    samples_per_s: float
    shards: dict[str, int]


_COUNTERS = [status.value for status in GenStatus]
_SUMS = ("total", *_COUNTERS, "scored", "score_error", "prompt_tokens", "completion_tokens")
_RATES = ("tokens_per_s", "samples_per_s")


async def totals(session: AsyncSession, build_ids: Sequence[int]) -> dict[int, Totals]:
    """Totals by build; a build without shards has none."""
    sums = [func.sum(getattr(Shard, name)).label(name) for name in (*_SUMS, *_RATES)]
    query = select(Shard.build_id, Shard.state, func.count().label("shards"), *sums)
    query = query.where(Shard.build_id.in_(build_ids)).group_by(Shard.build_id, Shard.state)
    of_build: dict[int, list[Row[Any]]] = {}
    for row in await session.execute(query):
        of_build.setdefault(row.build_id, []).append(row)
    return {build_id: _totals(rows) for build_id, rows in of_build.items()}


def _totals(rows: Sequence[Row[Any]]) -> Totals:
    """Args:
    rows: of one build, one for each state of its shards.
    """
    found = {name: sum(row._mapping[name] for row in rows) for name in (*_SUMS, *_RATES)}
    shards = {state.value: 0 for state in ShardState} | {row.state.value: row.shards for row in rows}
    return Totals(
        total=int(found["total"]),
        gen={name: int(found[name]) for name in _COUNTERS},
        scored=int(found["scored"]),
        score_error=int(found["score_error"]),
        prompt_tokens=int(found["prompt_tokens"]),
        completion_tokens=int(found["completion_tokens"]),
        tokens_per_s=float(found["tokens_per_s"]),
        samples_per_s=float(found["samples_per_s"]),
        shards=shards,
    )


async def missing(session: AsyncSession, lease: Claimed) -> list[tuple[int, int]]:
    """(problem, sample_idx) that this lease has to ask for, in order.

    Those without an outcome, or whose outcome of this try is an error that may pass. A shard that asks again takes
    those of its range that ended, in an earlier try, in one of the states it names.
    """
    shard = await session.get_one(Shard, lease.shard_id)
    may_pass = and_(Sample.try_ == lease.try_, Sample.gen_status.in_(RETRIED))
    if shard.only is None:
        query = _outstanding((await session.get_one(Build, lease.build_id)).n, lease, may_pass)
    else:  # a few samples of a range that may be the whole build
        failed = and_(Sample.try_ < lease.try_, Sample.gen_status.in_(shard.only))
        ours = (Sample.build_id == lease.build_id, Sample.problem >= lease.lo, Sample.problem < lease.hi)
        query = select(Sample.problem, Sample.sample_idx).where(*ours, or_(may_pass, failed))
        query = query.order_by(Sample.problem, Sample.sample_idx)
    return [(row[0], row[1]) for row in await session.execute(query)]


def _outstanding(n: int, lease: Claimed, may_pass: ColumnElement[bool]) -> Select[int, int]:
    """Samples of the range that have no row, or one that may be replaced."""
    rows = func.generate_series(lease.lo, lease.hi - 1).table_valued("idx").render_derived(name="p")
    columns = func.generate_series(0, n - 1).table_valued("idx").render_derived(name="s")
    problem, sample = rows.c.idx, columns.c.idx
    same = and_(Sample.build_id == lease.build_id, Sample.problem == problem, Sample.sample_idx == sample)
    return (
        select(problem, sample)
        .select_from(rows)
        .join(columns, literal(True))
        .outerjoin(Sample, same)
        .where(or_(Sample.problem.is_(None), may_pass))
        .order_by(problem, sample)
    )


async def problems(session: AsyncSession, build_id: int, wanted: Iterable[int]) -> dict[int, Problem]:
    """The problems of these indices."""
    query = select(Problem).where(
        Problem.build_id == build_id, Problem.idx == func.any(literal(sorted(set(wanted)), ARRAY(Integer)))
    )
    return {problem.idx: problem for problem in await session.scalars(query)}


async def work_of(session: AsyncSession, lease: Claimed) -> Spec:
    """What a shard's build asks for, with the shard's own budget where it has one."""
    build = await session.get_one(Build, lease.build_id)
    shard = await session.get_one(Shard, lease.shard_id)
    spec = Spec.model_validate(build.spec)
    if shard.max_tokens is None:
        return spec
    return spec.model_copy(update={"sampling": spec.sampling.model_copy(update={"max_tokens": shard.max_tokens})})


_ADD_ENGINES = text("""
UPDATE builds SET engines = (SELECT array_agg(DISTINCT name) FROM unnest(engines || CAST(:names AS text[])) name)
WHERE id = :build AND NOT engines @> CAST(:names AS text[])""")


async def add_engines(session: AsyncSession, build_id: int, names: Collection[str]) -> None:
    """Names of engines that generate for a build. The caller holds its shard: locks are taken in one order."""
    await session.execute(_ADD_ENGINES, {"build": build_id, "names": sorted(names)})


@dataclass(frozen=True, slots=True)
class ScorerKey:
    """Everything that the components of a score depend on beside the texts."""

    student: str
    student_revision: str
    teacher_source: str | None
    teacher_revision: str | None
    format_name: str
    format_hash: str
    kl: str | None
    student_temperature: float
    teacher_temperature: float | None
    dtype: str | None = None
    engine: str | None = None
    spec: str | None = None
    """JSON of the resolved reward: scores by other coefficients are other scores."""

    def hash(self) -> bytes:
        return self._hash("student", "format_name")

    def early_hash(self) -> bytes:
        """Of a scorer that was kept before its reward was part of it."""
        return self._hash("student", "format_name", "spec")

    def _hash(self, *but: str) -> bytes:
        values = [getattr(self, name) for name in self.__dataclass_fields__ if name not in but]
        return hashlib.sha256(json.dumps(values).encode()).digest()


async def pin_scorer(session: AsyncSession, build_id: int, key: ScorerKey) -> int:
    """The id of this scorer, which becomes the build's if that has none. Raises `ScorerChanged` if it has another."""
    of_build = select(Scorer.id).join(Build, Build.scorer_id == Scorer.id).where(Build.id == build_id)
    if early := await session.scalar(of_build.where(Scorer.hash == key.early_hash())):
        return early
    values = {name: getattr(key, name) for name in key.__dataclass_fields__}
    values["spec"] = None if key.spec is None else json.loads(key.spec)
    made = postgresql.insert(Scorer).values(hash=key.hash(), **values).on_conflict_do_nothing(index_elements=["hash"])
    await session.execute(made)
    scorer_id = await session.scalar(select(Scorer.id).where(Scorer.hash == key.hash()))
    assert scorer_id is not None
    free = update(Build).where(Build.id == build_id, Build.scorer_id.is_(None)).values(scorer_id=scorer_id)
    await session.execute(free)
    pinned = await session.scalar(select(Build.scorer_id).where(Build.id == build_id))
    if pinned != scorer_id:
        raise ScorerChanged(
            f"this build's scores are by scorer {pinned}; the reward server is now student {key.student} "
            f"({key.student_revision}, {key.engine}, {key.dtype}), format {key.format_name} ({key.format_hash}). "
            "`resume` goes on once the old one is back"
        )
    return scorer_id


async def scorer_of(session: AsyncSession, build_id: int) -> int | None:
    """What scores a build, once that is known: errors of a lease that got no score are filed under it too."""
    return await session.scalar(select(Build.scorer_id).where(Build.id == build_id))


async def add_events(session: AsyncSession, build_id: int, kind: str, found: Iterable[tuple[int | None, str]]) -> None:
    """Events of one kind, each (line of the source, what is wrong there)."""
    rows = [{"build_id": build_id, "kind": kind, "line": line, "detail": detail} for line, detail in found]
    if rows:
        await session.execute(insert(Event), rows)


async def tell_unscored(session: AsyncSession, build_id: int, reasons: Collection[str]) -> None:
    """An event a reason, once a build, of scores that were refused before anything told who scores.

    They have no scorer to be filed under. The caller holds its shard: locks are taken in one order.
    """
    await session.execute(select(Build.id).where(Build.id == build_id).with_for_update(key_share=True))
    details = {f"refused before there was any score, so counted as skipped: {reason}" for reason in reasons}
    told = await session.scalars(select(Event.detail).where(Event.build_id == build_id, Event.kind == "unscored"))
    await add_events(session, build_id, "unscored", [(None, each) for each in sorted(details.difference(told))])


async def newest_event(session: AsyncSession, build_id: int) -> int:
    """Id of the last event of a build, 0 before the first."""
    found: int | None = await session.scalar(select(func.max(Event.id)).where(Event.build_id == build_id))
    return found or 0
