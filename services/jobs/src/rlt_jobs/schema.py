"""Which schema the database has, and whether this program can work with it.

An older one lacks columns, so the program waits. A newer one is a step of an update that is under way: migrations only
add, until no program needs what goes (docs/upgrades.md), so the program works on.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from functools import cache
from importlib import resources

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from rlt_client.errors import Unavailable
from rlt_jobs.database import Database

__all__ = ["State", "newest", "order", "revision_of", "state", "until_current", "words"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between looks for a migration that is under way


class State(StrEnum):
    missing = "missing"
    older = "older"
    same = "same"
    newer = "newer"
    """One that this program does not know."""


@cache
def order() -> tuple[str, ...]:
    """The revisions that this program knows, from `base`, the empty database, on."""
    made = Config()
    made.set_main_option("script_location", str(resources.files("rlt_jobs") / "migrations"))
    scripts = ScriptDirectory.from_config(made).walk_revisions()
    return ("base", *reversed([script.revision for script in scripts]))


def newest() -> str:
    return order()[-1]


def state(revision: str | None) -> State:
    if revision is None:
        return State.missing
    if revision not in order():
        return State.newer
    return State.same if revision == newest() else State.older


def words(revision: str | None) -> str:
    """For people: what is, and what to do about it."""
    match state(revision):
        case State.missing:
            return "not migrated: run `rlt-jobs migrate`"
        case State.older:
            return f"schema {revision} is older than this program's {newest()}: run `rlt-jobs migrate`"
        case State.newer:
            return f"schema {revision}, newer than this program's {newest()}"
        case State.same:
            return f"schema {revision}"


async def revision_of(database: Database) -> str | None:
    """None where there is no table of ours. Raises `Unavailable`."""
    try:
        async with database.begin() as session:
            found: str | None = await session.scalar(text("SELECT version_num FROM alembic_version"))
            return found
    except ProgrammingError:  # the table is missing
        return None


async def until_current(database: Database, stop: asyncio.Event | None = None) -> None:
    """Return once the database is there and not older than this program, or at `stop`."""
    said = ""
    while stop is None or not stop.is_set():
        try:
            revision = await revision_of(database)
        except Unavailable as error:
            now = str(error)
        else:
            if state(revision) in (State.same, State.newer):
                return
            now = words(revision)
        if now != said:
            log.warning("waiting: %s", now)
            said = now
        await asyncio.sleep(LOOK_SECONDS)
