"""Who may talk to whom: the one table that the networks must make true, and that the attack from inside tries."""

from __future__ import annotations

__all__ = ["ADDRESSES", "ALLOWED", "NEEDED", "OUTSIDE"]

ADDRESSES = {
    "postgres": ("postgres", 5432),
    "redis": ("redis", 6379),
    "engine": ("engine", 8000),
    "reward": ("reward", 8002),
    "teacher": ("teacher", 8001),
    "jobs-api": ("jobs-api", 8003),
    "jobs-worker": ("jobs-worker", 9100),
    "jobs-relay": ("jobs-relay", 9100),
    "proxy": ("proxy", 8080),
}
"""What listens, by service."""

OUTSIDE = "outside"
"""Anything that is not in the stack: the internet, the machine itself."""

NEEDED: dict[str, frozenset[str]] = {
    "proxy": frozenset({"teacher", "reward", "jobs-api"}),
    "teacher": frozenset({"engine", "reward"}),
    "jobs-api": frozenset({"postgres", "teacher"}),
    "jobs-relay": frozenset({"postgres", "redis"}),
    "jobs-worker": frozenset({"postgres", "redis", "teacher", "reward"}),
    "migrate": frozenset({"postgres"}),
    "rlt": frozenset({"teacher", "reward", "jobs-api"}),
}
"""Without these the platform does not work."""

_JOBS = frozenset({"jobs-api", "jobs-relay", "jobs-worker"})
_BACK = frozenset({"proxy", "teacher", "reward", "jobs-api", "jobs-worker"})
_DATA = frozenset({"postgres", "redis"})

ALLOWED: dict[str, frozenset[str]] = {
    "proxy": _BACK | {OUTSIDE},
    "teacher": _BACK | {"engine"},
    "reward": _BACK,
    "engine": frozenset({"teacher"}),
    "jobs-api": _BACK | _DATA | _JOBS,
    "jobs-worker": _BACK | _DATA | _JOBS,
    "jobs-relay": _DATA | _JOBS,
    "migrate": _DATA | _JOBS,
    "postgres": _DATA | _JOBS,
    "redis": _DATA | _JOBS,
    "rlt": _BACK,
    "secrets": frozenset(),
    "models": frozenset(),
}
"""By service, which others it can reach at all: those it shares a network with. They ask for keys besides."""
