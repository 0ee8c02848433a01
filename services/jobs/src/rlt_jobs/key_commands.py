"""`rlt-jobs keys`: makes, lists, limits and revokes the keys of the database."""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rlt_client.schemas.common import Scope
from rlt_service.keys import OWNER_PATTERN, OWNER_WANTED, RATE_PATTERN, RATE_WANTED, Key, create_token, hash_token

if TYPE_CHECKING:
    from rlt_jobs.keys import DatabaseKeys
    from rlt_jobs.settings import Settings

__all__ = ["keys", "parser"]

ID_DIGITS: Final = 12  # of a key's hash: what logs and lists show
DEFAULT: Final = "default"
_LIMITS: Final = {
    "rate": "requests in a time, such as 100/minute",
    "items": "samples in a time, such as 5000/hour, of problems that stand in requests",
}


def parser(prog: str) -> ArgumentParser:
    made = ArgumentParser(prog=prog, allow_abbrev=False, description="Keys of the database, which the API looks up.")
    actions = made.add_subparsers(dest="action", required=True, metavar="add | list | set | revoke")
    add = actions.add_parser("add", allow_abbrev=False, help="make a key; prints its token, which is shown once")
    add.add_argument("owner", metavar="OWNER", type=_owner, help="whose key it is: builds and logs carry this name")
    add.add_argument("scopes", metavar="SCOPE[,SCOPE]", type=_scopes, help="what it may do: build, admin")
    _add_limits(add, taken_back="")
    actions.add_parser("list", allow_abbrev=False, help="id, owner, scopes and limits of each key that is in force")
    change = actions.add_parser("set", allow_abbrev=False, help="other limits for a key, whose token stays")
    _add_id(change)
    _add_limits(change, taken_back=f"; `{DEFAULT}`: the server's own")
    _add_id(actions.add_parser("revoke", allow_abbrev=False, help="the key opens nothing any more"))
    return made


def _add_id(to: ArgumentParser) -> None:
    to.add_argument("key_id", metavar="ID", type=_key_id, help=f"what `list` and logs show, {ID_DIGITS} digits")


def _add_limits(to: ArgumentParser, *, taken_back: str) -> None:
    read = _rate_or_default if taken_back else _rate
    for name, meaning in _LIMITS.items():
        to.add_argument(f"--{name}", metavar="N/TIME", type=read, default=SUPPRESS, help=meaning + taken_back)


def _owner(text: str) -> str:
    if re.fullmatch(OWNER_PATTERN, text) is None:
        raise ArgumentTypeError(f"want {OWNER_WANTED}")
    return text


def _scopes(text: str) -> frozenset[Scope]:
    named = text.split(",")
    if unknown := sorted(set(named) - set(Scope)):
        raise ArgumentTypeError(f"no such scope: {', '.join(unknown)}; there are {', '.join(Scope)}")
    return frozenset(map(Scope, named))


def _key_id(text: str) -> str:
    if re.fullmatch(rf"[0-9a-f]{{{ID_DIGITS},64}}", text) is None:
        raise ArgumentTypeError(f"want at least {ID_DIGITS} digits of 0-9 and a-f, as `list` shows them")
    return text


def _rate(text: str) -> str:
    if re.fullmatch(RATE_PATTERN, text) is None:
        raise ArgumentTypeError(RATE_WANTED)
    return text


def _rate_or_default(text: str) -> str | None:
    return None if text == DEFAULT else _rate(text)


async def keys(settings: Settings, asked: Namespace) -> int:
    """The exit code. Raises `Unavailable` where the database cannot be reached."""
    from rlt_jobs.database import Database  # SQLAlchemy, which `--help` need not wait for
    from rlt_jobs.keys import DatabaseKeys

    database = Database(settings.database_url, name="rlt-jobs keys", pool=1)
    store = DatabaseKeys(database)
    limits = {name: getattr(asked, name) for name in _LIMITS if name in asked}
    try:
        match asked.action:
            case "add":
                return await _add(store, asked.owner, asked.scopes, limits)
            case "set":
                return await _set(store, asked.key_id, limits)
            case "revoke":
                return await _revoke(store, asked.key_id)
            case _:
                return _show(await store.list())
    finally:
        await database.close()


async def _add(store: DatabaseKeys, owner: str, scopes: frozenset[Scope], limits: dict[str, str | None]) -> int:
    token = create_token()
    key = Key(hash_token(token), owner, scopes, rate=limits.get("rate"), items=limits.get("items"))
    await store.add(key)
    sys.stdout.write(f"{token}\n")
    sys.stderr.write(f"key {key.id} of {key.owner}; the token is shown once\n")
    return 0


async def _set(store: DatabaseKeys, key_id: str, limits: dict[str, str | None]) -> int:
    if not limits:
        sys.stderr.write(f"say which limit: {' or '.join(f'--{name}' for name in _LIMITS)}\n")
        return 2
    changed = await store.limit(key_id, limits)
    return _show(changed) if changed else _unknown(key_id)


async def _revoke(store: DatabaseKeys, key_id: str) -> int:
    if not await store.revoke(key_id):
        return _unknown(key_id)
    sys.stderr.write("revoked\n")
    return 0


def _unknown(key_id: str) -> int:
    sys.stderr.write(f"there is no key {key_id}\n")
    return 1


def _show(found: Sequence[Key]) -> int:
    for key in found:
        limits = [f"{name}={value}" for name in _LIMITS if (value := getattr(key, name))]
        sys.stdout.write("  ".join([key.id, key.owner, ",".join(sorted(key.scopes)), *limits]) + "\n")
    return 0
