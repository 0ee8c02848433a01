"""Exports on their way out: ranges of what is kept, streams while it is written, full disks, damage, many readers."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, cast

import httpx
import pytest
import pytest_asyncio
import uvicorn
from sqlalchemy import delete, select

from rlt_client import AsyncJobsClient
from rlt_client.errors import InternalError, Unavailable
from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.models import Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store import export as making
from rlt_jobs.store import exports
from rlt_jobs.store.exporting import ExportService
from rlt_jobs.store.exports import Exports, Key
from rlt_jobs.store.files import Damaged, Store, Stored
from rlt_jobs.store.models import ExportFile, Version
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = 40
RAW = {"shape": "raw"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def api(module_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(module_settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        yield client


_published: dict[str, int] = {}


@pytest_asyncio.fixture(loop_scope="module")
async def version(services: Services, make_build: Any) -> int:
    """One for all, without exports: version numbers are not what these tests are about."""
    async with services.database.begin() as session:
        await session.execute(delete(ExportFile))
    url = services.store.url
    if url not in _published:
        build_id = await make_build(problems=ROWS // 2, n=2, owner="local", selection={"mode": "all"})
        async with services.database.begin() as session:
            ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
        for shard_id in ids:
            await work_shard(services, shard_id)
        await publish(services, build_id)
        async with services.database.begin() as session:
            _published[url] = (await session.scalars(select(Version.id).where(Version.build_id == build_id))).one()
    return _published[url]


@pytest_asyncio.fixture(loop_scope="module")
async def whole(api: httpx.AsyncClient, version: int) -> bytes:
    reply = await api.get(f"/versions/{version}/export", params=RAW)
    assert reply.status_code == 200
    return reply.content


async def test_what_is_kept_says_what_it_is(api: httpx.AsyncClient, version: int, whole: bytes) -> None:
    digest = hashlib.sha256(whole)
    for ask in (api.get, api.head):
        reply = await ask(f"/versions/{version}/export", params=RAW)
        assert reply.headers["content-length"] == str(len(whole))
        assert reply.headers["etag"] == f'"{digest.hexdigest()}"'
        assert reply.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
        assert reply.headers["accept-ranges"] == "bytes"
        assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.content == b""


@pytest.mark.parametrize(
    ("range", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, None),
        ("bytes=-100", -100, None),
        ("bytes=0-99999999", 0, None),
        ("bytes=-99999999", 0, None),
    ],
)
async def test_ranges(
    api: httpx.AsyncClient, version: int, whole: bytes, range: str, start: int, end: int | None
) -> None:
    reply = await api.get(f"/versions/{version}/export", params=RAW, headers={"range": range})
    assert reply.status_code == 206
    assert reply.content == whole[start:end]
    first = start % len(whole)
    assert reply.headers["content-range"] == f"bytes {first}-{first + len(reply.content) - 1}/{len(whole)}"
    assert reply.headers["content-length"] == str(len(reply.content))


@pytest.mark.parametrize("range", ["bytes=10-5", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=x-"])
async def test_ranges_that_are_none_are_ignored(api: httpx.AsyncClient, version: int, whole: bytes, range: str) -> None:
    reply = await api.get(f"/versions/{version}/export", params=RAW, headers={"range": range})
    assert (reply.status_code, reply.content) == (200, whole)


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_range_behind_the_end_is_refused(
    api: httpx.AsyncClient, version: int, whole: bytes, beyond: int
) -> None:
    headers = {"range": f"bytes={len(whole) + beyond}-"}
    reply = await api.get(f"/versions/{version}/export", params=RAW, headers=headers)
    assert (reply.status_code, reply.json()["type"]) == (416, "range_not_satisfiable")
    assert reply.headers["content-range"] == f"bytes */{len(whole)}"


async def test_a_range_of_another_content_is_answered_whole(api: httpx.AsyncClient, version: int, whole: bytes) -> None:
    url, ours = f"/versions/{version}/export", f'"{hashlib.sha256(whole).hexdigest()}"'
    ranged = {"range": "bytes=10-"}
    same = await api.get(url, params=RAW, headers={**ranged, "if-range": ours})
    other = await api.get(url, params=RAW, headers={**ranged, "if-range": '"other"'})
    assert (same.status_code, same.content) == (206, whole[10:])
    assert (other.status_code, other.content) == (200, whole)


async def test_a_range_of_what_was_never_written_is_written_first(api: httpx.AsyncClient, version: int) -> None:
    reply = await api.get(f"/versions/{version}/export", headers={"range": "bytes=5-"})
    assert reply.status_code == 206
    assert reply.content == (await api.get(f"/versions/{version}/export")).content[5:]


async def test_others_do_not_get_it(api: httpx.AsyncClient, version: int, services: Services) -> None:
    service = ExportService(services.settings, services.database, services.store)
    for method in (service.describe, service.export):
        extra = {"along": True} if method == service.export else {}
        with pytest.raises(Exception, match="there is no version"):
            await method("eve", version, ExportFormat.jsonl, ExportShape.raw, **extra)
    await service.close()


async def test_head_makes_nothing(api: httpx.AsyncClient, version: int, database: Database) -> None:
    reply = await api.head(f"/versions/{version}/export", params={"shape": "sharegpt"})
    assert reply.status_code == 200
    assert not {"content-length", "etag"} & reply.headers.keys()
    async with database.begin() as session:
        assert (await session.scalars(select(ExportFile))).all() == []


async def _kept(services: Services) -> list[ExportFile]:
    async with services.database.begin() as session:
        return list((await session.scalars(select(ExportFile))).all())


async def test_it_is_written_once(api: httpx.AsyncClient, version: int, whole: bytes, services: Services) -> None:
    (kept,) = await _kept(services)
    assert (await api.get(f"/versions/{version}/export", params=RAW)).content == whole
    (again,) = await _kept(services)
    assert again.uri == kept.uri
    assert again.asked_at > kept.asked_at
    services.store.verify(Stored(kept.uri, kept.bytes, kept.sha256))


def _overwrite(store: Store, uri: str, content: bytes) -> None:
    path = store.local(uri)
    assert path is not None
    path.write_bytes(content)


@pytest.mark.parametrize("cut", [True, False], ids=["shorter", "changed"])
async def test_a_kept_export_that_was_damaged_is_made_anew(
    api: httpx.AsyncClient, version: int, whole: bytes, services: Services, cut: bool
) -> None:
    (kept,) = await _kept(services)
    _overwrite(services.store, kept.uri, whole[:-1] if cut else whole[:-2] + b"!\n")
    if not cut:  # seen only while it is read: the connection breaks before the last piece
        with pytest.raises(Damaged):
            await api.get(f"/versions/{version}/export", params=RAW)
    assert (await api.get(f"/versions/{version}/export", params=RAW)).content == whole
    (again,) = await _kept(services)
    assert again.uri != kept.uri


class Slow:
    """An `Exports` whose pieces are single rows, read along as slowly as a test wants."""

    def __init__(self, services: Services, version: int) -> None:
        self.services = services
        self.exports = Exports(services.database, services.store)
        self.service = ExportService(services.settings, services.database, services.store)
        self.key = Key(version, ExportFormat.jsonl, ExportShape.raw)

    async def fetch(self, *, along: bool = True) -> Any:
        export = await self.service._make("local", self.key.version_id, self.key.shape)
        return await self.exports.fetch(self.key, export, along=along)

    async def written(self) -> Stored:
        async with asyncio.timeout(60):
            while not (found := await self.exports.stored(self.key)):  # noqa: ASYNC110 it is told to its readers alone
                await asyncio.sleep(0.01)
        return found


@pytest_asyncio.fixture(loop_scope="module")
async def slow(services: Services, version: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slow]:
    monkeypatch.setattr(making, "PIECE", 100)
    monkeypatch.setattr(exports, "AHEAD", 2)
    monkeypatch.setattr(exports, "AT_ONCE_SECONDS", 0.0)
    made = Slow(services, version)
    yield made
    await made.exports.close()
    await made.service.close()


async def test_the_first_reads_while_it_is_written(slow: Slow, whole: bytes, services: Services) -> None:
    async with services.database.begin() as session:
        await session.execute(delete(ExportFile))
    stream = await slow.fetch()
    first = await anext(stream)
    assert await slow.exports.stored(slow.key) is None
    assert first + b"".join([piece async for piece in stream]) == whole
    assert (await slow.exports.stored(slow.key)) is not None


async def test_one_who_leaves_does_not_end_the_writing(slow: Slow) -> None:
    stream = await slow.fetch()
    await anext(stream)
    await stream.aclose()
    stored = await slow.written()
    slow.services.store.verify(stored)


async def test_one_who_stalls_is_left_behind_and_catches_up(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "STALLED_SECONDS", 0.02)
    stream = await slow.fetch()
    first = await anext(stream)
    stored = await slow.written()
    got = first + b"".join([piece async for piece in stream])
    assert hashlib.sha256(got).hexdigest() == stored.sha256


async def test_a_second_one_is_not_kept_waiting_by_a_slow_first(slow: Slow) -> None:
    stream = await slow.fetch()
    first = await anext(stream)
    stored = await slow.fetch()
    assert isinstance(stored, Stored)
    got = first + b"".join([piece async for piece in stream])
    assert hashlib.sha256(got).hexdigest() == stored.sha256


async def test_a_writing_that_takes_long_is_told_to_the_second(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "WAIT_SECONDS", 0.0)
    stream = await slow.fetch()
    with pytest.raises(Unavailable, match="bytes so far") as refused:
        await slow.fetch(along=False)
    assert (refused.value.type, refused.value.retry_after) == ("export_being_written", exports.RETRY_SECONDS)
    assert b"".join([piece async for piece in stream])


class Full:
    """Refuses to write once so many bytes have been."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 3_000])
async def test_a_full_disk_costs_the_copy_and_not_the_stream(
    slow: Slow, whole: bytes, services: Services, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with services.database.begin() as session:
        await session.execute(delete(ExportFile))
    create = Store.create

    def full(store: Store, uri: str) -> Any:
        context = create(store, uri)
        enter = type(context).__enter__

        class Context:
            def __enter__(self) -> Any:
                pending = enter(context)
                pending.writer._file = cast(IO[bytes], Full(pending.writer._file, room))
                return pending

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

        return Context()

    monkeypatch.setattr(Store, "create", full)
    found = await slow.fetch()
    assert b"".join([piece async for piece in found]) == whole
    again = await slow.fetch(along=False)  # a range is asked for: nothing to take it from, so all comes
    assert b"".join([piece async for piece in again]) == whole
    assert await slow.exports.stored(slow.key) is None
    assert not [entry for entry in services.store.list(f"exports/{slow.key.version_id}") if "part" in entry.uri]


async def test_two_processes_keep_one(slow: Slow, services: Services) -> None:
    other = Slow(services, slow.key.version_id)
    streams = [await each.fetch() for each in (slow, other)]
    got = await asyncio.gather(*(_read(stream) for stream in streams))
    assert got[0] == got[1]
    (kept,) = await _kept(services)
    there = [entry.uri for entry in services.store.list(f"exports/{slow.key.version_id}")]
    assert there.count(kept.uri) == 1
    await other.exports.close()
    await other.service.close()


async def _read(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.fixture
def broken(services: Services, version: int) -> Iterator[Path]:
    """The version's trace file with a byte of its texts changed."""
    path = next(Path(services.store.url).glob("builds/*/traces/*.parquet"))
    kept = path.read_bytes()
    middle = len(kept) // 3
    path.write_bytes(kept[:middle] + bytes([kept[middle] ^ 0xFF]) + kept[middle + 1 :])
    yield path
    path.write_bytes(kept)


async def test_a_changed_byte_breaks_the_stream(slow: Slow, broken: Path) -> None:
    """Its size is right, so nothing is seen before it is read; the page's checksum tells."""

    async def fetched() -> bytes:
        return await _read(await slow.fetch())

    with pytest.raises((Damaged, InternalError)):
        await fetched()
    assert await slow.exports.stored(slow.key) is None


async def test_what_is_written_is_given_up_when_the_process_ends(slow: Slow, services: Services) -> None:
    before = {entry.uri for entry in services.store.list("exports")}
    stream = await slow.fetch()
    await anext(stream)
    await slow.exports.close()
    assert {entry.uri for entry in services.store.list("exports")} == before


@pytest_asyncio.fixture(loop_scope="module")
async def served(module_settings: Settings) -> AsyncIterator[str]:
    app = build_app(module_settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


async def test_a_client_goes_on_over_real_connections(served: str, version: int, whole: bytes, tmp_path: Path) -> None:
    to = tmp_path / "rows.jsonl"
    port = int(served.rpartition(":")[2])

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes a request on, and less of each reply than there is, until nothing is left to cut."""
        upstream, down = await asyncio.open_connection("127.0.0.1", port)
        down.write(await reader.readuntil(b"\r\n\r\n"))
        writer.write(await upstream.readuntil(b"\r\n\r\n"))
        writer.write(await upstream.read(len(whole) // 3))
        await writer.drain()
        for each in (writer, down):
            each.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as proxy:
        url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        async with AsyncJobsClient(url, deadline=20) as jobs:
            assert await jobs.export(version, to, shape=ExportShape.raw) == len(whole)
    assert await asyncio.to_thread(to.read_bytes) == whole
