"""The command `rlt` (extra `cli`). Nothing but this file is imported before the command line is read."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command. Exits 0, 1 where the job failed, 2 on wrong usage, 3 where a service was not reached."""
    try:
        from rlt_client.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write("rlt: error: the command line needs its extra: pip install 'rlt-client[cli]'\n")
        sys.exit(1)
    run()
