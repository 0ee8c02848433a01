"""The last resort of `children`: a program of its own that outlives a killed parent and ends what it left behind.

It reads `+PGID` and `-PGID` lines on its standard input. When that closes, every process group that is still guarded
gets `GRACE` seconds to end by itself (PR_SET_PDEATHSIG has already told its leader) and is then killed.
Standard library only, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE = 3.0  # Postgres ends its own processes within this time after a fast shutdown
POLL = 0.05


def guarded(lines: Iterable[str]) -> set[int]:
    """The groups still guarded when the input ends."""
    groups: set[int] = set()
    for line in lines:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    return groups


def alive(groups: Iterable[int]) -> set[int]:
    """Those groups that still have a process, a dead one that nobody waited for included."""
    return {group for group in groups if _signal(group, 0)}


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to another user
        return True
    return True


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its input does, and not before
    groups = guarded(sys.stdin)
    until = time.monotonic() + GRACE
    while alive(groups) and time.monotonic() < until:
        time.sleep(POLL)
    for group in groups:
        _signal(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
