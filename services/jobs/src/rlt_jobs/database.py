"""The connection to Postgres: base class of the tables, engine, sessions, COPY."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

import psycopg
from sqlalchemy import CursorResult, DateTime, Enum, LargeBinary, MetaData, Result, Text, exc
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from rlt_client.errors import Unavailable
from rlt_client.schemas.builds import BuildKind, BuildState, ShardState
from rlt_client.schemas.common import GenStatus, ScoreStatus

__all__ = ["Base", "Database", "copy_rows", "raw_connection", "rows_changed", "unbroken"]

T = TypeVar("T")

CONNECT_SECONDS = 5  # a database that is down is answered with 503 rather than waited for
SILENCE_SECONDS = 30  # a peer that acknowledges nothing for so long is gone
IDLE_SECONDS = 30  # a client silent for so long in mid-transaction is gone, and its row locks hold up everybody else
POOL_SECONDS = 10.0  # the same for a pool that is used up


def _native(kind: type[StrEnum], name: str) -> Enum:
    return Enum(kind, name=name, values_callable=lambda members: [member.value for member in members])


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 read once by SQLAlchemy
        str: Text,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        BuildKind: _native(BuildKind, "build_kind"),
        BuildState: _native(BuildState, "build_state"),
        ShardState: _native(ShardState, "shard_state"),
        GenStatus: _native(GenStatus, "gen_status"),
        ScoreStatus: _native(ScoreStatus, "score_status"),
    }


class Database:
    """Engine and sessions of one process and event loop. One `begin()` is one transaction.

    Args:
        url: `postgresql+psycopg://…`.
        name: shown in pg_stat_activity.
        pool: connections at most.
    """

    def __init__(self, url: str, *, name: str, pool: int = 10) -> None:
        import rlt_jobs.tables  # noqa: F401 late, as it imports this module: foreign keys need their tables

        self.engine = create_async_engine(
            url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=POOL_SECONDS,
            pool_pre_ping=True,  # a restarted database is not an error of the first request after it
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "tcp_user_timeout": SILENCE_SECONDS * 1000,
                "options": _server_side(),
                "application_name": name,
            },
        )
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """One transaction. Raises `Unavailable` where the database cannot be reached or goes away."""
        try:
            async with self._sessions.begin() as session:
                yield session
        except (exc.DBAPIError, psycopg.Error) as error:  # the latter of a raw connection
            if _being_cancelled():  # in mid-query; that the connection broke of it is nobody's news
                raise asyncio.CancelledError from error
            if unreachable(error):
                raise Unavailable(
                    "the database is not available", type="database_unavailable", retry_after=2
                ) from error
            raise
        except exc.TimeoutError as error:
            raise Unavailable("the database is busy", type="database_unavailable", retry_after=2) from error

    async def close(self) -> None:
        await self.engine.dispose()


def _server_side() -> str:
    """What the server does about a client that vanished without a word: its machine lost power or network.

    By default it would hold that client's transaction, with all its locks, for the two hours of TCP's keepalive.
    """
    limits = {
        "idle_in_transaction_session_timeout": IDLE_SECONDS * 1000,
        "tcp_user_timeout": SILENCE_SECONDS * 1000,
        "tcp_keepalives_idle": SILENCE_SECONDS // 3,
        "tcp_keepalives_interval": SILENCE_SECONDS // 3,
        "tcp_keepalives_count": 2,
    }
    return " ".join(f"-c {name}={value}" for name, value in limits.items())


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def unbroken(transaction: Awaitable[T]) -> T:
    """Run a transaction to its end even if the caller is cancelled meanwhile; the cancellation follows then.

    A query that is cancelled in flight costs its connection and leaves it open whether it was done.
    """
    task = asyncio.ensure_future(transaction)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen; the cancellation goes before it
        raise


def unreachable(error: exc.DBAPIError | psycopg.Error) -> bool:
    """Whether the connection failed or broke, as against a statement that was refused."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    if isinstance(cause, psycopg.errors.OperationalError):
        # class 08 connection, 53 resources, 57 operator intervention (shutdown); no state: never connected
        return cause.sqlstate is None or cause.sqlstate[:2] in {"08", "53", "57"}
    return isinstance(cause, psycopg.InterfaceError)


def rows_changed(done: Result[Any]) -> int:
    """By an INSERT, UPDATE or DELETE."""
    assert isinstance(done, CursorResult)
    return done.rowcount


async def raw_connection(session: AsyncSession) -> psycopg.AsyncConnection[Any]:
    """The psycopg connection under a session, inside the session's transaction."""
    connection = await (await session.connection()).get_raw_connection()
    raw = connection.driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    return raw


async def copy_rows(
    session: AsyncSession, table: str, columns: Sequence[str] | Mapping[str, str], rows: Iterable[Sequence[Any]]
) -> None:
    """COPY `rows` into `table`, a name from our own code, inside the session's transaction.

    `columns` with their types are sent in the binary format, which costs both sides half as much.
    """
    raw = await raw_connection(session)
    typed = isinstance(columns, Mapping)
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN{' (FORMAT binary)' if typed else ''}"
    async with raw.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        if isinstance(columns, Mapping):
            copy.set_types(list(columns.values()))
        for row in rows:
            await copy.write_row(row)
