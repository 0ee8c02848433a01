"""Keys in the database, beside those of the settings: `rlt-jobs keys add|list|revoke`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, Text, func, insert, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from rlt_client.schemas.common import Scope
from rlt_jobs.database import Base, Database
from rlt_service.keys import Key

__all__ = ["DatabaseKeys", "KeyRow"]


class KeyRow(Base):
    """Only the hash of a key is kept."""

    __tablename__ = "keys"

    hash: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of the token, 64 hex digits."""
    owner: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    in_path: Mapped[bool] = mapped_column(server_default=text("false"))
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
            await session.execute(insert(KeyRow).values(values))

    async def list(self) -> list[Key]:
        live = select(KeyRow).where(KeyRow.revoked_at.is_(None)).order_by(KeyRow.owner, KeyRow.created_at)
        async with self._database.begin() as session:
            return [_key(row) for row in await session.scalars(live)]

    async def revoke(self, key_id: str) -> int:
        """Revoke the keys whose hash begins with `key_id` (at least 12 digits). Returns how many there were."""
        named = update(KeyRow).where(KeyRow.hash.startswith(key_id), KeyRow.revoked_at.is_(None))
        async with self._database.begin() as session:
            revoked = await session.scalars(named.values(revoked_at=func.now()).returning(KeyRow.hash))
            return len(revoked.all())


def _key(row: KeyRow) -> Key:
    return Key(row.hash, row.owner, frozenset(map(Scope, row.scopes)), row.in_path)
