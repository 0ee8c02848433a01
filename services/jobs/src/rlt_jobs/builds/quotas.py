"""What one owner may ask for at once. The settings have the defaults, the table the exceptions, owner by owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from rlt_client.errors import Forbidden, Overloaded
from rlt_client.schemas.builds import BuildKind, ShardState
from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.database import Base
from rlt_jobs.leases import one_at_a_time
from rlt_jobs.store.models import Upload

if TYPE_CHECKING:
    from rlt_jobs.settings import Settings

__all__ = [
    "Limits",
    "Quota",
    "Used",
    "admit_build",
    "admit_retry",
    "admit_samples",
    "admit_so_far",
    "admit_upload",
    "limits",
    "set_quota",
    "used",
]

OPEN = ("importing", "running", "paused", "finishing")
COMPUTED = (BuildKind.generate, BuildKind.score, BuildKind.rescore)


class Quota(Base):
    """Numbers of one owner that differ from the defaults; null: the default."""

    __tablename__ = "quotas"

    owner: Mapped[str] = mapped_column(primary_key=True)
    open_builds: Mapped[int | None] = mapped_column(BigInteger)
    queued_samples: Mapped[int | None] = mapped_column(BigInteger)
    samples_per_day: Mapped[int | None] = mapped_column(BigInteger)
    running_shards: Mapped[int | None] = mapped_column(BigInteger)
    upload_bytes: Mapped[int | None] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most of each; None: no limit."""

    open_builds: int | None
    queued_samples: int | None
    samples_per_day: int | None
    running_shards: int | None
    upload_bytes: int | None


@dataclass(frozen=True, slots=True)
class Used:
    """What an owner uses of each limit now."""

    open_builds: int
    queued_samples: int
    samples_per_day: int
    running_shards: int
    upload_bytes: int


async def limits(session: AsyncSession, settings: Settings, owner: str) -> Limits:
    own = await session.get(Quota, owner)
    names = Limits.__dataclass_fields__
    default = {name: getattr(settings, f"quota_{name}") for name in names}
    exceptions = {name: value for name in names if own and (value := getattr(own, name)) is not None}
    return Limits(**{**default, **exceptions})


async def set_quota(session: AsyncSession, owner: str, **values: int | None) -> None:
    """Change some numbers of an owner; None brings back the default."""
    row = await session.get(Quota, owner)
    if row is None:
        row = Quota(owner=owner)
        session.add(row)
    for name, value in values.items():
        setattr(row, name, value)


async def used(session: AsyncSession, owner: str) -> Used:
    return Used(
        open_builds=await _open_builds(session, owner),
        queued_samples=await _queued_samples(session, owner),
        samples_per_day=await _samples_today(session, owner),
        running_shards=await _running_shards(session, owner),
        upload_bytes=await _upload_bytes(session, owner),
    )


async def admit_build(session: AsyncSession, settings: Settings, owner: str, *, but: int | None = None) -> None:
    """Before a build is inserted, or after it, without counting it (`but`): one that was there before is not refused.

    The owner's other submissions wait for this transaction.

    Raises:
        Forbidden: `quota_exceeded`: too many builds are open.
    """
    await one_at_a_time(session, owner)
    most = (await limits(session, settings, owner)).open_builds
    if most is not None and (found := await _open_builds(session, owner, but)) >= most:
        raise _forbidden(f"{found} of your builds are open, of {most} at most: wait for one to end, or cancel one")


async def admit_samples(session: AsyncSession, settings: Settings, build: Build) -> None:
    """Once the problems of a build are counted, before it is cut into shards.

    Raises:
        Forbidden: `quota_exceeded`: more samples would wait than may.
        Overloaded: `quota_exceeded`: more samples than may be asked for in a day; `retry_after` in seconds.
    """
    await one_at_a_time(session, build.owner)
    asked = build.problems * build.n
    most = await limits(session, settings, build.owner)
    if most.queued_samples is not None:
        waiting = await _queued_samples(session, build.owner, but=build.id)
        if waiting + asked > most.queued_samples:
            raise _forbidden(
                f"this build asks for {asked} samples and {waiting} of yours wait, of {most.queued_samples} at most: "
                "wait for other builds, or ask for fewer problems or a smaller n"
            )
    if most.samples_per_day is not None:
        today = await _samples_today(session, build.owner, but=build.id)
        if today + asked > most.samples_per_day:
            raise Overloaded(
                f"this build asks for {asked} samples and {today} were asked for within 24 hours, of "
                f"{most.samples_per_day} at most: ask for fewer, or again later",
                type="quota_exceeded",
                retry_after=3600,
            )


async def admit_so_far(session: AsyncSession, settings: Settings, build: Build) -> None:
    """While the problems of a build are counted: one that is too large by itself needs no row more.

    Raises:
        Forbidden: `quota_exceeded`.
    """
    most = (await limits(session, settings, build.owner)).queued_samples
    if most is not None and build.kind in COMPUTED and build.problems * build.n > most:
        raise _forbidden(f"this build asks for {build.problems * build.n} samples and more, of {most} at most")


async def admit_retry(session: AsyncSession, settings: Settings, build: Build) -> None:
    """Once a build that runs again has its new shards, which are counted already.

    Raises:
        Forbidden: `quota_exceeded`: too many builds are open, or more samples would wait than may.
    """
    await admit_build(session, settings, build.owner, but=build.id)
    most = (await limits(session, settings, build.owner)).queued_samples
    if most is not None and (waiting := await _queued_samples(session, build.owner)) > most:
        raise _forbidden(f"with those of this retry {waiting} of your samples would wait, of {most} at most")


async def admit_upload(session: AsyncSession, settings: Settings, owner: str, size: int) -> None:
    """Before an upload of `size` bytes, or of so many as have come, is kept.

    Raises:
        Forbidden: `quota_exceeded`.
    """
    await one_at_a_time(session, owner)
    most = (await limits(session, settings, owner)).upload_bytes
    if most is not None and (kept := await _upload_bytes(session, owner)) + size > most:
        raise _forbidden(f"your uploads take {kept} bytes and this one {size} more, of {most} at most: delete some")


def _forbidden(detail: str) -> Forbidden:
    """Passes only by something that the owner does, so no client should ask again by itself."""
    return Forbidden(f"{detail}; whoever runs the service can change it: `rlt-jobs quota set`", type="quota_exceeded")


async def _open_builds(session: AsyncSession, owner: str, but: int | None = None) -> int:
    mine = (Build.owner == owner, Build.state.in_(OPEN), Build.id.is_distinct_from(but))
    return int(await session.scalar(select(func.count()).where(*mine)) or 0)


async def _queued_samples(session: AsyncSession, owner: str, but: int | None = None) -> int:
    """Of open builds, what has no outcome yet or is asked for again; of those being imported, what was read so far."""
    mine = (Build.owner == owner, Build.state.in_(OPEN), Build.id.is_distinct_from(but), Build.kind.in_(COMPUTED))
    asked = await session.scalar(select(func.sum(cast(Build.problems, BigInteger) * Build.n)).where(*mine))
    counters = sum((getattr(Shard, status.value) for status in GenStatus), start=0)
    made = select(func.sum(counters)).join(Build, Build.id == Shard.build_id).where(*mine)
    again = select(func.sum(Shard.total)).join(Build, Build.id == Shard.build_id)
    again = again.where(*mine, Shard.try_ > 0, Shard.state != ShardState.done)
    waiting = int(asked or 0) - int(await session.scalar(made) or 0)
    return waiting + int(await session.scalar(again) or 0)


async def _samples_today(session: AsyncSession, owner: str, but: int | None = None) -> int:
    day = func.now() - func.make_interval(0, 0, 0, 1)
    asked = func.sum(cast(Build.problems, BigInteger) * Build.n)
    mine = (Build.owner == owner, Build.created_at > day, Build.id.is_distinct_from(but), Build.kind.in_(COMPUTED))
    return int(await session.scalar(select(asked).where(*mine)) or 0)


async def _running_shards(session: AsyncSession, owner: str) -> int:
    running = select(func.count()).select_from(Shard).join(Build, Build.id == Shard.build_id)
    return int(await session.scalar(running.where(Shard.state == "running", Build.owner == owner)) or 0)


async def _upload_bytes(session: AsyncSession, owner: str) -> int:
    kept = (Upload.owner == owner, Upload.deleted_at.is_(None))
    return int(await session.scalar(select(func.sum(Upload.bytes)).where(*kept)) or 0)
