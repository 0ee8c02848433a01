"""A vLLM server by HTTP: what is sent to it, and what its silence means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import httpx
from pydantic import BaseModel
from pydantic_core import to_json

from rlt_client.bearer import Bearer, Key
from rlt_client.errors import Unavailable
from rlt_teacher_server.engine import wire
from rlt_teacher_server.engine.vllm.direct import Direct

__all__ = ["ASK_S", "Reply", "Server"]

M = TypeVar("M", bound=BaseModel)

UNIX: Final = "unix:"
CONNECT_S: Final = 5.0  # an engine on the same network accepts at once or not at all
ASK_S: Final = 10.0  # for answers that take no work
HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def message(self) -> str:
        """What a refusal says."""
        return wire.message(self.body)

    def read(self, schema: type[M]) -> M:
        """Raises `Unavailable`, or `ItemError` for a refusal or a reply of another kind."""
        if not self.ok:
            raise wire.refusal(self.status, self.body)
        return wire.parse(schema, self.body)


class Server:
    """Args:
    address: `http://…`, `https://…`, or `unix:` and the path of a socket.
    transport: replaces the network in tests.
    """

    def __init__(self, address: str, *, key: Key | None, transport: httpx.AsyncBaseTransport | None) -> None:
        socket = Path(address.removeprefix(UNIX)) if address.startswith(UNIX) else None
        self._http = httpx.AsyncClient(
            base_url="http://vllm" if socket else address,
            headers=HEADERS,
            auth=Bearer(key) if key else None,
            timeout=httpx.Timeout(None, connect=CONNECT_S),  # what else takes how long is said at each call
            transport=transport or Direct(socket),
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None, *, limit: float = ASK_S) -> Reply:
        """Raises `Unavailable`: there is no reply within `limit` seconds."""
        content = None if body is None else to_json(body)
        with _answering(limit):
            async with asyncio.timeout(limit):
                response = await self._http.request(method, path, content=content)
        return Reply(response.status_code, response.content)

    @asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any], *, limit: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of the reply's body, as they come.

        Raises:
            ItemError: the engine says that the request itself is wrong.
            Unavailable: it does not answer, or not to its end within `limit` seconds.
        """
        with _answering(limit):
            async with asyncio.timeout(limit), self._http.stream("POST", path, content=to_json(body)) as response:
                if not response.is_success:
                    raise wire.refusal(response.status_code, await response.aread())
                # straight from the transport: httpx's own iterators would add a tenth to what a piece costs
                yield aiter(cast(httpx.AsyncByteStream, response.stream))


@contextmanager
def _answering(limit: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        detail = f"the engine did not answer within {limit:g} s"
        raise Unavailable(detail, type="engine_down", retry_after=1.0) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"the engine does not answer: {reason}", type="engine_down", retry_after=1.0) from error
