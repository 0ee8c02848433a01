"""The demo's calls, through the proxy, with the one key: question and answer → explanation → reward → data set."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
from compose.stack import Failed, Stack

from rlt_client import (
    BuildProblem,
    BuildRequest,
    Detail,
    ExplainRequest,
    JobsClient,
    RewardClient,
    RewardItem,
    TeacherClient,
)
from rlt_client.schemas.builds import BuildState, Source

__all__ = ["HIDDEN", "demo", "export", "problems"]

PROBLEMS = 60
SAMPLES = 2
SAME = 1e-3  # nats: one score from the teacher's own log-probs, one from the copy in the reward server
HIDDEN = ("/readyz", "/metrics", "/version", "/docs", "/openapi.json", "/reset_prefix_cache", "/health", "/")
CLOSED = ("/policies", "/models", "/builds", "/v1/models", "/health/details")


def problems(stack: Stack) -> list[dict[str, str]]:
    """Held-out problems of the tiny models, with a good and a leaking trace each."""
    file = stack.folder / "problems.jsonl"
    command = [sys.executable, "-m", "rlt_trainer", "tiny", "problems", "--count", str(PROBLEMS), "--traces"]
    subprocess.run([*command, "--out", str(file)], check=True, capture_output=True)
    return [json.loads(line) for line in file.read_text().splitlines()]


def demo(stack: Stack) -> Iterator[str]:
    """What was seen, line by line.

    Raises:
        Failed: something is not as the demo promises.
    """
    rows = problems(stack)
    yield from _one_address(stack)
    yield _explains(stack, rows[0])
    yield _ranks(stack, rows[:5])
    yield _builds(stack, rows)
    yield f"rlt doctor: {_doctor(stack)}"


def _doctor(stack: Stack) -> str:
    """Its last line. Raises `Failed` where it finds anything wrong."""
    return stack.tool("rlt", "doctor").splitlines()[-1]


def _one_address(stack: Stack) -> Iterator[str]:
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        for path in HIDDEN:
            reply = client.get(path, headers=_bearer(stack))
            if (reply.status_code, reply.json()["type"]) != (404, "not_found"):
                raise Failed(f"GET {path} through the proxy: {reply.status_code} {reply.text[:200]}")
        refused = {path: client.get(path).status_code for path in CLOSED}
    if set(refused.values()) != {401}:
        raise Failed(f"without a key: {refused}")
    yield f"{len(HIDDEN)} paths of the servers' own are hidden, and nothing answers without a key"
    yield f"HTTPS by the proxy's own authority: {_over_tls(stack)}"


def _over_tls(stack: Stack) -> int:
    """The proxy's own authority is what signs; nothing else is trusted.

    Raises:
        ssl.SSLError, OSError: the certificate is not good.
    """
    root = stack.exec("proxy", "cat", "/data/caddy/pki/authorities/local/root.crt")
    trusted = ssl.create_default_context(cadata=root)
    request = urllib.request.Request(f"https://localhost:{stack.tls_port}/presets", headers=_bearer(stack))
    with urllib.request.urlopen(request, context=trusted, timeout=30) as reply:
        return int(reply.status)


def _bearer(stack: Stack) -> dict[str, str]:
    return {"authorization": f"Bearer {stack.key}"}


def _explains(stack: Stack, row: dict[str, str]) -> str:
    problem = {"question": row["question"], "answer": row["answer"]}
    with TeacherClient(stack.url, key=stack.key) as teacher:
        reply = teacher.explain(ExplainRequest(**problem, n=4, score=True, seed=0))
    rewards = [each.score.value() for each in reply.explanations if each.score]
    if len(rewards) != 4 or rewards != sorted(rewards, reverse=True):
        raise Failed(f"/explain ranks {rewards}")
    with RewardClient(stack.url, key=stack.key) as reward:
        again = [reward.score(RewardItem(**problem, completion=each.completion)) for each in reply.explanations]
    apart = max(abs(each.value() - was) for each, was in zip(again, rewards, strict=True))
    if apart > SAME:
        raise Failed(f"/reward and /explain are {apart:g} nats apart")
    return (
        f"POST /explain: 4 explanations, rewards {rewards[0]:+.2f} to {rewards[-1]:+.2f}; /reward agrees to {apart:.0e}"
    )


def _ranks(stack: Stack, rows: list[dict[str, str]]) -> str:
    with RewardClient(stack.url, key=stack.key) as reward:
        for row in rows:
            problem = {"question": row["question"], "answer": row["answer"]}
            good, leak = (
                reward.score(RewardItem(**problem, explanation=row[kind]), detail=Detail.tokens)
                for kind in ("good", "leak")
            )
            if good.value() <= leak.value() or good.token_scores is None:
                raise Failed(f"{row['question']}: a good trace has {good.value():g}, one that leaks {leak.value():g}")
    return f"POST /reward: a good trace outranks one that leaks in {len(rows)} of {len(rows)}"


def _builds(stack: Stack, rows: list[dict[str, str]]) -> str:
    with JobsClient(stack.url, key=stack.key) as jobs:
        upload = jobs.upload(stack.folder / "problems.jsonl")
        build = jobs.create_build(BuildRequest(dataset="chains", source=Source(upload=upload.id), n=SAMPLES))
        *_, ended = jobs.watch(build.id)
    counts = ended.counts
    if ended.state is not BuildState.done or (counts.samples, counts.missing) != (len(rows) * SAMPLES, 0):
        raise Failed(f"the build is {ended.state}: {counts}")
    exported = export(stack, "chains", stack.folder / "chains.jsonl")
    return f"POST /uploads, /builds, GET /versions/…/export: {counts.samples} samples, {exported}"


def export(stack: Stack, dataset: str, to: Path) -> str:
    """Rows and checksum of a data set's newest version, as it comes through the proxy."""
    with JobsClient(stack.url, key=stack.key) as jobs:
        newest = next(iter(jobs.versions(dataset)))
        to.unlink(missing_ok=True)
        jobs.export(newest.id, to)
    body = to.read_bytes()
    if not body:
        raise Failed(f"the export of {dataset} is empty")
    return f"{len(body.splitlines())} rows, sha256 {hashlib.sha256(body).hexdigest()[:12]}"


def inline(rows: list[dict[str, str]]) -> list[BuildProblem]:
    return [BuildProblem(question=row["question"], answer=row["answer"]) for row in rows]
