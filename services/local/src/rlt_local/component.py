"""What the supervisor is told of one program of the stack."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlt_service.probe import Probe


@dataclass(frozen=True, slots=True)
class Component:
    """One program.

    `once`: it has to end with status 0 before what needs it is started (a migration); everything else is started
    again whenever it ends. `beat` is a file that it makes when it is ready; removed before each start.
    `cwd` is the stack's folder if left out.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    ready: Probe | None = None
    beat: Path | None = None
    once: bool = False
    url: str | None = None
    cwd: Path | None = None
    stop_signal: int = signal.SIGTERM
    stop_grace: float = 15.0  # a worker gives its leases back and a server finishes its requests within this time
    death_signal: int = signal.SIGKILL
