"""The same clients without `async`: safe to share between threads, whose calls then travel together.

    with RewardClient("http://127.0.0.1:8002", key=…) as reward:
        score = reward.score(RewardItem(question=…, answer=…, explanation=…))

Each runs its asynchronous twin (`rlt_client.aio`) on one background event loop and takes the same arguments.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import ExitStack, suppress
from functools import wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient, ServiceClient
from rlt_client.jobs import AsyncJobsClient

A = TypeVar("A", bound=ServiceClient)
P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["JobsClient", "RewardClient", "TeacherClient"]


class _Blocking(Generic[A]):
    _twin: ClassVar[type[ServiceClient]]

    def __init__(self, base_url: str, **options: Any) -> None:
        """Takes what the asynchronous client takes."""
        self._stack = ExitStack()
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal())
        self._closing = threading.Lock()
        self._aio: Any = self._portal.call(self._open, base_url, options)

    async def _open(self, base_url: str, options: dict[str, Any]) -> ServiceClient:
        return self._twin(base_url, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._closing:
            if self._aio is not None:
                self._portal.call(self._aio.aclose)
                self._aio = None
                self._stack.close()


def _blocking(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Blocking[A], P], R]:
    """The blocking twin of an asynchronous method: its arguments, documentation and errors."""

    @wraps(method)
    def call(self: _Blocking[A], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._aio is None:
            raise RuntimeError("this client is closed")
        result: R = self._portal.call(lambda: method(self._aio, *args, **kwargs))
        return result

    return cast("Callable[Concatenate[_Blocking[A], P], R]", call)


def _iterating(
    method: Callable[Concatenate[A, P], AsyncIterator[R]],
) -> Callable[Concatenate[_Blocking[A], P], Generator[R, None, None]]:
    """The blocking twin of an asynchronous generator; closing the one closes the other."""

    @wraps(method)
    def iterate(self: _Blocking[A], *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        if self._aio is None:
            raise RuntimeError("this client is closed")
        items: Any = method(self._aio, *args, **kwargs)
        try:
            while True:
                try:
                    yield self._portal.call(items.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            with suppress(RuntimeError):  # its loop has ended, or is where this one is collected: either closes it
                self._portal.call(items.aclose)

    return cast("Callable[Concatenate[_Blocking[A], P], Generator[R, None, None]]", iterate)


class RewardClient(_Blocking[AsyncRewardClient]):
    """Scores explanations (`POST /reward`); see `AsyncRewardClient`."""

    _twin = AsyncRewardClient
    ready = _blocking(AsyncRewardClient.ready)
    score = _blocking(AsyncRewardClient.score)
    score_item = _blocking(AsyncRewardClient.score_item)
    score_all = _blocking(AsyncRewardClient.score_all)
    presets = _blocking(AsyncRewardClient.presets)
    models = _blocking(AsyncRewardClient.models)
    load_model = _blocking(AsyncRewardClient.load_model)
    unload_model = _blocking(AsyncRewardClient.unload_model)


class TeacherClient(_Blocking[AsyncTeacherClient]):
    """Asks a teacher for explanations (`POST /explain`, `POST /generate`, `/policies`); see `AsyncTeacherClient`."""

    _twin = AsyncTeacherClient
    ready = _blocking(AsyncTeacherClient.ready)
    explain = _blocking(AsyncTeacherClient.explain)
    explain_stream = _iterating(AsyncTeacherClient.explain_stream)
    explain_batch = _blocking(AsyncTeacherClient.explain_batch)
    generate = _blocking(AsyncTeacherClient.generate)
    policies = _blocking(AsyncTeacherClient.policies)
    load_policy = _blocking(AsyncTeacherClient.load_policy)
    activate_policy = _blocking(AsyncTeacherClient.activate_policy)
    rollback_policy = _blocking(AsyncTeacherClient.rollback_policy)
    unload_policy = _blocking(AsyncTeacherClient.unload_policy)
    delete_policy = _blocking(AsyncTeacherClient.delete_policy)


class JobsClient(_Blocking[AsyncJobsClient]):
    """Makes builds, follows them, and fetches what they made (`/builds`); see `AsyncJobsClient`."""

    _twin = AsyncJobsClient
    ready = _blocking(AsyncJobsClient.ready)
    create_build = _blocking(AsyncJobsClient.create_build)
    dry_run = _blocking(AsyncJobsClient.dry_run)
    rescore = _blocking(AsyncJobsClient.rescore)
    rerank = _blocking(AsyncJobsClient.rerank)
    build = _blocking(AsyncJobsClient.build)
    builds = _iterating(AsyncJobsClient.builds)
    watch = _iterating(AsyncJobsClient.watch)
    stream = _iterating(AsyncJobsClient.stream)
    report = _blocking(AsyncJobsClient.report)
    retry = _blocking(AsyncJobsClient.retry)
    set_priority = _blocking(AsyncJobsClient.set_priority)
    pause = _blocking(AsyncJobsClient.pause)
    resume = _blocking(AsyncJobsClient.resume)
    cancel = _blocking(AsyncJobsClient.cancel)
    samples = _iterating(AsyncJobsClient.samples)
    events = _iterating(AsyncJobsClient.events)
    upload = _blocking(AsyncJobsClient.upload)
    uploads = _iterating(AsyncJobsClient.uploads)
    datasets = _iterating(AsyncJobsClient.datasets)
    versions = _iterating(AsyncJobsClient.versions)
    version = _blocking(AsyncJobsClient.version)
    export = _blocking(AsyncJobsClient.export)
    delete_build = _blocking(AsyncJobsClient.delete_build)
    delete_version = _blocking(AsyncJobsClient.delete_version)
    delete_upload = _blocking(AsyncJobsClient.delete_upload)
