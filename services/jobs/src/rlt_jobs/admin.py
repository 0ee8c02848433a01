"""Commands for whoever runs the service. They print for people and return an exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from rlt_client.errors import RLTError
from rlt_jobs.database import Database
from rlt_jobs.keys import DatabaseKeys
from rlt_jobs.settings import Settings
from rlt_service.keys import Key, create_token, hash_token, parse_keys

__all__ = ["check_store", "keys", "run", "sweep_store"]

ID_DIGITS = 12  # of a key's hash: what logs and lists show


def run(command: Coroutine[Any, Any, int], prog: str) -> int:
    """The exit code: 1 with one line for what the user can mend."""
    try:
        return asyncio.run(command)
    except RLTError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1


async def check_store(settings: Settings) -> int:
    from rlt_jobs.store.check import check  # pyarrow, which keys need not wait for
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


async def keys(settings: Settings, args: list[str]) -> int:
    database = Database(settings.database_url, name="rlt-jobs keys", pool=1)
    store = DatabaseKeys(database)
    try:
        match args:
            case ["add", owner, scopes]:
                return await _add(store, owner, scopes)
            case ["list"]:
                return await _list(store)
            case ["revoke", key_id] if len(key_id) >= ID_DIGITS:
                return await _revoke(store, key_id)
            case _:
                sys.stderr.write(
                    f"usage: rlt-jobs keys add OWNER SCOPE[,SCOPE] | list | revoke ID ({ID_DIGITS} digits)\n"
                )
                return 2
    finally:
        await database.close()


async def _add(store: DatabaseKeys, owner: str, scopes: str) -> int:
    token = create_token()
    (key,) = parse_keys(f"{owner} {scopes} sha256:{hash_token(token)}", "key")
    await store.add(key)
    sys.stdout.write(f"{token}\n")
    sys.stderr.write(f"key {key.id} of {key.owner}; the token is shown once\n")
    return 0


async def _list(store: DatabaseKeys) -> int:
    for key in await store.list():
        sys.stdout.write(f"{_line(key)}\n")
    return 0


async def _revoke(store: DatabaseKeys, key_id: str) -> int:
    count = await store.revoke(key_id)
    sys.stderr.write("revoked\n" if count else f"there is no key {key_id}\n")
    return 0 if count else 1


def _line(key: Key) -> str:
    return f"{key.id}  {key.owner}  {','.join(sorted(key.scopes))}"
