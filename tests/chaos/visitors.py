"""Everyone who uses a stack while it is updated, and what each of them sees."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from chaos.stand_in import UNSCORABLE, said, worth

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.jobs import AsyncJobsClient
from rlt_client.schemas.builds import BuildProblem, BuildRequest, BuildState
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.schemas.reward import RewardItem, RewardRequest

__all__ = ["Addresses", "Seen", "Visitors"]

PATIENCE = 240.0  # seconds that a client goes on asking: a database's restart on a busy machine
PAUSE = 0.2
N = 2
"""Samples of each problem of the small builds."""


@dataclass(frozen=True)
class Addresses:
    jobs: str
    teacher: str
    reward: str


@dataclass
class Seen:
    """Args:
    calls: that were answered as they should be.
    statuses: of single replies; what a client absorbs by asking again is counted here too.
    broken: single requests whose connection was refused or broke.
    longest: seconds of the slowest call.
    wrong: calls that failed for their caller, or got something else than is right.
    """

    calls: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)


class _Counting(httpx.AsyncHTTPTransport):
    """A refusal without Retry-After leaves its client to guess."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await super().handle_async_request(request)
        except httpx.TransportError:
            self._seen.broken += 1
            raise
        self._seen.statuses[response.status_code] += 1
        if response.status_code in (429, 503) and "retry-after" not in response.headers:
            self._seen.wrong.append(f"{request.method} {request.url.path}: {response.status_code} without Retry-After")
        if response.status_code >= 500 and response.status_code != 503:
            self._seen.wrong.append(f"{request.method} {request.url.path}: {response.status_code}")
        return response


class Visitors:
    """Threads are for whoever starts processes meanwhile; these all live in one event loop."""

    def __init__(self, addresses: Addresses, folder: Path) -> None:
        self.seen: dict[str, Seen] = {}
        self.submitted: dict[int, str] = {}
        """Small builds that were taken: their data sets."""
        self._addresses = addresses
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)
        self.followed: list[BuildState] = []

    def start(self, build: int, version: int) -> None:
        """`build` is looked at and followed, `version` downloaded again and again."""
        self._build, self._version = build, version
        self._thread.start()

    def stop(self) -> None:
        """The one who follows stays until the build has ended."""
        self._stop.set()
        self._thread.join(300)

    @property
    def wrong(self) -> list[str]:
        return [f"{name}: {line}" for name, seen in self.seen.items() for line in dict.fromkeys(seen.wrong)]

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for visitor in (self._looks, self._follows, self._downloads, self._submits, self._explains, self._scores):
                group.create_task(visitor())

    def _client(self, kind: type[Any], url: str, name: str) -> Any:
        seen = self.seen[name] = Seen()
        return kind(url, patience=PATIENCE, transport=_Counting(seen))

    async def _repeat(self, name: str, act: Callable[[int], Awaitable[str | None]]) -> None:
        """`act` says what was not right."""
        seen, index = self.seen[name], 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                wrong = await act(index)
            except Exception as error:  # whatever reached the caller
                wrong = repr(error)
            seen.longest = max(seen.longest, time.monotonic() - began)
            seen.calls += wrong is None
            if wrong is not None:
                seen.wrong.append(wrong)
            index += 1
            await asyncio.sleep(PAUSE)

    async def _looks(self) -> None:
        made = 0

        async def look(_: int) -> str | None:
            nonlocal made
            counts = (await jobs.build(self._build)).counts
            before, made = made, counts.samples - counts.missing
            return None if made >= before else f"{before} samples were made, then {made}"

        async with self._client(AsyncJobsClient, self._addresses.jobs, "looks") as jobs:
            await self._repeat("looks", look)

    async def _follows(self) -> None:
        async with self._client(AsyncJobsClient, self._addresses.jobs, "follows") as jobs:
            seen = self.seen["follows"]
            try:
                async for build in jobs.watch(self._build):
                    self.followed.append(build.state)
                    seen.calls += 1
            except Exception as error:  # it reached the caller
                seen.wrong.append(repr(error))

    async def _downloads(self) -> None:
        first = b""

        async def download(index: int) -> str | None:
            nonlocal first
            path = self._folder / f"export-{index}.jsonl"
            await jobs.export(self._version, path)
            found = path.read_bytes()
            path.unlink()
            first = first or found
            return None if found == first else f"{len(found)} bytes, other than the first {len(first)}"

        async with self._client(AsyncJobsClient, self._addresses.jobs, "downloads") as jobs:
            await self._repeat("downloads", download)

    async def _submits(self) -> None:
        async def submit(index: int) -> str | None:
            problems = [BuildProblem(question=f"S{index}", answer="A")]
            request = BuildRequest(dataset=f"small-{index}", problems=problems, n=N, seed=index, priority=9)
            build = await jobs.create_build(request)
            self.submitted[build.id] = request.dataset
            await asyncio.sleep(5)  # one or two a restart: each is worked on and published
            return None

        async with self._client(AsyncJobsClient, self._addresses.jobs, "submits") as jobs:
            await self._repeat("submits", submit)

    async def _explains(self) -> None:
        async def explain(index: int) -> str | None:
            reply = await teacher.explain(ExplainRequest(question=f"E{index}", answer="A", seed=index))
            found = reply.explanations[0].text
            return None if found == said(f"E{index}", index) else f"another explanation: {found}"

        async with self._client(AsyncTeacherClient, self._addresses.teacher, "explains") as teacher:
            await self._repeat("explains", explain)

    async def _scores(self) -> None:
        async def score(index: int) -> str | None:
            text = said(f"R{index}", index)
            item = RewardItem(question=f"R{index}", answer="A", explanation=text)
            found = (await reward.score_all(RewardRequest(items=[item], spec="ss_only"))).items[0]
            if worth(text) is None:
                return None if found.error and found.error.type == UNSCORABLE else f"a score of what has none: {found}"
            return None if found.reward == worth(text) else f"another score: {found.reward}"

        async with self._client(AsyncRewardClient, self._addresses.reward, "scores") as reward:
            await self._repeat("scores", score)
