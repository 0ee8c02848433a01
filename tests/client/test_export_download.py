"""Exports that break off and go on: within a call, from one call to the next, and never into a wrong file."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_client import AsyncJobsClient, JobsClient, _download
from rlt_client.errors import NotFound, ProtocolError, TransportError, Unavailable
from rlt_client.schemas.builds import ExportFormat, ExportShape

CONTENT = random.Random(0).randbytes(3_000_000)


class Service:
    """Keeps ranges, ETag and checksum as the jobs service does.

    `breaks`: after how many bytes of each reply the connection breaks; None, and beyond the list: never.
    `known`: whether it keeps what it sends; else the reply has no length and no checksum.
    """

    def __init__(self, content: bytes = CONTENT, *, breaks: list[int | None] | None = None, known: bool = True) -> None:
        self.content = content
        self.breaks = breaks or []
        self.known = known
        self.refusals: list[httpx.Response] = []
        self.asked: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if request.method == "HEAD":
            return httpx.Response(200, headers=self._marks())
        if self.refusals:
            return self.refusals.pop(0)
        start = self._start(request)
        if start > 0 and start >= len(self.content):
            problem = {"type": "range_not_satisfiable", "title": "No such range", "status": 416}
            return httpx.Response(416, json=problem)
        end = self.breaks.pop(0) if self.breaks else None
        headers = self._marks()
        if start:
            headers["content-range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return httpx.Response(206 if start else 200, headers=headers, content=self._body(start, end))

    def _start(self, request: httpx.Request) -> int:
        if not self.known or request.headers.get("if-range", self._etag) != self._etag:
            return 0
        return int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    @property
    def _etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()}"'

    def _marks(self) -> dict[str, str]:
        if not self.known:
            return {}
        digest = base64.b64encode(hashlib.sha256(self.content).digest()).decode()
        return {"etag": self._etag, "repr-digest": f"sha-256=:{digest}:"}

    async def _body(self, start: int, length: int | None) -> AsyncIterator[bytes]:
        yield self.content[start:] if length is None else self.content[start : start + length]
        if length is not None:
            raise httpx.RemoteProtocolError("peer closed connection")

    def client(self, **options: Any) -> AsyncJobsClient:
        return AsyncJobsClient("http://jobs", transport=httpx.MockTransport(self), **{"deadline": 60, **options})

    @property
    def ranges(self) -> list[str | None]:
        return [request.headers.get("range") for request in self.asked if request.method == "GET"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_download, "PAUSE", 0.001)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _names(to: Path) -> list[str]:
    return sorted(path.name for path in to.parent.iterdir())


def _part(to: Path) -> Path:
    (part,) = (path for path in to.parent.iterdir() if path.name.endswith(".part"))
    return part


async def test_an_export_appears_whole(to: Path) -> None:
    service = Service()
    async with service.client() as jobs:
        assert await jobs.export(5, to, format=ExportFormat.parquet, shape=ExportShape.raw) == len(CONTENT)
    assert _read(to) == CONTENT
    assert _names(to) == [to.name]
    (request,) = service.asked
    assert str(request.url) == "http://jobs/versions/5/export?format=parquet&shape=raw"
    assert request.headers["accept-encoding"] == "identity"


def test_so_does_one_of_the_blocking_client(to: Path) -> None:
    with JobsClient("http://jobs", transport=httpx.MockTransport(Service(breaks=[1_000]))) as jobs:
        assert jobs.export(5, to) == len(CONTENT)
    assert _read(to) == CONTENT


async def test_it_goes_on_where_the_connection_broke(to: Path) -> None:
    service = Service(breaks=[1_000_000, 500_000, 0])
    async with service.client() as jobs:
        assert await jobs.export(5, to) == len(CONTENT)
    assert _read(to) == CONTENT
    assert service.ranges == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]
    assert service.asked[1].headers["if-range"] == service._etag


async def test_a_part_of_another_file_is_given_up_as_the_service_says(to: Path) -> None:
    service = Service(breaks=[1_000_000])

    async def other(request: httpx.Request) -> httpx.Response:
        if request.headers.get("range"):
            service.content = CONTENT[::-1]
        return await service(request)

    async with AsyncJobsClient("http://jobs", transport=httpx.MockTransport(other)) as jobs:
        await jobs.export(5, to)
    assert _read(to) == CONTENT[::-1]


async def test_without_bytes_it_gives_up_and_the_next_call_goes_on(to: Path) -> None:
    _write(to, b"old")
    service = Service(breaks=[1_000_000, *[0] * 1_000])
    async with service.client(patience=0.05) as jobs:
        with pytest.raises(TransportError):
            await jobs.export(5, to)
    assert _read(to) == b"old"
    assert _part(to).stat().st_size == 1_000_000
    service.breaks, service.asked = [], []
    async with service.client() as jobs:
        await jobs.export(5, to)
    assert service.ranges == ["bytes=1000000-"]
    assert _read(to) == CONTENT
    assert _names(to) == [to.name]


async def test_a_killed_call_that_had_it_all_fetches_nothing_again(to: Path) -> None:
    service = Service(breaks=[len(CONTENT)])
    async with service.client(patience=0) as jobs:
        with pytest.raises(TransportError):
            await jobs.export(5, to)
    async with service.client() as jobs:
        await jobs.export(5, to)
    assert service.ranges == [None, f"bytes={len(CONTENT)}-"]
    assert _read(to) == CONTENT


@pytest.mark.parametrize("junk", [b"x" * 1_000, b"x" * (len(CONTENT) + 1)], ids=["short", "too long"])
async def test_a_part_that_turns_out_wrong_is_fetched_anew(junk: bytes, to: Path) -> None:
    async with Service(breaks=[1]).client(patience=0) as jobs:
        with pytest.raises(TransportError):
            await jobs.export(5, to)
    _write(_part(to), junk)
    service = Service()
    async with service.client() as jobs:
        await jobs.export(5, to)
    assert _read(to) == CONTENT
    assert service.ranges[-1] is None


async def test_parts_of_other_exports_are_left_alone(to: Path) -> None:
    async with Service(breaks=[1_000]).client(patience=0) as jobs:
        with pytest.raises(TransportError):
            await jobs.export(5, to)
    service = Service()
    async with service.client() as jobs:
        await jobs.export(5, to, shape=ExportShape.raw)
    assert service.ranges == [None]
    assert _part(to).stat().st_size == 1_000


async def test_what_does_not_match_its_checksum_is_refused(to: Path) -> None:
    service = Service()

    async def damaged(request: httpx.Request) -> httpx.Response:
        service.content = CONTENT
        reply = await service(request)
        service.content = CONTENT[:-1] + b"!"
        return reply

    async with AsyncJobsClient("http://jobs", transport=httpx.MockTransport(damaged)) as jobs:
        with pytest.raises(ProtocolError, match="checksum"):
            await jobs.export(5, to)
    assert _names(to) == []


async def test_a_first_stream_is_held_against_the_checksum_that_is_known_after_it(to: Path) -> None:
    service = Service(known=False)

    async def then_known(request: httpx.Request) -> httpx.Response:
        service.known = request.method == "HEAD"
        return await service(request)

    async with AsyncJobsClient("http://jobs", transport=httpx.MockTransport(then_known)) as jobs:
        assert await jobs.export(5, to) == len(CONTENT)
    assert [request.method for request in service.asked] == ["GET", "HEAD"]


async def test_a_service_that_keeps_nothing_is_believed_when_it_says_that_it_ended(to: Path) -> None:
    service = Service(known=False, breaks=[1_000])
    async with service.client() as jobs:
        assert await jobs.export(5, to) == len(CONTENT)  # it cannot go on, so it begins anew
    assert _read(to) == CONTENT


def _being_written() -> httpx.Response:
    return httpx.Response(503, json={"type": "export_being_written", "title": "later"})


async def test_an_export_that_is_being_written_is_waited_for_beyond_the_patience(to: Path) -> None:
    service = Service()
    service.refusals = [_being_written() for _ in range(5)]
    async with service.client(patience=0) as jobs:
        await jobs.export(5, to)
    assert _read(to) == CONTENT


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (httpx.Response(503, json={"type": "unavailable", "title": "not now"}), Unavailable),
        (httpx.Response(404, json={"type": "not_found", "title": "none"}), NotFound),
        (httpx.Response(500, content=b"<html>"), ProtocolError),
    ],
)
async def test_a_refusal_leaves_nothing_behind(reply: httpx.Response, error: type[Exception], to: Path) -> None:
    service = Service()
    service.refusals = [reply]
    async with service.client(patience=0) as jobs:
        with pytest.raises(error):
            await jobs.export(5, to)
    assert _names(to) == []


async def test_two_at_once_do_not_mix(to: Path) -> None:
    first, second = Service(), Service()

    async def meanwhile(request: httpx.Request) -> httpx.Response:
        async with second.client() as jobs:
            with pytest.raises(BlockingIOError, match="somebody else"):
                await jobs.export(5, to)
        return await first(request)

    async with AsyncJobsClient("http://jobs", transport=httpx.MockTransport(meanwhile)) as jobs:
        await jobs.export(5, to)
    assert _read(to) == CONTENT


async def test_a_folder_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    async with Service().client() as jobs:
        with pytest.raises(FileNotFoundError):
            await jobs.export(5, tmp_path / "none" / "out.jsonl")
