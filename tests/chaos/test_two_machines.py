"""Two machines that share a Postgres, a broker, the servers and a store make a build; one falls off the net."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from chaos.checks import Expected, wrong
from chaos.network import Network, why_not
from chaos.stand_in import said
from chaos.world import TIMES, World

from rlt_jobs.builds.spec import sample_seed
from rlt_local.databases import SUPERUSER, Program, prepare_postgres

pytestmark = [pytest.mark.slow]

PROBLEMS, N, SEED = 600, 4, 3
MACHINES = {"worker-1": "node-a", "worker-2": "node-b"}
PATIENCE = 120.0


class Cluster(World):
    """The workers on machines of their own; everything else on this one, reached over the network only."""

    def __init__(self, folder: Path, network: Network) -> None:
        super().__init__(folder)
        self.network = network
        self.host = network.host

    def _databases(self) -> list[Program]:
        _, valkey = super()._databases()
        data = self.folder / "postgres"
        postgres = prepare_postgres(data)
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all {SUPERUSER} {self.network.range} trust\n")
        config = self.folder / "valkey" / "valkey.conf"
        config.write_text(config.read_text().replace("bind 127.0.0.1", f"bind 127.0.0.1 {self.host}"))
        return [
            replace(postgres, argv=[*postgres.argv, "-c", f"listen_addresses={self.host}"]),
            replace(valkey, url=valkey.url.replace("127.0.0.1", self.host)),
        ]

    def _jobs(self, name: str) -> Program:
        program = super()._jobs(name)
        if name not in MACHINES:
            return program
        over_tcp = f"RLT_JOBS_DATABASE_URL=postgresql+psycopg://{SUPERUSER}@{self.host}:5432/postgres"
        argv = [over_tcp if word.startswith("RLT_JOBS_DATABASE_URL=") else word for word in program.argv]
        return self.network.on(MACHINES[name], replace(program, argv=argv))

    def held(self, machine: str) -> set[int]:
        """Shards that the machine works on now."""
        running = "SELECT id FROM shards WHERE state = 'running' AND worker LIKE %s"
        return {row[0] for row in self.query(running, f"{machine}:%")}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with Network(*MACHINES.values()) as network, Cluster(tmp_path / "world", network) as made:
        yield made


def test_a_machine_that_falls_off_the_net_for_longer_than_a_lease_doubles_nothing(cluster: Cluster) -> None:
    build = _submit(cluster)
    _until(lambda: cluster.held("node-a") and cluster.held("node-b"), cluster)  # both are at it
    _until(lambda: _made(cluster) > 0, cluster)

    lost = cluster.held("node-b")
    cluster.network.unplug("node-b")
    assert lost, "it held nothing that it could lose"
    _until(lambda: not cluster.held("node-b") & lost, cluster)  # taken back: it cannot renew
    made = _made(cluster)
    time.sleep(TIMES["heartbeat_seconds"])
    cluster.network.plug("node-b")
    _until(lambda: "lease lost" in cluster.logs()["worker-2"], cluster)  # its late writes are fenced off
    _until(lambda: cluster.held("node-b"), cluster)  # it works again
    assert made < PROBLEMS * N, "the build was over before the machine came back"

    _until(lambda: _state(cluster, build) in ("done", "failed"), cluster)
    texts = {(p, s): said(f"Q{p}", sample_seed(SEED, p, s, 0)) for p in range(PROBLEMS) for s in range(N)}
    assert wrong(cluster, Expected(build, "shared", texts, bad_rows=0)) == []
    done = {name: cluster.logs()[name].count('"shard done"') for name in MACHINES}
    assert min(done.values()) > 0, done


def _submit(cluster: Cluster) -> int:
    rows = [{"question": f"Q{index}", "answer": f"A{index}"} for index in range(PROBLEMS)]
    request = {"dataset": "shared", "problems": rows, "n": N, "seed": SEED}
    return int(httpx.post(f"{cluster.api}/builds", json=request, timeout=30).raise_for_status().json()["id"])


def _state(cluster: Cluster, build: int) -> str:
    return str(cluster.query("SELECT state::text FROM builds WHERE id = %s", build)[0][0])


def _made(cluster: Cluster) -> int:
    return int(cluster.query("SELECT count(*) FROM samples")[0][0])


def _until(reached: Callable[[], object], cluster: Cluster) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            shards = cluster.query("SELECT id, state::text, worker, error FROM shards")
            logs = "\n".join(f"== {name}\n{text[-3000:]}" for name, text in cluster.logs().items())
            raise AssertionError(f"not reached: {shards}\n{logs}")
        time.sleep(0.1)
