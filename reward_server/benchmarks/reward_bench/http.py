"""The service against its bare engine, and what it adds to the latency of a call.

With a paced engine the share of time that the engine is busy *is* the service's throughput over the bare engine's:
its time is proportional to the tokens that it is given.
"""

from __future__ import annotations

from typing import Final

from reward_bench.load import Load, apply
from reward_bench.server import Server, running
from rlt_bench.measure import Figures, Record, machine

__all__ = ["run"]

PACES: Final = {
    25_000.0: "engine paced at 25k tokens/s",  # a 7B student on one H100, by its operations
    100_000.0: "engine paced at 100k tokens/s",
}
CLIENTS: Final = 64
CONCURRENT: Final = (1, 8, 64, 256, 1000)
SECONDS: Final = 20.0
LATENCY_S: Final = 10.0
WORDS: Final = 300


def run(command: str) -> Record:
    record = Record("reward-http", command, machine())
    for pace, name in PACES.items():
        with running(tokens_per_s=pace) as server:
            _busy(record, server, name)
    with running(tokens_per_s=None) as server:
        _busy(record, server, "the real engine, golden size")
    for clients in CONCURRENT:
        for new in (False, True):
            _latency(record, clients, new_connections=new)
    record.notes.append(f"one sample a request, {WORDS} words; the clients run on the same cores as the server")
    return record


def _busy(record: Record, server: Server, name: str) -> None:
    apply(Load(server.url, CLIENTS, seconds=3.0, words=WORDS))
    before = server.busy_seconds()
    result = apply(Load(server.url, CLIENTS, seconds=SECONDS, words=WORDS, seed=1))
    share = (server.busy_seconds() - before) / result.seconds
    figures: Figures = {"samples/s": result.rate, "of the bare engine": f"{share:.1%}", "failed": result.failed}
    record.add(name, f"HTTP, {CLIENTS} clients", **figures)


def _latency(record: Record, clients: int, *, new_connections: bool) -> None:
    """An engine that takes no time: all of it is the service's, its batch window included."""
    with running(tokens_per_s=0.0) as server:
        apply(Load(server.url, clients, seconds=2.0, words=WORDS, new_connections=new_connections))
        load = Load(server.url, clients, seconds=LATENCY_S, words=WORDS, new_connections=new_connections, seed=1)
        result = apply(load)
    figures: Figures = {
        "samples/s": result.rate,
        "added p50 ms": result.p50_ms,
        "added p99 ms": result.p99_ms,
        "failed": result.failed,
    }
    way = f"{clients} clients, {'a connection a call' if new_connections else 'connections kept'}"
    record.add("an engine that takes no time", way, **figures)
