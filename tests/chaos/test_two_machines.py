"""Two machines that share a Postgres, a broker, the servers and a store make a build; one falls off the net."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chaos.checks import Expected, ask, store_wrong, wrong
from chaos.network import Network, why_not
from chaos.stand_in import said
from chaos.world import TIMES, World

from rlt_jobs.builds.spec import sample_seed
from rlt_local.databases import SUPERUSER, Program, prepare_postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROBLEMS, N, SEED = 600, 4, 3
HELD = 400  # from this problem on all wait until the machine that was lost is back: there is always work for it
MACHINES = {"worker-1": "node-a", "worker-2": "node-b"}
PATIENCE = 300.0  # a busy machine: half a minute is enough on a quiet one


class Cluster(World):
    """The workers on machines of their own; everything else on this one, reached over the network only."""

    def __init__(self, folder: Path, network: Network, bucket: dict[str, str] | None) -> None:
        super().__init__(folder, held=HELD)
        self.network = network
        self.host = network.host
        self._bucket = bucket

    def _store_settings(self) -> dict[str, Any]:
        return self._bucket or super()._store_settings()

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


@pytest.fixture(params=["folder", "s3"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        network = stack.enter_context(Network(*MACHINES.values()))
        bucket = stack.enter_context(_bucket(network.host, monkeypatch)) if request.param == "s3" else None
        yield stack.enter_context(Cluster(tmp_path / "world", network, bucket))


@contextmanager
def _bucket(host: str, environment: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Moto's server on the bridge, and the settings of a store in a bucket of it; any key will do."""
    import s3fs
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer  # slow to import: only who needs it waits

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        environment.setenv(name, "test")
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no look for credentials outside
    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    try:
        endpoint = f"http://{host}:{server.get_host_and_port()[1]}"
        s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True).mkdir("rlt")
        yield {"store": "s3://rlt/store", "store_endpoint": endpoint}
    finally:
        server.stop()


def test_a_machine_that_falls_off_the_net_for_longer_than_a_lease_doubles_nothing(cluster: Cluster) -> None:
    build = _submit(cluster)
    _until(lambda: cluster.held("node-a") and cluster.held("node-b") and _made(cluster) > 0, cluster)  # both are at it

    lost = _unplugged(cluster)
    _until(lambda: not cluster.held("node-b") & lost, cluster)  # taken back: it cannot renew
    time.sleep(TIMES["heartbeat_seconds"])
    cluster.network.plug("node-b")
    _until(lambda: "lease lost" in cluster.logs()["worker-2"], cluster)  # its late writes are fenced off
    _until(lambda: cluster.held("node-b"), cluster)  # it works again
    cluster.let_go()

    _until(lambda: _state(cluster, build) in ("done", "failed"), cluster)
    texts = {(p, s): said(f"Q{p}", sample_seed(SEED, p, s, 0)) for p in range(PROBLEMS) for s in range(N)}
    assert wrong(cluster, Expected(build, "shared", texts, bad_rows=0)) == []
    assert store_wrong(cluster) == []
    done = {name: cluster.logs()[name].count('"shard done"') for name in MACHINES}
    assert min(done.values()) > 0, done


def _unplugged(cluster: Cluster) -> set[int]:
    """Pull the cable of node-b. Returns what it held then: it may just have ended its last shard."""
    while True:
        cluster.network.unplug("node-b")
        if lost := cluster.held("node-b"):
            return lost
        cluster.network.plug("node-b")
        _until(lambda: cluster.held("node-b"), cluster)


def _submit(cluster: Cluster) -> int:
    rows = [{"question": f"Q{index}", "answer": f"A{index}"} for index in range(PROBLEMS)]
    request = {"dataset": "shared", "problems": rows, "n": N, "seed": SEED}
    return int(ask(cluster, "POST", "/builds", json=request).json()["id"])


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
