"""Keys in the database, beside those of the settings: `rlt-jobs keys add|list|set|revoke`.

Nothing is kept between two requests, so that a key that is limited or revoked is so at once, in every process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import ARRAY, CheckConstraint, Text, Update, func, insert, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from rlt_client.schemas.common import Scope
from rlt_jobs.database import Base, Database
from rlt_service.keys import RATE_PATTERN, Key

__all__ = ["DatabaseKeys", "KeyRow"]


class KeyRow(Base):
    """Only the hash of a key is kept."""

    __tablename__ = "keys"
    __table_args__ = tuple(
        CheckConstraint(f"{name} ~ '^{RATE_PATTERN}$'", name=f"ck_keys_{name}") for name in ("rate", "items")
    )

    hash: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of the token, 64 hex digits."""
    owner: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    in_path: Mapped[bool] = mapped_column(server_default=text("false"))
    rate: Mapped[str | None]
    """Requests in a time, such as `100/minute`; None: what the server allows every key."""
    items: Mapped[str | None]
    """The same of samples."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class DatabaseKeys:
    """A `rlt_service.keys.KeyStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, token_hash: str) -> Key | None:
        live = select(KeyRow).where(KeyRow.hash == token_hash, KeyRow.revoked_at.is_(None))
        async with self._database.begin() as session:
            row = await session.scalar(live)
        return None if row is None else _key(row)

    async def add(self, key: Key) -> None:
        values = {"hash": key.hash, "owner": key.owner, "scopes": sorted(key.scopes), "in_path": key.in_path}
        async with self._database.begin() as session:
            await session.execute(insert(KeyRow).values(**values, rate=key.rate, items=key.items))

    async def list(self) -> list[Key]:
        live = select(KeyRow).where(KeyRow.revoked_at.is_(None)).order_by(KeyRow.owner, KeyRow.created_at)
        async with self._database.begin() as session:
            return [_key(row) for row in await session.scalars(live)]

    async def limit(self, key_id: str, limits: Mapping[str, str | None]) -> Sequence[Key]:
        """Give the keys whose hash begins with `key_id` these limits, by name; others stay. Returns the keys."""
        limited = _change(key_id).values(dict(limits)).returning(KeyRow)
        async with self._database.begin() as session:
            return [_key(row) for row in await session.scalars(limited)]

    async def revoke(self, key_id: str) -> int:
        """Revoke the keys whose hash begins with `key_id` (at least 12 digits). Returns how many there were."""
        revoked = _change(key_id).values(revoked_at=func.now()).returning(KeyRow.hash)
        async with self._database.begin() as session:
            return len((await session.scalars(revoked)).all())


def _change(key_id: str) -> Update:
    """Of the keys in force whose hash begins so."""
    return update(KeyRow).where(KeyRow.hash.startswith(key_id), KeyRow.revoked_at.is_(None))


def _key(row: KeyRow) -> Key:
    return Key(row.hash, row.owner, frozenset(map(Scope, row.scopes)), row.in_path, row.rate, row.items)
