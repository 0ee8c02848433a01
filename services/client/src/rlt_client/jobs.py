"""Asynchronous client of the jobs service: data sets built from problems (`/builds` and its family).

async with AsyncJobsClient("http://127.0.0.1:8003", key=…) as jobs:
    build = await jobs.create_build(BuildRequest(dataset="chains", problems=[…], n=4))
    async for build in jobs.watch(build.id): print(build.counts)
    await jobs.export(build.version, Path("chains.jsonl"))
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, Final

from rlt_client._download import download
from rlt_client.aio import ServiceClient
from rlt_client.schemas.builds import (
    Build,
    BuildEvent,
    BuildPage,
    BuildRequest,
    BuildState,
    Dataset,
    DatasetPage,
    EventPage,
    ExportFormat,
    ExportShape,
    SamplePage,
    SampleRow,
    SampleSort,
    Upload,
    Version,
    VersionPage,
)

__all__ = ["ENDED", "AsyncJobsClient"]

ENDED: Final = frozenset({BuildState.done, BuildState.failed, BuildState.cancelled})
CHUNK: Final = 2**20


class AsyncJobsClient(ServiceClient):
    """Makes builds, follows them, and fetches what they made.

    Every method raises `APIError` where the service refuses, and `DeadlineExceeded`, `TransportError` or
    `ProtocolError` where no proper reply came.
    """

    async def create_build(self, request: BuildRequest, *, idempotency_key: str | None = None) -> Build:
        """Submit a build; it is accepted, not yet done. The same key with the same request gives the same build.

        A key is made up where none is given, so that a retried call never makes two builds.
        """
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
        return await self._http.request("POST", "/builds", body=request, headers=headers, reply=Build)

    async def build(self, id: int) -> Build:
        return await self._http.request("GET", f"/builds/{id}", reply=Build)

    async def builds(self, *, page: int = 100) -> AsyncIterator[Build]:
        """All builds of this key's owner, newest first, fetched `page` at a time."""
        async for each in self._pages("/builds", BuildPage, limit=page):
            for build in each.items:
                yield build

    async def watch(self, id: int, *, every: float = 1.0) -> AsyncIterator[Build]:
        """The build as it is now, then again each `every` seconds, the last one being the ended build."""
        while True:
            build = await self.build(id)
            yield build
            if build.state in ENDED:
                return
            await asyncio.sleep(every)

    async def pause(self, id: int) -> Build:
        return await self._http.request("POST", f"/builds/{id}/pause", reply=Build)

    async def resume(self, id: int) -> Build:
        return await self._http.request("POST", f"/builds/{id}/resume", reply=Build)

    async def cancel(self, id: int) -> Build:
        return await self._http.request("POST", f"/builds/{id}/cancel", reply=Build)

    async def samples(
        self,
        id: int,
        *,
        sort: SampleSort = SampleSort.by_index,
        descending: bool = False,
        texts: bool = False,
        page: int = 100,
    ) -> AsyncIterator[SampleRow]:
        """A build's samples, fetched `page` at a time; stop iterating and no more are fetched."""
        params = {"sort": sort.value, "descending": descending, "texts": texts, "limit": page}
        async for each in self._pages(f"/builds/{id}/samples", SamplePage, **params):
            for row in each.items:
                yield row

    async def events(self, id: int, *, page: int = 100) -> AsyncIterator[BuildEvent]:
        """What happened to a build, such as refused rows of its source."""
        async for each in self._pages(f"/builds/{id}/events", EventPage, limit=page):
            for event in each.items:
                yield event

    async def upload(self, source: Path | IO[bytes], *, name: str | None = None) -> Upload:
        """Send JSON lines, read piece by piece. Not retried: an open stream cannot be read twice."""
        if isinstance(source, Path):
            with source.open("rb") as file:
                return await self.upload(file, name=name or source.name)
        return await self._http.request(
            "POST",
            "/uploads",
            content=_chunks(source),
            headers={"content-type": "application/x-ndjson"},
            params={"name": name},
            reply=Upload,
            retry=False,
        )

    async def datasets(self, *, page: int = 100) -> AsyncIterator[Dataset]:
        async for each in self._pages("/datasets", DatasetPage, limit=page):
            for dataset in each.items:
                yield dataset

    async def versions(self, dataset: str, *, page: int = 100) -> AsyncIterator[Version]:
        """Versions of a data set, newest first."""
        async for each in self._pages(f"/datasets/{dataset}/versions", VersionPage, limit=page):
            for version in each.items:
                yield version

    async def version(self, id: int) -> Version:
        return await self._http.request("GET", f"/versions/{id}", reply=Version)

    async def export(
        self,
        version: int,
        to: Path,
        *,
        format: ExportFormat = ExportFormat.jsonl,
        shape: ExportShape = ExportShape.messages,
    ) -> int:
        """Write a version into the file `to`, which appears whole or not at all. Returns its bytes.

        It goes on after a broken connection; so does the next call after one that gave up or was killed, from a part
        file beside `to`. No deadline bounds the whole: it gives up after the client's patience without a byte.

        Raises:
            OSError: the file cannot be written, or somebody else is just writing it.
            ProtocolError: what came does not match the service's checksum.
        """
        params = {"format": format.value, "shape": shape.value}
        return await download(self._http, f"/versions/{version}/export", params, to)

    async def _pages(self, path: str, page: type[Any], **params: Any) -> AsyncIterator[Any]:
        cursor: str | None = None
        while True:
            each = await self._http.request("GET", path, params={**params, "cursor": cursor}, reply=page)
            yield each
            cursor = each.next
            if cursor is None:
                return


async def _chunks(source: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(source.read, CHUNK):
        yield piece
