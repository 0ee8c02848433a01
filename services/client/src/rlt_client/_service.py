"""What all asynchronous clients share."""

from __future__ import annotations

from typing import Self

import httpx

from rlt_client._http import HTTP
from rlt_client.bearer import Key
from rlt_client.schemas.common import Reply

__all__ = ["ServiceClient"]


class ServiceClient:
    """What all clients share. Close it, or use it as `async with`.

    Args:
        base_url: where the service is, for example `http://127.0.0.1:8002`.
        key: sent as a bearer token; a function is called for each request, and again after a 401.
        deadline: seconds for one call, with its retries of broken connections and of 429, 502, 503 and 504.
        patience: seconds of it for which a service that fails so is asked again, for callers that would rather know;
            all if left out. They begin anew where a service is lost that had been at work on the call.
        max_connections: open connections at most.
        transport: replaces the network, for tests (`rlt_client.testing`).
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
        self._http = HTTP(
            base_url,
            key=key,
            deadline=deadline,
            patience=patience,
            max_connections=max_connections,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def ready(self, *, deadline: float = 10.0) -> None:
        """Ask once whether the service can do its work now.

        Raises:
            Unavailable: it says that it cannot, and why.
            DeadlineExceeded, TransportError, ProtocolError
        """
        await self._http.request("GET", "/readyz", reply=Reply, deadline=deadline, retry=False)
