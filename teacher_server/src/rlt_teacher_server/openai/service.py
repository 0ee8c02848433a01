"""Chat requests on top of `/explain`, whole or while they are answered, and the policies as models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from rlt_client.errors import APIError, InvalidRequest
from rlt_client.schemas.explain import Done, ExplainEvent, Explanation, Started
from rlt_service.pointers import at
from rlt_service.sse import PING_S
from rlt_teacher_server.catalog import Catalog
from rlt_teacher_server.engine.base import overflow
from rlt_teacher_server.explain import ExplainService, ExplainStream
from rlt_teacher_server.openai.chunks import ChunkWriter
from rlt_teacher_server.openai.errors import error_body
from rlt_teacher_server.openai.logprobs import content_logprobs
from rlt_teacher_server.openai.models import card, cards
from rlt_teacher_server.openai.reading import Asked
from rlt_teacher_server.openai.replies import (
    ChatCompletion,
    ChatCompletionChunk,
    Logprobs,
    ModelCard,
    ModelCards,
    OpenAIError,
)
from rlt_teacher_server.openai.writing import Head, completion
from rlt_teacher_server.sampler import Sampler

__all__ = ["ChatService"]

DONE: Final = b"data: [DONE]\n\n"


class ChatService:
    def __init__(self, explainer: ExplainService, catalog: Catalog, sampler: Sampler) -> None:
        self._explainer = explainer
        self._catalog = catalog
        self._sampler = sampler

    async def complete(self, asked: Asked) -> ChatCompletion:
        """Raises what `ExplainService.explain` raises, and `APIError` where every sample failed."""
        with asked.told():
            response = await self._explainer.explain(asked.explain)
            if asked.logprobs:  # decodes token by token
                return await asyncio.to_thread(completion, Head(), asked, response, self._logprobs)
            return completion(Head(), asked, response, self._logprobs)

    async def stream(self, asked: Asked) -> tuple[ExplainStream, AsyncIterator[bytes]]:
        """The stream, to be closed, and what is written of it. Raises as `complete`, before anything is sampled."""
        with asked.told():
            stream = await self._explainer.stream(asked.explain)
            try:
                first = await stream.take()
                await self._check_room(asked, first[0])
            except BaseException:
                await stream.aclose()
                raise
        return stream, self._frames(asked, stream, first)

    async def _check_room(self, asked: Asked, started: ExplainEvent) -> None:
        """A refusal that programs branch on comes before the reply begins."""
        assert isinstance(started, Started)  # by the contract of streams
        limits = await self._sampler.engines.limits()
        if detail := overflow(started.prompt_tokens, asked.explain.max_tokens or 1, limits):
            raise at("/max_tokens", InvalidRequest(detail, type="context_overflow"))

    async def _frames(self, asked: Asked, stream: ExplainStream, first: Sequence[ExplainEvent]) -> AsyncIterator[bytes]:
        """Chunks that are due together in one piece; a comment where nothing has happened for a while."""
        writer = ChunkWriter(Head(), asked, self._logprobs)
        events = first
        while True:
            written = await asyncio.to_thread(_write, writer, events) if asked.logprobs else _write(writer, events)
            yield b"".join(written.frames) or KEEPALIVE_COMMENT
            if written.over or stream.ended:
                return
            events = await stream.take(PING_S)

    def _logprobs(self, explanation: Explanation, format: str) -> Logprobs:
        assert explanation.teacher is not None  # asked for with log-probs
        return content_logprobs(self._sampler.model.codec, self._catalog.get(format).format, explanation.teacher)

    def models(self) -> ModelCards:
        return cards(self._sampler.policies.infos())

    def model(self, id: str) -> ModelCard:
        """Raises `NotFound` (policy_not_found)."""
        return card(self._sampler.policies.infos(), id)


@dataclass(frozen=True, slots=True)
class _Written:
    frames: list[bytes]
    over: bool


def _write(writer: ChunkWriter, events: Iterable[ExplainEvent]) -> _Written:
    frames: list[bytes] = []
    try:
        for event in events:
            frames += map(_frame, writer.chunks(event))
            if isinstance(event, Done):
                frames.append(DONE)
    except APIError as error:
        frames.append(_frame(OpenAIError(error=error_body(error.problem()))))
        return _Written(frames, over=True)
    return _Written(frames, over=False)


def _frame(data: ChatCompletionChunk | OpenAIError) -> bytes:
    return format_sse_event(data_str=data.model_dump_json(by_alias=True))
