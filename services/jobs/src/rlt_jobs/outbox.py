"""Messages to Celery, written in the transaction that makes them true and sent by the relay afterwards.

A message is an id and nothing else. Losing one is healed by the reconciler, doubling one changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import BigInteger, Identity, Index, SmallInteger, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from rlt_jobs.database import Base

__all__ = ["Canary", "Message", "Outbox", "Queue", "answer_canary", "enqueue", "purge", "relay", "ring_canaries"]

KEPT = timedelta(days=1)  # sent messages, for whoever asks what was rung when


class Queue(StrEnum):
    """One queue a kind of work, so that a long export does not wait behind shards."""

    shards = "shards"
    imports = "imports"
    exports = "exports"


class Outbox(Base):
    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),
        {"postgresql_with": {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    queue: Mapped[str]
    task: Mapped[str]
    ref: Mapped[int] = mapped_column(BigInteger)
    """Id of the shard or build; of nothing for a canary."""
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]


class Canary(Base):
    """When a message last went through a queue to a worker: the proof that both live."""

    __tablename__ = "canaries"

    queue: Mapped[str] = mapped_column(primary_key=True)
    sent_at: Mapped[datetime] = mapped_column(server_default=func.now())
    arrived_at: Mapped[datetime | None]


@dataclass(frozen=True, slots=True)
class Message:
    queue: Queue
    task: str
    ref: int
    priority: int = 0


Send = Callable[[Message], Awaitable[None]]


async def enqueue(session: AsyncSession, messages: Iterable[Message]) -> None:
    rows = [{"queue": m.queue, "task": m.task, "ref": m.ref, "priority": m.priority} for m in messages]
    if rows:
        await session.execute(insert(Outbox), rows)


async def relay(session: AsyncSession, send: Send, *, limit: int = 500) -> int:
    """Send waiting messages and mark them, in the caller's transaction. Several relays may run: each row is one's.

    A crash between sending and marking sends again. Returns how many were sent.
    """
    waiting = (
        select(Outbox.id, Outbox.queue, Outbox.task, Outbox.ref, Outbox.priority)
        .where(Outbox.sent_at.is_(None))
        .order_by(Outbox.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.execute(waiting)).all()
    for row in rows:
        await send(Message(Queue(row.queue), row.task, row.ref, row.priority))
    sent = [row.id for row in rows]
    if sent:
        await session.execute(update(Outbox).where(Outbox.id.in_(sent)).values(sent_at=func.now()))
    return len(sent)


async def purge(session: AsyncSession) -> None:
    """Forget messages that were sent long ago."""
    await session.execute(delete(Outbox).where(Outbox.sent_at < func.now() - KEPT))


async def ring_canaries(session: AsyncSession, task: str) -> None:
    """Queue one canary a queue. Its arrival is written by `answer_canary`."""
    for queue in Queue:
        rung = text("INSERT INTO canaries (queue) VALUES (:queue) ON CONFLICT (queue) DO UPDATE SET sent_at = now()")
        await session.execute(rung, {"queue": queue})
    await enqueue(session, [Message(queue, task, 0, priority=9) for queue in Queue])


async def answer_canary(session: AsyncSession, queue: str) -> None:
    await session.execute(update(Canary).where(Canary.queue == queue).values(arrived_at=func.now()))
