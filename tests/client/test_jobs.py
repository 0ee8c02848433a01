"""The client of the jobs service against a service that is played: pages, watching, uploads, whole files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_client import AsyncJobsClient, BuildProblem, BuildRequest
from rlt_client.errors import ProtocolError, Unavailable
from rlt_client.schemas.builds import SampleSort

COUNTS = {
    "problems": 1,
    "samples": 2,
    "missing": 0,
    "gen": {},
    "score": {},
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "bad_rows": 0,
    "shards": {},
}


def a_build(state: str = "running", id: int = 1) -> dict[str, Any]:
    empty = ["tokens_per_second", "eta_seconds", "scorer", "version", "error", "started_at", "finished_at"]
    given = {"id": id, "dataset": "d", "kind": "generate", "state": state, "n": 2, "priority": 0, "request": {}}
    return given | {"counts": COUNTS, "created_at": "2026-11-21T00:00:00Z"} | dict.fromkeys(empty)


class Played:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        answer = self.answers.pop(0)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    def client(self) -> AsyncJobsClient:
        return AsyncJobsClient("http://jobs", transport=httpx.MockTransport(self), deadline=60)


REQUEST = BuildRequest(dataset="d", problems=[BuildProblem(question="q", answer="a")], n=2)


async def test_a_retried_submission_carries_one_key() -> None:
    """The reply got lost behind a proxy: without the key the retry would be a second build."""
    played = Played(httpx.Response(502), a_build())
    async with played.client() as jobs:
        assert (await jobs.create_build(REQUEST)).id == 1
    first, second = (request.headers["idempotency-key"] for request in played.asked)
    assert first == second


async def test_a_key_of_ones_own_is_sent() -> None:
    played = Played(a_build(), a_build())
    async with played.client() as jobs:
        await jobs.create_build(REQUEST, idempotency_key="mine")
        await jobs.create_build(REQUEST)
    assert played.asked[0].headers["idempotency-key"] == "mine"
    assert played.asked[1].headers["idempotency-key"] != "mine"
    assert json.loads(played.asked[0].content)["problems"] == [{"question": "q", "answer": "a"}]


async def test_pages_are_fetched_only_as_far_as_one_reads() -> None:
    pages = [{"items": [a_build(id=i) for i in ids], "next": cursor} for ids, cursor in (((1, 2), "x"), ((3,), None))]
    played = Played(*pages)
    async with played.client() as jobs:
        assert [build.id async for build in jobs.builds(page=2)] == [1, 2, 3]
    assert [dict(request.url.params) for request in played.asked] == [{"limit": "2"}, {"limit": "2", "cursor": "x"}]

    played = Played(*pages)
    async with played.client() as jobs:
        async for _ in jobs.builds(page=2):
            break
    assert len(played.asked) == 1


async def test_samples_are_asked_for_in_the_order_one_wants() -> None:
    played = Played({"items": [], "next": None})
    async with played.client() as jobs:
        assert [row async for row in jobs.samples(7, sort=SampleSort.by_reward, descending=True, texts=True)] == []
    assert str(played.asked[0].url) == ("http://jobs/builds/7/samples?sort=reward&descending=true&texts=true&limit=100")


@pytest.mark.parametrize("act", ["pause", "resume", "cancel"])
async def test_actions_are_posted(act: str) -> None:
    played = Played(a_build())
    async with played.client() as jobs:
        await getattr(jobs, act)(3)
    assert (played.asked[0].method, played.asked[0].url.path) == ("POST", f"/builds/3/{act}")


UPLOAD = {"id": "00000000-0000-0000-0000-000000000001", "bytes": 3, "sha256": "0", "created_at": "2026-11-21T00:00:00Z"}


async def test_a_file_is_sent_as_it_is_under_its_name(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"x" * 3_000_000)
    played = Played(UPLOAD, UPLOAD)
    async with played.client() as jobs:
        await jobs.upload(file)
        await jobs.upload(io.BytesIO(b"abc"))
    assert played.asked[0].content == file.read_bytes()
    assert played.asked[0].headers["transfer-encoding"] == "chunked"
    assert dict(played.asked[0].url.params) == {"name": "p.jsonl"}
    assert played.asked[1].content == b"abc"


async def test_an_upload_is_not_sent_again() -> None:
    played = Played(httpx.Response(503, json={"type": "unavailable", "title": "not now"}))
    async with played.client() as jobs:
        with pytest.raises(Unavailable):
            await jobs.upload(io.BytesIO(b"abc"))
    assert len(played.asked) == 1


async def test_a_file_that_is_missing_is_not_uploaded(tmp_path: Path) -> None:
    async with Played().client() as jobs:
        with pytest.raises(FileNotFoundError):
            await jobs.upload(tmp_path / "none")


async def test_a_reply_that_is_none_is_a_protocol_error() -> None:
    async with Played({"hello": "world"}).client() as jobs:
        with pytest.raises(ProtocolError, match="did not answer a Build"):
            await jobs.build(1)
