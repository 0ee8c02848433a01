"""The routes: JSON in, the service, JSON out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response

from rlt_client.schemas.common import Scope
from rlt_client.schemas.explain import (
    ExplainBatchRequest,
    ExplainBatchResponse,
    ExplainOptions,
    ExplainRequest,
    ExplainResponse,
)
from rlt_client.schemas.generate import GenerateRequest, GenerateResponse
from rlt_service.auth import requires
from rlt_service.callers import while_connected
from rlt_service.rates import spend
from rlt_service.routing import Router
from rlt_service.sse import EventStreamResponse
from rlt_teacher_server.explain import ExplainService
from rlt_teacher_server.generate import GenerateService
from rlt_teacher_server.sse import EXPLAIN_STREAM, explain_frames

__all__ = ["router"]

router = Router(tags=["teacher"], dependencies=[requires(Scope.explain)])


async def _explainer(request: Request) -> ExplainService:
    service: ExplainService = request.app.state.explainer
    return service


async def _generator(request: Request) -> GenerateService:
    service: GenerateService = request.app.state.generator
    return service


@router.post("/explain", response_model=ExplainResponse, responses=EXPLAIN_STREAM)
async def explain(
    body: ExplainRequest, request: Request, service: Annotated[ExplainService, Depends(_explainer)]
) -> ExplainResponse | Response:
    """Explain how the answer follows from the question, n times, ranked by reward if asked to.

    With `stream: true` the reply is `text/event-stream`; what is refused before anything is sampled is an ordinary
    problem even then.
    """
    spend(request, _samples(body))
    if not body.stream:
        return await while_connected(request, service.explain(body))
    stream = await while_connected(request, service.stream(body))
    return stream if isinstance(stream, Response) else EventStreamResponse(stream, explain_frames(stream))


@router.post("/explain/batch", response_model=ExplainBatchResponse)
async def explain_batch(
    body: ExplainBatchRequest, request: Request, service: Annotated[ExplainService, Depends(_explainer)]
) -> ExplainBatchResponse | Response:
    """Many problems with the same options. One that cannot be done carries its own `error`."""
    spend(request, _samples(body) * len(body.problems))
    return await while_connected(request, service.batch(body))


@router.post("/generate", response_model=GenerateResponse)
async def generate(
    body: GenerateRequest, request: Request, service: Annotated[GenerateService, Depends(_generator)]
) -> GenerateResponse | Response:
    """Continue prompts of token ids. One item that cannot be continued carries its own `error`."""
    spend(request, len(body.items))
    return await while_connected(request, service.generate(body))


def _samples(options: ExplainOptions) -> int:
    """Of one problem."""
    return options.n * len(options.policies or [options.policy])
