"""A teacher server: `POST /generate`, and `POST /policies` for weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rlt_client.aio import AsyncTeacherClient
from rlt_client.errors import NotFound
from rlt_client.schemas.generate import GenerateItem, GenerateRequest
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import LoadPolicy, PolicyInfo
from rlt_trainer.config.rl import Rollout
from rlt_trainer.rl.engines.base import Completion, Failed

__all__ = ["TeacherEngine"]


class TeacherEngine:
    """Args:
    key: of scopes explain and admin.
    stop: strings that end a completion; kept in it.
    """

    def __init__(self, config: Rollout, *, key: str | None, stop: Sequence[str]) -> None:
        self._config = config
        self._stop = list(stop)
        self._client = AsyncTeacherClient(
            config.url,
            key=key,
            deadline=config.patience_s,
            patience=config.patience_s,
            max_connections=config.concurrency + 8,
        )
        self._under_way = asyncio.Semaphore(config.concurrency)
        self._published: tuple[Path, bool] | None = None
        self._mending = asyncio.Lock()

    async def generate(self, prompt_ids: Sequence[int], *, seed: int) -> Completion | Failed:
        request = GenerateRequest(
            items=[GenerateItem(prompt_token_ids=list(prompt_ids), seed=seed)],
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            stop=self._stop,
            policy=self._config.policy,
        )
        async with self._under_way:
            try:
                reply = await self._client.generate(request)
            except NotFound:  # it was started anew and has forgotten the policy
                await self._publish_again()
                reply = await self._client.generate(request)
        [made] = reply.items
        if made.error is not None:
            return Failed(made.error.type, made.error.detail or made.error.title)
        return Completion(made.token_ids, made.logprobs, made.finish_reason, made.policy_revision)

    async def publish(self, folder: Path, *, lora: bool) -> str:
        before = await self._mine()
        kind = ModelKind.lora if lora else ModelKind.full
        request = LoadPolicy(name=self._config.policy, source=str(folder), kind=kind, activate=True)
        loaded = await self._client.load_policy(request)
        self._published = (folder, lora)
        for old in before:
            if old.revision != loaded.policy.revision:
                await self._forget(old.revision)
        return loaded.policy.revision

    async def _mine(self) -> list[PolicyInfo]:
        return [each for each in (await self._client.policies()).policies if each.name == self._config.policy]

    async def _forget(self, revision: str) -> None:
        with suppress(NotFound):  # somebody else did
            await self._client.delete_policy(self._config.policy, revision)

    async def _publish_again(self) -> None:
        if self._published is None:
            return
        folder, lora = self._published
        async with self._mending:
            if not await self._mine():
                await self.publish(folder, lora=lora)

    async def aclose(self) -> None:
        await self._client.aclose()
