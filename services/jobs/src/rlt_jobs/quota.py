"""`rlt-jobs quota`: what an owner may ask for, and uses now."""

from __future__ import annotations

import sys

from rlt_client.errors import InvalidRequest
from rlt_jobs.builds.quotas import Limits, limits, set_quota, used
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings

__all__ = ["quota"]

NAMES = tuple(Limits.__dataclass_fields__)
USAGE = f"""usage: rlt-jobs quota show OWNER | set OWNER NAME=NUMBER…
  NAME is one of {", ".join(NAMES)}; NAME=default takes the exception back
"""


async def quota(settings: Settings, args: list[str]) -> int:
    """The exit code. Raises `InvalidRequest` for a name or number that is none."""
    if len(args) < 2 or (args[0], len(args) > 2) not in {("show", False), ("set", True)}:
        sys.stderr.write(USAGE)
        return 2
    database = Database(settings.database_url, name="rlt-jobs quota", pool=1)
    try:
        if args[0] == "set":
            values = dict(_parsed(arg) for arg in args[2:])
            async with database.begin() as session:
                await set_quota(session, args[1], **values)
        await _show(database, settings, args[1])
    finally:
        await database.close()
    return 0


def _parsed(arg: str) -> tuple[str, int | None]:
    name, _, value = arg.partition("=")
    if name not in NAMES:
        raise InvalidRequest(f"{name} is no quota: {', '.join(NAMES)} are")
    if value == "default":
        return name, None
    if not value.isdecimal() or int(value) >= 2**63:
        raise InvalidRequest(f"{name}: {value or 'nothing'} is no number of things")
    return name, int(value)


async def _show(database: Database, settings: Settings, owner: str) -> None:
    async with database.begin() as session:
        most, now = await limits(session, settings, owner), await used(session, owner)
    for name in NAMES:
        limit = getattr(most, name)
        sys.stdout.write(f"{name:<16} {getattr(now, name):>15} of {'no limit' if limit is None else limit}\n")
