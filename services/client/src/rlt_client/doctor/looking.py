"""Asks the servers. What does not answer is a fact like others: nothing here raises for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from rlt_client._http import HTTP
from rlt_client.doctor.facts import Facts, Named, ServerFacts, ServerFormats
from rlt_client.errors import APIError, ProtocolError, RLTError, TransportError
from rlt_client.formats import shipped_formats
from rlt_client.schemas.common import Reply, Scope
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse
from rlt_client.schemas.health import JobsHealth
from rlt_client.schemas.models import ModelList
from rlt_client.schemas.policies import PolicyList

__all__ = ["look"]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

FIRST_SIGN_S: Final = 5.0
READY_S: Final = 15.0  # the servers themselves give up a check after 10
CALL_S: Final = 20.0  # of what a server answers from memory, a slow disk or database behind it included
EXPLAIN_S: Final = 120.0  # a busy engine has a queue before it
TOKENS: Final = 64  # of the explanation that is asked for: enough to have log-probs
AGAIN_S: Final = 3.0  # a shard that is ready for as long, with nobody at work, is not about to be taken
QUESTION: Final = ("What is 17 + 25?", "42")


async def look(
    servers: Mapping[str, tuple[str, str | None]],
    *,
    explain: bool = True,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Facts:
    """The facts of a stack.

    Args:
        servers: URL and key of `teacher`, `reward` and `jobs`.
        explain: ask for one short explanation and its score, which costs the models a second or so.
        transport: replaces the network, for tests.
    """
    seen = {name: ServerFacts(name, url, with_key=key is not None) for name, (url, key) in servers.items()}
    facts = Facts(version("rlt-client"), seen)
    acts = {"teacher": _teacher, "reward": _reward, "jobs": _jobs}

    async def one(name: str) -> None:
        url, key = servers[name]
        async with HTTP(url, key=key, patience=0.0, transport=transport) as http:
            await _anybody(seen[name], transport)
            if seen[name].away is None:
                await acts[name](http, facts)

    await asyncio.gather(*map(one, servers))
    teacher = seen.get("teacher")
    if explain and teacher is not None and teacher.away is None and not any(teacher.refusals.values()):
        url, key = servers["teacher"]
        async with HTTP(url, key=key, patience=0.0, transport=transport) as http:
            facts.explained = await _explained(http, facts)
    return facts


async def _anybody(seen: ServerFacts, transport: httpx.AsyncBaseTransport | None) -> None:
    """What a server tells without a key."""
    try:
        async with httpx.AsyncClient(base_url=seen.url, timeout=FIRST_SIGN_S, transport=transport) as plain:
            asked = time.time()
            reply = await plain.get("/version")
            answered = time.time()
            seen.version = Named.model_validate_json(reply.content)
            seen.skew_s = _skew(reply, asked, answered)
            ready = await plain.get("/readyz", timeout=READY_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        seen.away = TransportError(_why(error))
    except ValidationError:
        seen.away = ProtocolError(f"something else answers there: HTTP {reply.status_code} at /version")
    else:
        seen.lacking = {} if ready.is_success else _lacking(ready)


def _why(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        return "connection refused" if "refused" in str(error) or "All connection" in str(error) else str(error)
    return "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__


def _skew(reply: httpx.Response, asked: float, answered: float) -> float | None:
    """Seconds; by the header `Date`, whose resolution is one second: less than that is none."""
    date = reply.headers.get("date")
    if date is None:
        return None
    theirs = parsedate_to_datetime(date).timestamp()
    if theirs > answered:
        return theirs - answered
    return min(0.0, theirs + 1.0 - asked)


def _lacking(reply: httpx.Response) -> dict[str, str]:
    try:
        checks: dict[str, Any] = reply.json()["checks"]
        return {name: check.get("detail") or "not ready" for name, check in checks.items() if not check["ok"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"ready": f"HTTP {reply.status_code}"}


async def _teacher(http: HTTP, facts: Facts) -> None:
    facts.policies = await _asked(http, facts.servers["teacher"], Scope.explain, "/policies", PolicyList)


async def _reward(http: HTTP, facts: Facts) -> None:
    facts.models = await _asked(http, facts.servers["reward"], Scope.reward, "/models", ModelList)
    facts.formats = await _asked(http, facts.servers["reward"], Scope.reward, "/formats", ServerFormats)


async def _jobs(http: HTTP, facts: Facts) -> None:
    server = facts.servers["jobs"]
    await _asked(http, server, Scope.build, "/builds", Reply, limit=1)
    facts.jobs = await _asked(http, server, Scope.admin, "/health/details", JobsHealth)
    if _idle(facts.jobs):
        await asyncio.sleep(AGAIN_S)
        facts.jobs = await _asked(http, server, Scope.admin, "/health/details", JobsHealth) or facts.jobs
        facts.idle = _idle(facts.jobs)


def _idle(jobs: JobsHealth | None) -> bool:
    shards = jobs.shards if jobs else None
    return shards is not None and shards.ready > 0 and shards.running == 0


async def _asked(http: HTTP, server: ServerFacts, scope: Scope, path: str, reply: type[M], **params: int) -> M | None:
    """What a key with this scope is told; None, with the refusal noted, without."""
    found = await _outcome(http.request("GET", path, reply=reply, params=params, deadline=CALL_S, retry=False))
    refused = isinstance(found, APIError) and found.status in (401, 403)
    server.refusals[scope] = found if refused and isinstance(found, APIError) else None
    return None if isinstance(found, RLTError) else found


async def _explained(http: HTTP, facts: Facts) -> ExplainResponse | RLTError:
    """Of the first problem that the model's tokenizer can spell: a tiny one has few words."""
    default = facts.formats.default if facts.formats else None
    shipped = sorted(shipped_formats().values(), key=lambda format: format.name != default)
    facts.with_score = "reward" not in facts.servers or facts.servers["reward"].lacking == {}
    problems = [QUESTION, *((format.probe.question, format.probe.answer) for format in shipped)]
    for question, answer in dict.fromkeys(problems):
        found = await _outcome(_explain(http, question, answer, score=facts.with_score))
        if not (isinstance(found, APIError) and found.type == "untokenizable"):
            break
    return found


async def _explain(http: HTTP, question: str, answer: str, *, score: bool) -> ExplainResponse:
    request = ExplainRequest(
        question=question, answer=answer, n=1, seed=1, max_tokens=TOKENS, score=score, return_tokens=True
    )
    return await http.request("POST", "/explain", body=request, reply=ExplainResponse, deadline=EXPLAIN_S, retry=False)


async def _outcome(call: Awaitable[T]) -> T | RLTError:
    try:
        return await call
    except RLTError as error:
        return error
