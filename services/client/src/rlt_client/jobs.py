"""Asynchronous client of the jobs service: data sets built from problems (`/builds` and its family).

async with AsyncJobsClient("http://127.0.0.1:8003", key=…) as jobs:
    build = await jobs.create_build(BuildRequest(dataset="chains", problems=[…], n=4))
    async for build in jobs.watch(build.id): print(build.counts)
    await jobs.export(build.version, Path("chains.jsonl"))
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote
from uuid import UUID

from pydantic import ValidationError

from rlt_client._download import download
from rlt_client._events import ServerSentEvent, read_events
from rlt_client.aio import ServiceClient
from rlt_client.errors import NotFound, ProtocolError, TransportError
from rlt_client.schemas.builds import (
    Build,
    BuildEvent,
    BuildPage,
    BuildReport,
    BuildRequest,
    BuildState,
    Dataset,
    DatasetPage,
    DryRun,
    EventPage,
    ExportFormat,
    ExportShape,
    PriorityRequest,
    RerankRequest,
    RescoreRequest,
    RetryRequest,
    SamplePage,
    SampleRow,
    SampleSort,
    Selection,
    Upload,
    UploadPage,
    Version,
    VersionPage,
)
from rlt_client.schemas.common import GenStatus, Reply, Request, ScoreStatus

__all__ = ["ENDED", "AsyncJobsClient", "StreamSilent"]

ENDED: Final = frozenset({BuildState.done, BuildState.failed, BuildState.cancelled})
CHUNK: Final = 2**20
FIRST: Final = 10.0  # seconds for the first event, which the service sends at once
IDLE: Final = 60.0  # seconds of silence: four of the service's signs of life
AGAIN: Final = 1.0  # seconds before a stream that ended too soon is asked for again
MEDIA_TYPES: Final = {
    ".jsonl": "application/x-ndjson",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
}


class StreamSilent(TransportError):
    """A stream of events that gives none, not even the first."""


class AsyncJobsClient(ServiceClient):
    """Makes builds, follows them, and fetches what they made.

    Every method raises `APIError` where the service refuses, and `DeadlineExceeded`, `TransportError` or
    `ProtocolError` where no proper reply came.
    """

    async def create_build(self, request: BuildRequest, *, idempotency_key: str | None = None) -> Build:
        """Submit a build; it is accepted, not yet done. The same key with the same request gives the same build.

        A key is made up where none is given, so that a retried call never makes two builds.
        """
        return await self._submit("/builds", request, idempotency_key)

    async def dry_run(self, request: BuildRequest) -> DryRun:
        """What a build would do: counts, refused rows, prompts as the teacher reads them. Nothing is stored."""
        return await self._http.request("POST", "/builds", body=request, params={"dry_run": "true"}, reply=DryRun)

    async def rescore(self, id: int, request: RescoreRequest, *, idempotency_key: str | None = None) -> Build:
        """Score the samples of a finished build again: a build of its own, which publishes a new version."""
        return await self._submit(f"/builds/{id}/rescore", request, idempotency_key)

    async def rerank(self, version: int, selection: Selection, *, idempotency_key: str | None = None) -> Build:
        """Other rows from the samples and scores of a version: a build that computes nothing but a new version."""
        return await self._submit(f"/versions/{version}/rerank", RerankRequest(selection=selection), idempotency_key)

    async def _submit(self, path: str, request: Request, key: str | None) -> Build:
        headers = {"idempotency-key": key or str(uuid.uuid4())}
        return await self._http.request("POST", path, body=request, headers=headers, reply=Build)

    async def retry(self, id: int, request: RetryRequest | None = None) -> Build:
        """Ask again for samples that failed, engine errors and cancelled ones if nothing else is said.

        The build runs again and publishes another version, whose parent is its last.
        """
        return await self._http.request("POST", f"/builds/{id}/retry", body=request or RetryRequest(), reply=Build)

    async def set_priority(self, id: int, priority: int) -> Build:
        """0 to 9; 9 goes first. Shards that are claimed from now on go by it."""
        body = PriorityRequest(priority=priority)
        return await self._http.request("POST", f"/builds/{id}/priority", body=body, reply=Build)

    async def report(self, id: int) -> BuildReport:
        """Why samples failed, where they were cut off, how rewards spread."""
        return await self._http.request("GET", f"/builds/{id}/report", reply=BuildReport)

    async def delete_build(self, id: int) -> None:
        """Hide a build that has ended at once; its rows and files go when the service's retention is over."""
        await self._http.request("DELETE", f"/builds/{id}", reply=Reply)

    async def delete_version(self, id: int) -> None:
        await self._http.request("DELETE", f"/versions/{id}", reply=Reply)

    async def delete_upload(self, id: UUID) -> None:
        await self._http.request("DELETE", f"/uploads/{id}", reply=Reply)

    async def build(self, id: int) -> Build:
        return await self._http.request("GET", f"/builds/{id}", reply=Build)

    async def builds(self, *, page: int = 100) -> AsyncIterator[Build]:
        """All builds of this key's owner, newest first, fetched `page` at a time."""
        async for each in self._pages("/builds", BuildPage, limit=page):
            for build in each.items:
                yield build

    async def watch(self, id: int, *, every: float = 1.0) -> AsyncGenerator[Build, None]:
        """The build as it is now, then whenever it has changed, the last one being the ended build.

        Follows the service's stream; where there is none (an older service, a proxy that holds events back) it asks
        each `every` seconds.
        """
        last = None
        try:
            async with aclosing(self.stream(id)) as news:
                async for each in news:
                    if isinstance(each, Build) and each != last:  # the end is told as a change, too
                        last = each
                        yield each
            return
        except (NotFound, ProtocolError, StreamSilent):
            pass
        while True:
            build = await self.build(id)
            yield build
            if build.state in ENDED:
                return
            await asyncio.sleep(every)

    async def stream(
        self, id: int, *, last_event: int | None = None, idle: float = IDLE
    ) -> AsyncGenerator[Build | BuildEvent, None]:
        """The build now and whenever it has changed, at most each second, and its events; ends with the ended build.

        A stream that breaks off is taken up again behind the last event that came. Close the iterator to leave:

            async with aclosing(jobs.stream(id)) as news:
                async for each in news: …

        Args:
            last_event: id of the last event that is known already, 0 for all; without it, events from now on.
            idle: seconds without a sign of life (the service sends one every 15 s) after which it counts as gone.

        Raises:
            StreamSilent: nothing came at all within `FIRST` seconds; something between may hold events back.
            TransportError: the service was not reached again within the client's patience.
        """
        first = True
        while True:
            headers = {} if last_event is None else {"last-event-id": str(last_event)}
            opened = False
            try:
                async with (
                    self._http.stream("GET", f"/builds/{id}/stream", headers=headers, retry=True) as response,
                    aclosing(read_events(response, until=math.inf, idle=FIRST if first else idle)) as events,
                ):
                    opened = True
                    async for event in events:
                        each = _news(event)
                        if each is None:
                            continue
                        first = False
                        last_event = each.id if isinstance(each, BuildEvent) else last_event
                        yield each
                        if event.name == "done":
                            return
            except TransportError as error:
                if first:
                    raise StreamSilent(str(error)) from error
                if not opened:
                    raise
            await asyncio.sleep(AGAIN)

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
        gen_status: GenStatus | None = None,
        score_status: ScoreStatus | None = None,
        texts: bool = False,
        page: int = 100,
    ) -> AsyncIterator[SampleRow]:
        """A build's samples, fetched `page` at a time; stop iterating and no more are fetched."""
        params: dict[str, Any] = {"sort": sort.value, "descending": descending, "texts": texts, "limit": page}
        params |= {"gen_status": gen_status, "score_status": score_status}
        async for each in self._pages(f"/builds/{id}/samples", SamplePage, **params):
            for row in each.items:
                yield row

    async def events(self, id: int, *, page: int = 100) -> AsyncIterator[BuildEvent]:
        """What happened to a build, such as refused rows of its source."""
        async for each in self._pages(f"/builds/{id}/events", EventPage, limit=page):
            for event in each.items:
                yield event

    async def upload(self, source: Path | IO[bytes], *, name: str | None = None) -> Upload:
        """Send JSON lines, CSV or Parquet, piece by piece. Not retried: an open stream cannot be read twice.

        The suffix of the name tells which of them it is, else the service looks at the content.
        """
        if isinstance(source, Path):
            with source.open("rb") as file:
                return await self.upload(file, name=name or source.name)
        return await self._http.request(
            "POST",
            "/uploads",
            content=_chunks(source),
            headers={"content-type": MEDIA_TYPES.get(Path(name or "").suffix, "application/octet-stream")},
            params={"name": name},
            reply=Upload,
            retry=False,
        )

    async def uploads(self, *, page: int = 100) -> AsyncIterator[Upload]:
        """What was uploaded and not deleted, newest first."""
        async for each in self._pages("/uploads", UploadPage, limit=page):
            for upload in each.items:
                yield upload

    async def datasets(self, *, page: int = 100) -> AsyncIterator[Dataset]:
        async for each in self._pages("/datasets", DatasetPage, limit=page):
            for dataset in each.items:
                yield dataset

    async def versions(self, dataset: str, *, page: int = 100) -> AsyncIterator[Version]:
        """Versions of a data set, newest first."""
        async for each in self._pages(f"/datasets/{quote(dataset, safe='')}/versions", VersionPage, limit=page):
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


def _news(event: ServerSentEvent) -> Build | BuildEvent | None:
    """None for an event that this version does not know. Raises `ProtocolError`."""
    kinds: dict[str, type[Build] | type[BuildEvent]] = {"progress": Build, "done": Build, "event": BuildEvent}
    try:
        return kinds[event.name].model_validate_json(event.data) if event.name in kinds else None
    except ValidationError as error:
        raise ProtocolError(f"the stream's {event.name} is none: {error}") from error


async def _chunks(source: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(source.read, CHUNK):
        yield piece
