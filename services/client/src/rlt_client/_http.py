"""One HTTP connection pool with the platform's retry policy: the only level at which HTTP calls are retried."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from rlt_client._lanes import Lanes
from rlt_client._waiting import CONNECT_S, Absence, Patience
from rlt_client.bearer import Bearer, Key
from rlt_client.errors import (
    APIError,
    DeadlineExceeded,
    Overloaded,
    ProtocolError,
    Timeout,
    TransportError,
    Unavailable,
    error_from_problem,
)
from rlt_client.schemas.common import Problem

M = TypeVar("M", bound=BaseModel)

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0  # a restarted server is found again within this time
RETRIED: Final = (Overloaded, Unavailable, Timeout)


class HTTP:
    """Args:
    base_url: where the service is, for example `http://127.0.0.1:8002`.
    key: sent as a bearer token; what is called for it is called for each request, and again after a 401.
    deadline: seconds for one call with all its retries.
    patience: seconds within a call during which failures are retried; as long as the deadline if None.
    transport: replaces the network in tests.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: Key | None = None,
        deadline: float = 600.0,
        patience: float | None = None,
        max_connections: int = 256,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url
        self.deadline = deadline
        self.patience = patience
        self._absence = Absence(base_url)
        self._client = httpx.AsyncClient(
            base_url=base_url,
            auth=Bearer(key) if key else None,
            timeout=httpx.Timeout(None, connect=CONNECT_S),  # the deadline bounds the rest
            transport=transport,
            mounts=_lanes(max_connections) if transport is None else None,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        reply: type[M],
        body: BaseModel | None = None,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        retry: bool = True,
    ) -> M:
        """One call, retried on broken connections and 429/502/503/504 with back-off inside the deadline.

        Raises:
            APIError: the service refused (its subclass says how); the last refusal once the deadline is near.
            DeadlineExceeded, TransportError: no reply.
            ProtocolError: a reply that is not the protocol's.
        """
        seconds = self.deadline if deadline is None else deadline
        request = self._build(method, path, seconds, body=body, content=content, headers=headers, params=params)
        return _parse(await self._send(request, seconds, retry), reply)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        retry: bool = False,
    ) -> AsyncIterator[httpx.Response]:
        """A reply read piece by piece; retried, if at all, until it begins, since a part may have been used by then.

        Args:
            deadline: seconds until it begins.

        Raises what `request` raises.
        """
        seconds = self.deadline if deadline is None else deadline
        request = self._build(method, path, seconds, body=body, headers=headers, params=params)
        response = await self._send(request, seconds, retry, stream=True)
        try:
            yield response
        except httpx.TransportError as error:
            raise TransportError(f"{method} {path}: {error!r}") from error
        finally:
            await response.aclose()

    def _build(
        self,
        method: str,
        path: str,
        seconds: float,
        *,
        body: BaseModel | None = None,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> httpx.Request:
        if body is not None:
            content = body.model_dump_json(by_alias=True, exclude_none=True)
            headers = {"content-type": "application/json", **(headers or {})}
        request = self._client.build_request(
            method, path, content=content, headers=headers, params=_present(params), timeout=None
        )
        request.extensions["timeout"] = {"connect": CONNECT_S, "pool": seconds, "read": seconds, "write": seconds}
        return request

    async def _send(
        self, request: httpx.Request, seconds: float, retry: bool, *, stream: bool = False
    ) -> httpx.Response:
        try:
            async with asyncio.timeout(seconds):
                patience = seconds if self.patience is None else min(self.patience, seconds)
                return await self._persist(request, Patience(patience), retry, stream)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{request.method} {request.url}: no answer within {seconds:g} s") from error

    async def _persist(self, request: httpx.Request, patience: Patience, retry: bool, stream: bool) -> httpx.Response:
        pause = FIRST_PAUSE
        while True:
            patience.asks()
            try:
                response = await self._client.send(request, stream=stream)
                if response.is_success:
                    self._absence.over()
                    return response
                await response.aread()
                raise _refusal(response)
            except (httpx.TransportError, *RETRIED) as caught:
                if patience.begins_anew(caught):
                    pause = FIRST_PAUSE
                error = _translated(caught, request)
                wait = getattr(error, "retry_after", None) or pause * random.uniform(0.5, 1.5)  # noqa: S311 jitter
                if not retry or not patience.lasts(wait):
                    raise error from caught
                self._absence.goes_on(error)
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)


def _lanes(connections: int) -> dict[str, httpx.AsyncBaseTransport] | None:
    """Beside the mounts that httpx makes of HTTP_PROXY and its kin, which must keep what they are for."""
    if "ALL_PROXY" in os.environ or "all_proxy" in os.environ:
        return None
    return {"all://": Lanes(connections)}


def _present(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _translated(error: Exception, request: httpx.Request) -> Exception:
    if isinstance(error, httpx.TransportError):
        return TransportError(f"{request.method} {request.url}: {error or type(error).__name__}")
    return error


def _refusal(response: httpx.Response) -> APIError | ProtocolError:
    retry_after = response.headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        if response.status_code in (429, 502, 503, 504):  # a proxy's own page, not ours
            problem = Problem(type="proxy", title=f"HTTP {response.status_code}", detail=response.text[:200])
        else:
            return ProtocolError(f"HTTP {response.status_code} without a problem document: {response.text[:200]!r}")
    problem.status = response.status_code
    return error_from_problem(problem, retry_after=seconds)


def _parse(response: httpx.Response, reply: type[M]) -> M:
    try:
        return reply.model_validate_json(response.content or b"{}")
    except ValidationError as error:
        raise ProtocolError(f"{response.request.url} did not answer a {reply.__name__}: {error}") from error
