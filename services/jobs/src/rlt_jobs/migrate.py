"""Bring a database to the newest schema: `rlt-jobs migrate`. Several may start at once; one works, the others wait."""

from __future__ import annotations

from importlib import resources

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

__all__ = ["config", "upgrade"]

LOCK = 0x524C54_01  # "RLT": an advisory lock of our own


def config(url: str) -> Config:
    """Alembic's configuration for the database at `url`."""
    made = Config()
    made.set_main_option("script_location", str(resources.files("rlt_jobs") / "migrations"))
    made.attributes["url"] = url
    return made


def upgrade(url: str, revision: str = "head") -> None:
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:  # the session's end releases the lock
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            connection.commit()
            command.upgrade(config(url), revision)
    finally:
        engine.dispose()
