"""`rlt-jobs api | relay | worker | migrate | check | sweep | keys`; settings are flags or `RLT_JOBS_…` variables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["main"]

USAGE = """usage: rlt-jobs COMMAND [settings]

  api      serve /builds, /datasets, /versions and /uploads
  relay    send queued messages, take back lost leases, ring again for what was forgotten; any number may run
  worker   make samples: a Celery worker of RLT_JOBS_CONCURRENCY processes
  migrate  bring the database to the newest schema; --check only says whether it is, --dry-run prints the SQL,
           --to REVISION goes there, back too (--accept-loss: with what the older schema has no place for)
  check    prove that every file is whole, every sample points at its row and every count is right
  sweep    remove what was deleted long enough ago and files that nobody reads; --dry-run only says what
  quota    show OWNER | set OWNER NAME=NUMBER…: what an owner may ask for at once
  keys     add OWNER SCOPE[,SCOPE…] | list | set ID | revoke ID: keys in the database, with --rate 100/minute and
           --items 5000/hour for what each may ask for (RLT_JOBS_DATABASE_KEYS=1 accepts them)

Settings are flags or RLT_JOBS_… variables: rlt-jobs COMMAND --help
"""


def main() -> NoReturn:
    command, args = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    commands: dict[str, Callable[[list[str]], int]] = {
        "api": _api,
        "relay": _relay,
        "worker": _worker,
        "migrate": _migrate,
        "check": _check,
        "sweep": _sweep,
        "quota": _quota,
        "keys": _keys,
    }
    if command in commands:
        sys.exit(commands[command](args))
    asked = command in ("-h", "--help", "help")
    (sys.stdout if asked else sys.stderr).write(USAGE)
    sys.exit(0 if asked else 2)


def _api(args: list[str]) -> int:
    from rlt_jobs.settings import Settings
    from rlt_service.settings import load

    settings = load(Settings, args, prog="rlt-jobs api")
    from rlt_jobs import app
    from rlt_service.server import serve

    serve(lambda: app.build(settings), settings, prog="rlt-jobs api")


def _relay(args: list[str]) -> int:
    import asyncio

    from rlt_jobs.settings import Settings
    from rlt_service import logs
    from rlt_service.settings import load

    settings = load(Settings, args, prog="rlt-jobs relay")
    from rlt_jobs import relay

    logs.configure(settings.log_level, settings.log_format, service="rlt-jobs relay")
    asyncio.run(relay.run(settings))
    return 0


def _worker(args: list[str]) -> int:
    from rlt_jobs.settings import Settings
    from rlt_service.settings import load

    settings = load(Settings, args, prog="rlt-jobs worker")
    if settings.metrics_port is not None:
        from rlt_jobs import shared_metrics

        shared_metrics.share()
    from rlt_jobs import worker

    worker.run(settings)
    return 0


def _migrate(args: list[str]) -> int:
    from rlt_jobs import migrate
    from rlt_jobs.settings import Settings
    from rlt_service.settings import load

    prog = "rlt-jobs migrate"
    asked, rest = migrate.parser(prog).parse_known_args(args)
    return migrate.main(load(Settings, rest, prog=prog).database_url, asked, prog)


def _check(args: list[str]) -> int:
    from rlt_jobs.settings import Settings
    from rlt_service.settings import load

    settings = load(Settings, args, prog="rlt-jobs check")
    from rlt_jobs import admin

    return admin.run(admin.check_store(settings), "rlt-jobs check")


def _quota(args: list[str]) -> int:
    from rlt_jobs.settings import Settings
    from rlt_service.settings import load

    settings = load(Settings, [], prog="rlt-jobs quota")
    from rlt_jobs import admin
    from rlt_jobs.quota import quota

    return admin.run(quota(settings, args), "rlt-jobs quota")


def _sweep(args: list[str]) -> int:
    from rlt_jobs.settings import Settings
    from rlt_service.settings import load

    dry_run = "--dry-run" in args
    settings = load(Settings, [arg for arg in args if arg != "--dry-run"], prog="rlt-jobs sweep")
    from rlt_jobs import admin

    return admin.run(admin.sweep_store(settings, dry_run=dry_run), "rlt-jobs sweep")


def _keys(args: list[str]) -> int:
    from rlt_jobs import key_commands
    from rlt_jobs.settings import Settings
    from rlt_service.settings import load

    prog = "rlt-jobs keys"
    asked = key_commands.parser(prog).parse_args(args)
    settings = load(Settings, [], prog=prog)
    from rlt_jobs import admin

    return admin.run(key_commands.keys(settings, asked), prog)


if __name__ == "__main__":
    main()
