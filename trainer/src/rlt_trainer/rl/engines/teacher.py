"""A teacher server: `POST /generate`, and `POST /policies` for weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from rlt_client.aio import AsyncTeacherClient
from rlt_client.errors import NotFound
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.generate import Generated, GenerateItem, GenerateRequest
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import LoadPolicy, PolicyInfo
from rlt_trainer.config.rl import Rollout
from rlt_trainer.errors import BadConfig, StalePolicy
from rlt_trainer.rl.engines.base import Ask, Completion, Failed, Published

__all__ = ["TeacherEngine"]

FORGOTTEN: Final = "policy_not_found"
RESTARTS: Final = 5  # of the server while one request is answered
PASSING: Final = frozenset({429, 502, 503, 504})  # what is wrong with the server, not with the item


class TeacherEngine:
    """Args:
    key: of scopes explain and admin.
    stop: strings that end a completion; kept in it.
    """

    def __init__(self, config: Rollout, *, key: str | None, stop: Sequence[str]) -> None:
        self._config = config
        self._stop = list(stop)
        at_once = max(1, config.concurrency // config.together)
        self._client = AsyncTeacherClient(
            config.url,
            key=key,
            deadline=config.deadline_s,
            patience=config.patience_s,
            max_connections=at_once + 1,  # one to publish
        )
        self._under_way = asyncio.Semaphore(at_once)
        self._mending = asyncio.Lock()
        self._base: str | None = None

    async def generate(self, asks: Sequence[Ask], weights: Published) -> list[Completion | Failed]:
        items = [GenerateItem(prompt_token_ids=list(ask.prompt_ids), seed=ask.seed) for ask in asks]
        done: dict[int, Generated] = {}
        async with self._under_way:
            while left := [index for index in range(len(items)) if index not in done]:
                made = await self._generate([items[index] for index in left], weights)
                done |= {index: each for index, each in zip(left, made, strict=True) if not _again(each)}
        return [_result(done[index]) for index in range(len(items))]

    async def _generate(self, items: list[GenerateItem], weights: Published) -> list[Generated]:
        request = GenerateRequest(
            items=items,
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            stop=self._stop,
            policy=self._config.policy,
        )
        for _ in range(RESTARTS):
            try:
                return (await self._client.generate(request)).items
            except NotFound as error:
                if error.type != FORGOTTEN:
                    raise
                await self._publish_again(weights)
        return (await self._client.generate(request)).items

    async def publish(self, folder: Path, *, lora: bool) -> Published:
        """As `Engine.publish`. An adapter's revision is that of its base and its own: both must stay.

        Raises:
            BadConfig: the full weights of another run are in the place of an adapter's base.
            StalePolicy: an adapter sits on another base than the one before.
        """
        listed = await self._client.policies()
        if lora:
            self._check_base(listed.active.base or listed.active)
        kind = ModelKind.lora if lora else ModelKind.full
        request = LoadPolicy(name=self._config.policy, source=str(folder), kind=kind, activate=True)
        loaded = (await self._client.load_policy(request)).policy
        for old in self._own(listed.policies):
            if old.revision != loaded.revision:
                await self._forget(old.revision)
        return Published(folder, lora, loaded.revision)

    def _check_base(self, base: ModelRef) -> None:
        if base.name == self._config.policy:
            raise BadConfig(
                f"the teacher's full weights are {base.name} {base.revision}, published by another run: activate those "
                "that it was started with (POST /policies/NAME/activate), or take another rollout.policy"
            )
        if self._base not in (None, base.revision):
            raise StalePolicy(f"the teacher's full weights are {base.revision}, not {self._base} as before")
        self._base = base.revision

    def _own(self, policies: Iterable[PolicyInfo]) -> list[PolicyInfo]:
        return [each for each in policies if each.name == self._config.policy]

    async def _forget(self, revision: str) -> None:
        with suppress(NotFound):  # somebody else did
            await self._client.delete_policy(self._config.policy, revision)

    async def _publish_again(self, weights: Published) -> None:
        """To a server that was started anew and has no memory of policies; once for all who find that out."""
        async with self._mending:
            if not self._own((await self._client.policies()).policies):
                await self.publish(weights.folder, lora=weights.lora)

    async def aclose(self) -> None:
        await self._client.aclose()


def _again(made: Generated) -> bool:
    """The server says so itself where it could do none of the items, and is then waited for."""
    return made.error is not None and made.error.status in PASSING


def _result(made: Generated) -> Completion | Failed:
    if made.error is not None:
        return Failed(made.error.type, made.error.detail or made.error.title)
    return Completion(made.token_ids, made.logprobs, made.finish_reason, made.policy_revision)
