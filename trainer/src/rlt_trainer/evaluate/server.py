"""Samples by a server that speaks OpenAI's completions and takes prompts as token ids, as vLLM does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import httpx
from pydantic import BaseModel

from rlt_client._http import HTTP
from rlt_client.errors import ProtocolError, RLTError
from rlt_trainer.answers import text_of
from rlt_trainer.config.evaluate import CompletionServer, EvaluateConfig
from rlt_trainer.errors import BadConfig
from rlt_trainer.evaluate.sampling import Ask, Sample, room
from rlt_trainer.keys import key_of
from rlt_trainer.revision import folder_revision
from rlt_trainer.texts import Writer

__all__ = ["ServerSampler"]


class _Asked(BaseModel):
    """Everything that shapes a sample is said: a server's own defaults come with the model."""

    model: str
    prompt: list[int]
    max_tokens: int
    seed: int
    temperature: float
    top_p: float
    stop: list[str]
    n: int = 1
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    include_stop_str_in_output: bool = True
    skip_special_tokens: bool = False
    return_token_ids: bool = True


class _Choice(BaseModel):
    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Usage(BaseModel):
    completion_tokens: int = 0


class _Drawn(BaseModel):
    choices: list[_Choice]
    usage: _Usage = _Usage()


class _Served(BaseModel):
    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Served]


class ServerSampler:
    """Raises `BadConfig` for a key or a model that is not there, `RLTError` for a server that does not answer."""

    def __init__(self, config: EvaluateConfig, server: CompletionServer, writer: Writer) -> None:
        self._config = config
        self._server = server
        self._writer = writer
        self._key = key_of(server.key_env)
        tag = writer.format.student.after_answer.strip()
        self._stop = [tag] if tag else []
        self._served = asyncio.run(self._find())

    @cached_property
    def model(self) -> Mapping[str, str | None]:
        folder = Path(self._config.model.name)
        revision = folder_revision(folder) if folder.is_dir() else self._config.model.revision
        return {
            "name": self._config.model.name,
            "revision": revision,
            "served_as": self._served.id,
            "served_from": self._served.root,
        }

    def sample(self, asks: Sequence[Ask], have: Container[int], keep: Callable[[int, Sample], None]) -> None:
        bodies = [self._body(ask) for ask in asks]
        asyncio.run(self._all([(place, body) for place, body in enumerate(bodies) if place not in have], keep))

    def _body(self, ask: Ask) -> _Asked:
        return _Asked(
            model=self._served.id,
            prompt=list(ask.prompt_ids),
            max_tokens=room(ask.prompt_ids, self._config.max_new_tokens, self._served.max_model_len),
            seed=ask.seed,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            stop=self._stop,
        )

    async def _all(self, bodies: Sequence[tuple[int, _Asked]], keep: Callable[[int, Sample], None]) -> None:
        left = iter(bodies)

        async def one_after_another(http: HTTP) -> None:
            for place, body in left:
                keep(place, await self._drawn(http, body))

        async with self._http() as http:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._server.concurrency, len(bodies))):
                        group.create_task(one_after_another(http))
            except ExceptionGroup as failures:
                raise next((each for each in failures.exceptions if isinstance(each, RLTError)), failures) from None

    async def _drawn(self, http: HTTP, body: _Asked) -> Sample:
        reply = await http.request("POST", "/v1/completions", reply=_Drawn, body=body)
        if len(reply.choices) != 1:
            raise ProtocolError(f"{self._server.url} answered {len(reply.choices)} choices to one prompt")
        [choice] = reply.choices
        if choice.finish_reason not in ("stop", "length"):
            raise ProtocolError(f"{self._server.url} ended a sample with {choice.finish_reason!r}")
        truncated = choice.finish_reason == "length"
        if choice.token_ids is not None:
            text = text_of(self._writer.codec, self._writer.format, choice.token_ids)
            return Sample(text, len(choice.token_ids), truncated)
        return Sample(self._closed(choice.text, truncated), reply.usage.completion_tokens, truncated)

    def _closed(self, text: str, truncated: bool) -> str:
        """Servers other than vLLM leave the stop string off."""
        tag = "".join(self._stop)
        return text if truncated or tag in text else f"{text}{tag}"

    async def _find(self) -> _Served:
        async with self._http() as http:
            served = (await http.request("GET", "/v1/models", reply=_Models)).data
        names = {each.id: each for each in served}
        wanted = self._server.model or self._config.model.name
        if wanted in names:
            return names[wanted]
        if self._server.model is None and len(served) == 1:
            return served[0]
        raise BadConfig(f"{self._server.url} has no model {wanted!r}, but {', '.join(names)}: name one by engine.model")

    def _http(self) -> HTTP:
        patience = self._server.patience_s
        transport = _Transport(limits=httpx.Limits(max_connections=self._server.concurrency))
        return HTTP(
            self._server.url.rstrip("/"), key=self._key, deadline=patience, patience=patience, transport=transport
        )


class _Transport(httpx.AsyncHTTPTransport):
    """A server whose engine has died says 500 until it is started anew: that is as if nobody answered."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            said = (await response.aread())[:200].decode(errors="replace")
            await response.aclose()
            raise httpx.RemoteProtocolError(f"HTTP 500: {said}")
        return response
