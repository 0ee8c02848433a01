"""A reward server, by its batched client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rlt_client.aio import AsyncRewardClient
from rlt_client.schemas.reward import Detail, RewardItem, Score, SpecRequest, TeacherTokens
from rlt_trainer.config.rl import Reward
from rlt_trainer.errors import BadConfig
from rlt_trainer.rl.engines.base import Completion
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.base import Rewarded

__all__ = ["ServerRewards"]


class ServerRewards:
    """Args:
    format: name of the prompt format.
    temperature: that completions are sampled at; the reward's for the teacher's log-probs, where `config` names none.

    Raises:
        BadConfig: there is no such reward, or it wants log-probs at another temperature.
    """

    def __init__(self, config: Reward, *, key: str | None, format: str, temperature: float) -> None:
        self._config = config
        self._format = format
        self._temperature = temperature
        self._spec = _spec(config.spec, temperature)
        self._client = AsyncRewardClient(config.url, key=key, deadline=config.patience_s, patience=config.patience_s)

    async def score(self, problem: Problem, completion: Completion) -> Rewarded:
        item = RewardItem(
            question=problem.question,
            answer=problem.answer,
            system=problem.system,
            teacher=TeacherTokens(
                token_ids=list(completion.token_ids),
                logprobs=list(completion.logprobs),
                temperature=self._temperature,
                revision=completion.revision,
            ),
        )
        return _rewarded(
            await self._client.score(
                item, spec=self._spec, format=self._format, student=self._config.student, detail=Detail.components
            )
        )

    async def aclose(self) -> None:
        await self._client.aclose()


def _spec(given: Mapping[str, Any], temperature: float) -> SpecRequest:
    try:
        spec = SpecRequest.model_validate({"teacher_temperature": temperature, **given})
    except ValidationError as error:
        raise BadConfig(f"reward.spec: {error}") from error
    if spec.teacher_temperature != temperature:
        raise BadConfig(
            f"reward.spec.teacher_temperature {spec.teacher_temperature} must be rollout.temperature {temperature}: "
            "the log-probs that are scored are those of sampling"
        )
    return spec


def _rewarded(score: Score) -> Rewarded:
    failure = None
    if score.reward is None:
        failure = score.error.type if score.error else str(score.status)
    found: dict[str, Any] = score.components.model_dump() if score.components else {}
    parts = {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
    return Rewarded(score.reward, parts, tuple(score.flags), failure)
