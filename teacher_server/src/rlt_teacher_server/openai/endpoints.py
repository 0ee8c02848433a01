"""The routes: JSON in, the service, JSON or chunks out."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Depends, Path, Request, Response
from pydantic import TypeAdapter

from rlt_client.schemas.common import Scope
from rlt_service.auth import requires
from rlt_service.callers import while_connected
from rlt_service.rates import spend
from rlt_service.routing import Router
from rlt_service.sse import EventStreamResponse
from rlt_teacher_server.openai.reading import read
from rlt_teacher_server.openai.replies import ChatCompletion, ChatCompletionChunk, ModelCard, ModelCards, OpenAIError
from rlt_teacher_server.openai.requests import ChatRequest
from rlt_teacher_server.openai.service import ChatService

__all__ = ["router"]

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": OpenAIError, "description": "An error as OpenAI spells it"} for status in ("4XX", "5XX")
}
CHUNKS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"itemSchema": TypeAdapter(ChatCompletionChunk).json_schema()}}}
}

router = Router(prefix="/v1", tags=["openai"], dependencies=[requires(Scope.explain)], responses=ERRORS)


async def _chat(request: Request) -> ChatService:
    service: ChatService = request.app.state.chat
    return service


Chat = Annotated[ChatService, Depends(_chat)]


@router.post("/chat/completions", response_model=ChatCompletion, responses=CHUNKS)
async def chat_completions(body: ChatRequest, request: Request, service: Chat) -> ChatCompletion | Response:
    """Explanations in OpenAI's shape: the messages are the question (`user`) and its solution (`assistant`)."""
    asked = read(body)
    spend(request, asked.explain.n)
    if not asked.explain.stream:
        return await while_connected(request, service.complete(asked))
    opened = await while_connected(request, service.stream(asked))
    return opened if isinstance(opened, Response) else EventStreamResponse(*opened)


@router.get("/models")
async def openai_models(service: Chat) -> ModelCards:
    """The policies that requests can name; `teacher` is always the active one."""
    return service.models()


@router.get("/models/{model:path}")
async def openai_model(model: Annotated[str, Path(description="what requests call it")], service: Chat) -> ModelCard:
    """One of them, by its name or its revision."""
    return service.model(model)
