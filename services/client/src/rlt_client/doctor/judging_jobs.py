"""The jobs service and what it needs: database, messages, workers, store, and the builds themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rlt_client.doctor.findings import Finding, ok, warning, wrong
from rlt_client.schemas.health import JobsHealth, QueueHealth, TroubledBuild

__all__ = ["jobs"]

OLDEST_POSTGRES: Final = 15
MISSED: Final = 3  # proofs in a row: one may be late, two may be a restart
OUTBOX_S: Final = 30.0  # a relay looks twice a second
MOST_SKEW_S: Final = 5.0
FULL: Final = 0.02  # of a disk, or
FULL_BYTES: Final = 2**30
LITTLE: Final = 0.10


def jobs(health: JobsHealth, *, idle: bool) -> list[Finding]:
    """Args:
    idle: shards were ready and none running, for a while.
    """
    found = [*_database(health), *_broker(health), *_store(health), *_relay(health)]
    relayed = not any("relay" in finding.says for finding in found)
    workers = list(_workers(health, idle=idle)) if relayed else []
    builds = [finding for build in health.troubled for finding in _build(build)]
    return [*found, *workers, *builds]


def _database(health: JobsHealth) -> Iterator[Finding]:
    database = health.database
    if database.version and int(database.version.split(".")[0]) < OLDEST_POSTGRES:
        says = f"Postgres {database.version} is too old"
        yield wrong("jobs", says, f"update it to {OLDEST_POSTGRES} or newer")
    if not database.ok:
        migrate = database.version is not None
        todo = "run `rlt-jobs migrate`" if migrate else "start Postgres, or correct RLT_JOBS_DATABASE_URL"
        yield wrong("jobs", f"the database: {database.detail}", todo)
    elif database.revision != database.newest:
        says = f"the database has schema {database.revision}, newer than this program's {database.newest}"
        yield warning("jobs", says, "finish the update of the jobs service")
    else:
        yield ok("jobs", f"Postgres {database.version}, schema {database.revision}")
    skew = (database.now - health.now).total_seconds() if database.now else 0.0
    if abs(skew) > MOST_SKEW_S:
        says = f"the database's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the API's"
        yield warning("jobs", says, "let both follow a time server (NTP)")


def _broker(health: JobsHealth) -> Iterator[Finding]:
    broker = health.broker
    if not broker.ok:
        todo = "start Redis, or correct RLT_JOBS_REDIS_URL; builds go on by themselves once it is there"
        yield wrong("jobs", f"Redis is not reached: {broker.detail}", todo)
    elif broker.maxmemory_policy not in (None, "noeviction"):
        says = f"Redis may throw messages away: its maxmemory-policy is {broker.maxmemory_policy}"
        yield wrong("jobs", says, "set maxmemory-policy noeviction")
    else:
        yield ok("jobs", f"Redis {broker.version or ''} answers".replace("  ", " "))


def _store(health: JobsHealth) -> Iterator[Finding]:
    store = health.store
    if not store.ok:
        todo = "look at the disk or bucket of RLT_JOBS_STORE: room, rights, credentials"
        yield wrong("jobs", f"the store cannot be written: {store.detail}", todo)
        return
    free, total = store.free_bytes, store.total_bytes
    if free is None or not total:
        yield ok("jobs", f"the store can be written: {store.detail}")
        return
    says = f"{free / 2**30:.1f} GiB of {total / 2**30:.1f} are free in the store"
    todo = "make room: `rlt-jobs sweep` removes what was deleted; or give it a larger disk"
    if free < min(FULL_BYTES, FULL * total):
        yield wrong("jobs", f"the store's disk is nearly full: {says}", todo)
    elif free < LITTLE * total:
        yield warning("jobs", f"the store's disk fills up: {says}", todo)
    else:
        yield ok("jobs", says)


def _relay(health: JobsHealth) -> Iterator[Finding]:
    """One that lives sends proofs and leaves no message lying."""
    if health.outbox is None:
        return
    rung = [queue.rung_seconds for queue in health.queues]
    silent = any(seconds is None or seconds > MISSED * health.canary_seconds for seconds in rung)
    waits = health.outbox.oldest_seconds > OUTBOX_S and health.broker.ok
    if silent or waits:
        says = f"no relay is at work: {health.outbox.waiting} messages wait, the oldest for "
        says += f"{health.outbox.oldest_seconds:.0f} s"
        yield wrong("jobs", says, "start `rlt-jobs relay`, or look at its log")
    elif health.shards and health.shards.overdue:
        yield warning(
            "jobs",
            f"{health.shards.overdue} shards have a lease that ran out",
            "the relay takes them back within seconds; if they stay, look at its log",
        )


def _workers(health: JobsHealth, *, idle: bool) -> Iterator[Finding]:
    """A proof that came through a queue shows a worker; one that is busy shows itself by its leases."""
    busy = health.shards is not None and health.shards.running > 0
    lost = [queue for queue in health.queues if not _answered(queue, health.canary_seconds)]
    if busy or not health.queues:
        return
    if lost:
        names = ", ".join(queue.name for queue in lost)
        todo = "start `rlt-jobs worker`, or look at its log"
        yield wrong("jobs", f"no worker takes messages from: {names}", todo)
    elif idle and not any(build.stalled for build in health.troubled):
        ready = health.shards.ready if health.shards else 0
        says = f"{ready} shards are ready and nobody works on them, though workers answer"
        yield wrong("jobs", says, "look at the workers' log: they may not reach the teacher or the reward server")
    else:
        yield ok("jobs", "relay and workers are at work")


def _answered(queue: QueueHealth, every: float) -> bool:
    return queue.answered_seconds is not None and queue.answered_seconds <= MISSED * every


def _build(build: TroubledBuild) -> Iterator[Finding]:
    name = f"build {build.id} ({build.dataset}, of {build.owner})"
    if build.stalled is not None:
        says = f"{name} cannot go on since {build.stalled_seconds or 0:.0f} s: {build.stalled}"
        yield wrong("jobs", says, "it goes on by itself once that is mended")
    if build.dead_shards:
        says = f"{name} has {build.dead_shards} shards that were given up: {build.last_error or 'no reason kept'}"
        yield wrong("jobs", says, f"mend the cause, then `rlt build retry {build.id}`")
