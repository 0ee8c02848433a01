"""Commands for whoever runs the service. They print for people and return an exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from rlt_client.errors import RLTError
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings

__all__ = ["check_store", "run", "sweep_store"]


def run(command: Coroutine[Any, Any, int], prog: str) -> int:
    """The exit code: 1 with one line for what the user can mend."""
    try:
        return asyncio.run(command)
    except RLTError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1


async def check_store(settings: Settings) -> int:
    from rlt_jobs.store.check import check  # pyarrow, which other commands need not wait for
    from rlt_jobs.store.files import Store

    database = Database(settings.database_url, name="rlt-jobs check", pool=2)
    wrong = 0
    try:
        async for finding in check(database, Store(settings.store, endpoint_url=settings.store_endpoint)):
            sys.stdout.write(f"{finding}\n")
            wrong += 1
    finally:
        await database.close()
    sys.stdout.write("the store is whole\n" if wrong == 0 else f"{wrong} things are wrong\n")
    return 0 if wrong == 0 else 1


async def sweep_store(settings: Settings, *, dry_run: bool) -> int:
    from rlt_jobs.store.files import Store
    from rlt_jobs.store.sweep import sweep

    database = Database(settings.database_url, name="rlt-jobs sweep", pool=2)
    store = Store(settings.store, endpoint_url=settings.store_endpoint)
    try:
        async for line in sweep(database, store, settings, dry_run=dry_run):
            sys.stdout.write(f"{'would remove' if dry_run else 'removed'} {line}\n")
    finally:
        await database.close()
    return 0
