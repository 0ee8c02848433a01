"""Bring a database to the newest schema: `rlt-jobs migrate`. Several may start at once; one works, the others wait."""

from __future__ import annotations

import logging
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TextIO

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from rlt_client.errors import RLTError
from rlt_jobs.schema import State, newest, order, state, words

__all__ = ["config", "current", "main", "move", "parser", "print_sql", "upgrade"]

log = logging.getLogger(__name__)

LOCK = 0x524C54_01  # "RLT": an advisory lock of our own
LOCK_MS = 3_000  # what waits for a table's lock holds up whoever comes after it; it is given up and tried again
PAUSE = 1.0  # before a lock that others hold is asked for again: they take their turn meanwhile
PATIENCE = 300.0  # seconds for such a lock: a transaction of ours takes seconds, somebody's psql perhaps for ever


class CannotMigrate(RLTError):
    """With the words for whoever runs it."""


def config(url: str, *, accept_loss: bool = False, output: TextIO | None = None) -> Config:
    """Alembic's configuration for the database at `url`. SQL that is only printed goes to `output`."""
    made = Config(output_buffer=output or sys.stdout)
    made.set_main_option("script_location", str(resources.files("rlt_jobs") / "migrations"))
    made.attributes.update(url=url, accept_loss=accept_loss, lock_ms=LOCK_MS)
    return made


def upgrade(url: str, revision: str = "head") -> None:
    """Forward. Nothing where the database is newer than this program, which then works with it as it is."""
    move(url, revision)


def move(url: str, revision: str, *, accept_loss: bool = False) -> None:
    """Forward or back.

    Raises:
        CannotGoBack: rows have no place in the older schema.
        CannotMigrate: there is no such revision, or the database's own is newer than this program.
    """
    with _alone(url):
        now = current(url)
        if revision == "head" and state(now) is State.newer:
            log.info("nothing to do: %s", words(now))
            return
        step = command.downgrade if _is_back(now, revision) else command.upgrade
        _insist(lambda: step(config(url, accept_loss=accept_loss), revision))


def print_sql(url: str, revision: str, output: TextIO | None = None) -> None:
    """What `move` would run, for whoever wants to read it first. Changes nothing."""
    now = current(url)
    step = command.downgrade if _is_back(now, revision) else command.upgrade
    step(config(url, output=output), f"{now or 'base'}:{revision}", sql=True)


def current(url: str) -> str | None:
    """The database's revision; None where it has no table of ours."""
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _is_back(now: str | None, revision: str) -> bool:
    revisions = order()
    if state(now) is State.newer:
        raise CannotMigrate(f"the schema is {now}, newer than this program: use the program that made it")
    if revision not in ("head", *revisions):
        raise CannotMigrate(f"there is no revision {revision}: {', '.join(revisions)}")
    return revision != "head" and now is not None and revisions.index(revision) < revisions.index(now)


@contextmanager
def _alone(url: str) -> Iterator[None]:
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:  # the session's end releases the lock
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            connection.commit()
            yield
    finally:
        engine.dispose()


def _insist(migrate: Callable[[], None]) -> None:
    """Again where a table was locked by others for too long; what was done before is committed."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return migrate()
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable) or time.monotonic() > until:
                raise
            log.warning("a table is in use; tried again")
            time.sleep(PAUSE)


def parser(prog: str) -> ArgumentParser:
    made = ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    made.add_argument("--to", default="head", metavar="REVISION")
    made.add_argument("--accept-loss", action="store_true")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true")
    what.add_argument("--dry-run", action="store_true")
    return made


def main(url: str, asked: Namespace, prog: str) -> int:
    """The command. 0: done, or up to date; 1: not, with one line that says why."""
    try:
        if asked.check:
            return _check(url)
        if asked.dry_run:
            print_sql(url, asked.to)
        else:
            move(url, asked.to, accept_loss=asked.accept_loss)
    except OperationalError as error:
        sys.stderr.write(f"{prog}: error: {error.orig}\n")
        return 1
    except (RLTError, CommandError) as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1
    return 0


def _check(url: str) -> int:
    found = current(url)
    sys.stdout.write(f"schema {found}, this program's is {newest()}\n")
    return 0 if state(found) in (State.same, State.newer) else 1
