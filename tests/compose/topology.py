"""Who may talk to whom: the one table that the networks must make true, and that the attack from inside tries."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALLOWED", "LISTENERS", "NEEDED", "OUTSIDE", "Listener"]


@dataclass(frozen=True)
class Listener:
    """What listens, and how one knows that it is this and not something on the way that accepts every connection."""

    port: int
    hello: str
    answer: str
    """How its reply begins: a regular expression."""


def _http(port: int, path: str = "/livez") -> Listener:
    return Listener(port, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n", r"HTTP/1\.[01] 200 ")


LISTENERS = {
    "postgres": Listener(5432, "\x00\x00\x00\x08\x04\xd2\x16\x2f", r"[SN]"),  # may we speak TLS?
    "redis": Listener(6379, "PING\r\n", r"-NOAUTH|\+PONG"),
    "engine": _http(8000, "/health"),
    "reward": _http(8002),
    "teacher": _http(8001),
    "jobs-api": _http(8003),
    "jobs-worker": _http(9100, "/metrics"),
    "jobs-relay": _http(9100, "/metrics"),
    "proxy": _http(8080),
}
"""By service, which is also its name in its networks."""

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
    "trainer": frozenset({"teacher", "reward"}),
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
    "trainer": _BACK,
    "secrets": frozenset(),
    "models": frozenset(),
}
"""By service, which others it can reach at all: those it shares a network with. They ask for keys besides."""
