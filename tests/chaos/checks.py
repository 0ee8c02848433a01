"""What must be true of a build that has ended, whatever was done to its makers."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pyarrow.parquet as pq
from chaos.stand_in import worth
from chaos.world import World

from rlt_client.schemas.common import GenStatus

__all__ = ["Expected", "ask", "store_wrong", "wrong"]

QUIET_SECONDS = 120.0  # for messages of the last moment to be sent, on a busy machine
PATIENCE = 120.0
Key = tuple[int, int]


@dataclass(frozen=True)
class Expected:
    """A build, and every text of it by (problem, sample)."""

    build: int
    dataset: str
    texts: dict[Key, str]
    bad_rows: int

    @property
    def rewards(self) -> dict[Key, float | None]:
        return {key: worth(text) for key, text in self.texts.items()}

    @property
    def best(self) -> dict[int, Key]:
        """The sample of each problem that the version must hold; a problem without a score has none."""
        scored = [(reward, key) for key, reward in self.rewards.items() if reward is not None]
        return {key[0]: key for _, key in sorted(scored, key=lambda pair: (pair[0], -pair[1][1]))}


def wrong(world: World, expected: Expected) -> list[str]:
    """Every broken promise, in words."""
    found = []
    for check in (_api, _samples, _scores, _counters, _shards, _left_over, _events, _version):
        try:
            found += [f"{expected.dataset}: {line}" for line in check(world, expected)]
        except (psycopg.Error, httpx.HTTPError, OSError, LookupError, ValueError) as error:
            found.append(f"{expected.dataset}: {check.__name__} could not look: {error!r}")
    return found


def _get(world: World, path: str, **params: Any) -> httpx.Response:
    return ask(world, "GET", path, params=params)


def ask(world: World, method: str, path: str, **options: Any) -> httpx.Response:
    """Again after a 503: an API gives a new connection to its database five seconds, and a busy machine may not."""
    until = time.monotonic() + PATIENCE
    while True:
        reply = httpx.request(method, f"{world.api}{path}", timeout=60, **options)
        if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
            return reply.raise_for_status()
        time.sleep(0.5)


def _api(world: World, expected: Expected) -> Iterator[str]:
    found = _get(world, f"/builds/{expected.build}").json()
    counts, size = found["counts"], len(expected.texts)
    if found["state"] != "done" or found["error"] or found.get("stalled_since"):
        yield f"the build is {found['state']}: {found['error']} {found.get('note')}"
    if (counts["samples"], counts["missing"], counts["gen"]["complete"]) != (size, 0, size):
        yield f"the API counts {counts}"
    scored = sum(reward is not None for reward in expected.rewards.values())
    if (counts["score"]["scored"], counts["score"]["score_error"]) != (scored, size - scored):
        yield f"the API counts scores {counts['score']}, and {scored} are right"


def _samples(world: World, expected: Expected) -> Iterator[str]:
    """Exactly n of each problem, none twice, each with its texts in a file."""
    query = "SELECT problem, sample_idx, gen_status, try, file_id IS NULL FROM samples WHERE build_id = %s"
    rows = world.query(query, expected.build)
    keys = Counter((row[0], row[1]) for row in rows)
    if keys != Counter(expected.texts.keys()):
        more, less = keys - Counter(expected.texts.keys()), Counter(expected.texts.keys()) - keys
        yield f"samples: {sorted(more)[:5]} too many, {sorted(less)[:5]} missing"
    for row in rows:
        if row[2:] != (GenStatus.complete.value, 0, False):
            yield f"sample {row}"


def _scores(world: World, expected: Expected) -> Iterator[str]:
    rows = world.query(
        "SELECT problem, sample_idx, status, reward, scorer_id FROM scores WHERE build_id = %s", expected.build
    )
    found = {(row[0], row[1]): row[3] for row in rows}
    if len(rows) != len(found) or len({row[4] for row in rows}) != 1:
        yield f"{len(rows)} scores of {len(found)} samples by {len({row[4] for row in rows})} scorers"
    if found != expected.rewards:
        differing = [key for key, reward in expected.rewards.items() if found.get(key, "none") != reward]
        yield f"{len(differing)} rewards are not right, such as that of {differing[:3]}"


def _counters(world: World, expected: Expected) -> Iterator[str]:
    """What the shards count is what there is."""
    names = [status.value for status in GenStatus]
    sums = ", ".join(f"sum({name})" for name in names)
    counts = ", ".join(f"count(*) FILTER (WHERE gen_status = '{name}')" for name in names)
    tokens = "sum(prompt_tokens), sum(completion_tokens)"
    counted = world.query(f"SELECT {sums}, {tokens} FROM shards WHERE build_id = %s", expected.build)
    there = world.query(f"SELECT {counts}, {tokens} FROM samples WHERE build_id = %s", expected.build)
    if counted != there:
        yield f"the shards count {counted}, there are {there}"
    by_status = "count(*) FILTER (WHERE status = 'scored'), count(*) FILTER (WHERE status = 'score_error')"
    scores = world.query(f"SELECT {by_status} FROM scores WHERE build_id = %s", expected.build)
    summed = world.query("SELECT sum(scored), sum(score_error) FROM shards WHERE build_id = %s", expected.build)
    if summed != scores:
        yield f"the shards count scores {summed}, there are {scores}"


def _shards(world: World, expected: Expected) -> Iterator[str]:
    columns = "id, state::text, lease_token, barren, error"
    for row in world.query(f"SELECT {columns} FROM shards WHERE build_id = %s", expected.build):
        if row[1:4] != ("done", None, 0):
            yield f"shard {row}"
    held = "SELECT lease_token, worker FROM builds WHERE id = %s"
    if world.query(held, expected.build) != [(None, None)]:
        yield "the build is still held"


def _left_over(world: World, expected: Expected) -> Iterator[str]:
    """Nothing is left of the spool, and, after a moment, no message that waits."""
    if spooled := world.query("SELECT count(*) FROM spool WHERE build_id = %s", expected.build)[0][0]:
        yield f"{spooled} texts are left in the spool"
    until = time.monotonic() + QUIET_SECONDS
    waiting = "SELECT count(*) FROM outbox WHERE sent_at IS NULL AND created_at < now() - interval '5 seconds'"
    while count := world.query(waiting)[0][0]:
        if time.monotonic() > until:
            yield f"{count} messages were never sent"
            return
        time.sleep(0.5)


def _events(world: World, expected: Expected) -> Iterator[str]:
    """Refused rows once each; nothing was given up."""
    kinds = Counter(row[0] for row in world.query("SELECT kind FROM events WHERE build_id = %s", expected.build))
    if kinds["bad_row"] != expected.bad_rows:
        yield f"{kinds['bad_row']} refused rows were told of {expected.bad_rows}"
    if given_up := {kind: count for kind, count in kinds.items() if kind in ("shard_dead", "failed")}:
        yield f"given up: {given_up}"


def _version(world: World, expected: Expected) -> Iterator[str]:
    """One version, whose manifest names the best sample of each problem and whose rows hold the right texts."""
    versions = _get(world, f"/datasets/{expected.dataset}/versions").json()["items"]
    if len(versions) != 1:
        yield f"there are {len(versions)} versions"
    version = versions[0]
    manifest = _rows(world, version["manifest"]["uri"])
    chosen = {row["problem"]: (row["problem"], row["sample_idx"]) for row in manifest}
    if chosen != expected.best or len(manifest) != len(expected.best) or version["rows"] != len(manifest):
        yield f"the manifest has {len(manifest)} rows (the version says {version['rows']}) of {len(expected.best)}"
    texts = {
        (row["problem"], row["sample_idx"]): row["explanation"]
        for file in version["files"]
        for row in _rows(world, file["uri"])
    }
    if texts != expected.texts:
        differing = [key for key in expected.texts if texts.get(key) != expected.texts[key]]
        yield f"{len(differing)} texts in the version's files are not right, such as that of {differing[:3]}"
    yield from _export(world, expected, version["id"])


def _rows(world: World, uri: str) -> list[dict[str, Any]]:
    with world.store.open(uri) as file:
        found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return found


def _export(world: World, expected: Expected, version: int) -> Iterator[str]:
    body = _get(world, f"/versions/{version}/export", format="jsonl", shape="messages").text
    lines = [json.loads(line) for line in body.splitlines()]
    said = ["\n".join(message["content"] for message in line["messages"]) for line in lines]
    right = [expected.texts[key] for _, key in sorted(expected.best.items())]
    if len(said) != len(right) or any(text not in row for text, row in zip(right, said, strict=True)):
        yield f"the export has {len(said)} rows of {len(right)}, or others"


def store_wrong(world: World) -> list[str]:
    """`rlt-jobs check`: every checksum, and every sample at its row."""
    done = subprocess.run(world.command("check"), capture_output=True, text=True, check=False)
    return [f"rlt-jobs check: {done.stdout[-2000:]}{done.stderr[-2000:]}"] if done.returncode else []
