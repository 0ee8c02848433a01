"""A teacher and reward server as a process of its own: `python -m chaos.stand_in PORT LATENCY HOST [HELD]`.

It computes nothing. The properties it keeps: it ends as our servers do, finishing what is under way, and what a request
gets depends on its question and seed (a score: on its texts) alone, as from a deterministic engine, so that what is
asked for again after a crash is the same.

Explanations of problem HELD and all behind it are not given before there is a file `let_go` in its folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import math
import re
import sys
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlt_client.errors import APIError, Overloaded
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.schemas.reward import RewardItem
from rlt_client.testing import FakePlatform
from rlt_service.draining import Drainable, DrainingServer

__all__ = ["LET_GO", "UNSCORABLE", "said", "worth"]

UNSCORABLE = "too_strange"  # the type of a score's error
GRACE = 30.0  # seconds for requests under way after SIGTERM: the servers' own
REFUSED = 61  # one request of so many is told to come again: flow control under fire, too
LET_GO = "let_go"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def said(question: str, seed: int | None) -> str:
    """The explanation of a question."""
    return f"{question} because {hashlib.sha256(f'{question}/{seed}'.encode()).hexdigest()}"


def worth(text: str) -> float | None:
    """The reward of an explanation, −10 … 0; None for one in 40, which cannot be scored."""
    found = _DIGEST.search(text)
    value = int(found.group()[:8], 16) if found else 0
    return None if value % 40 == 0 else -10 * value / 2**32


def _reward(item: RewardItem) -> float:
    value = worth(item.explanation or item.completion or "")
    if value is None:
        raise ValueError(UNSCORABLE)
    return value


def app(latency: float, held: float = math.inf) -> Starlette:
    """`latency`: mean seconds of an explanation; a score takes a tenth. `held`: number of the first problem held."""
    asked = itertools.count(1)

    def refuse(request: httpx.Request) -> APIError | None:
        if request.url.path == "/readyz" or next(asked) % REFUSED:
            return None
        return Overloaded("busy", retry_after=0.2)

    platform = FakePlatform(reward=_reward, explain=lambda request, _: _explain(request), refuse=refuse)

    async def answer(request: Request) -> Response:
        body = await request.body()
        if request.method == "POST":
            mean = latency if request.url.path == "/explain" else latency / 10
            await asyncio.sleep(mean * (0.5 + hashlib.sha256(body).digest()[0] / 255))
        if held < math.inf and request.url.path == "/explain" and _number(body) >= held:
            while not _let_go():  # noqa: ASYNC110 another process says so
                await asyncio.sleep(0.1)
        reply = platform.handle(httpx.Request(request.method, str(request.url), content=body))
        platform.requests.clear()  # it would grow for as long as the process lives
        headers = {name: value for name, value in reply.headers.items() if name in ("content-type", "retry-after")}
        return Response(reply.content, reply.status_code, headers)

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


def _explain(request: ExplainRequest) -> str:
    return said(request.question, request.seed)


def _let_go() -> bool:
    return Path(LET_GO).exists()


def _number(body: bytes) -> int:
    """Of the problem `Q17`: 17."""
    return int(json.loads(body)["question"].removeprefix("Q"))


if __name__ == "__main__":
    drainable = Drainable(app(float(sys.argv[2]), *map(int, sys.argv[4:])))
    config = uvicorn.Config(drainable, host=sys.argv[3], port=int(sys.argv[1]), log_level="warning")
    DrainingServer(config, drainable, grace=GRACE).run()
