"""Rewards from the reward server, which is another program."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from rlt_client.aio import AsyncRewardClient
from rlt_client.errors import APIError, InvalidRequest, RLTError
from rlt_client.formats import Format
from rlt_client.schemas.common import Problem, ScoreStatus
from rlt_client.schemas.explain import ExplainOptions, ExplanationFlag
from rlt_client.schemas.reward import (
    KLSource,
    Preset,
    Priority,
    RewardItem,
    Score,
    SpecRequest,
    TeacherTokens,
    needs_distributions,
)
from rlt_teacher_server.kl import RewardAbilities, needed_changes, refusal

__all__ = ["Scorer", "ScoringPlan"]

log = logging.getLogger(__name__)

REMEMBERED_S: Final = 30.0  # a reward server that was restarted with other models is noticed within this time
UNKNOWN_S: Final = 5.0  # one that is down is asked again after this time
SOON_S: Final = 1.0  # one that fails is asked again after this time: not for each of a thousand items that fail
PATIENCE_S: Final = 2.0  # it answers in milliseconds; one that hangs holds up generation no longer
OUTDATED: Final = {"kl_unavailable", "teacher_logprobs_unusable"}
"""Errors of items which say that the server is not what it was taken for."""


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """How the explanations of one request are scored."""

    spec: Preset | SpecRequest
    sends_logprobs: bool = True
    """False: the reward server's own teacher computes them."""
    unusable_logprobs: bool = False
    """The sampling made them useless."""

    def item(self, question: str, answer: str, completion: str | None, teacher: TeacherTokens) -> RewardItem:
        """One explanation: its ids and log-probs, so that the teacher needs no second pass, or its text alone."""
        if self.sends_logprobs:
            return RewardItem(question=question, answer=answer, teacher=teacher)
        return RewardItem(question=question, answer=answer, completion=completion)

    def flags(self, score: Score) -> list[ExplanationFlag]:
        """What a reader of the score should know of it."""
        hosted = self.unusable_logprobs and score.kl_source is KLSource.hosted
        return [ExplanationFlag.kl_hosted] if hosted else []


class Scorer:
    """Scores explanations one by one, before trainers' work; the client sends together what comes at the same time."""

    def __init__(self, client: AsyncRewardClient) -> None:
        self._client = client
        self._abilities: RewardAbilities | None = None
        self._ask_at = 0.0
        self._asking = asyncio.Lock()

    async def plan(self, options: ExplainOptions) -> ScoringPlan:
        """How explanations with this sampling and `spec` are scored. Ask before anything is sampled.

        A reward server that does not answer forbids nothing: then the scores will say why there are none.

        Raises:
            InvalidRequest: sampling_unusable_for_kl.
        """
        spec = options.spec or Preset.rlt
        if needs_distributions(spec):
            return ScoringPlan(spec, sends_logprobs=False)
        wanted = spec if isinstance(spec, SpecRequest) else SpecRequest(preset=spec)
        abilities = await self._known_abilities()
        temperature = abilities.teacher_temperature(wanted) if abilities else None
        needed = {} if temperature is None else needed_changes(options, temperature)
        if abilities is None or not needed:
            return ScoringPlan(spec)
        if not abilities.hosts_teacher_for(wanted.preset):
            raise refusal(wanted.preset, options, needed)
        return ScoringPlan(spec, sends_logprobs=False, unusable_logprobs=True)

    async def score(self, item: RewardItem, *, spec: Preset | SpecRequest | None, format: Format) -> Score:
        """A score, or one with the reason why there is none: an explanation is worth keeping without a reward.

        Raises:
            InvalidRequest: the reward server refuses what the caller asked for, `spec`.
        """
        try:
            scored = await self._client.score_item(
                item, spec=spec or Preset.rlt, format=format.name, priority=Priority.interactive
            )
        except RLTError as error:
            self._ask_soon()
            if isinstance(error, InvalidRequest):
                raise
            log.warning("an explanation was not scored: %s", error)
            return _failed("scorer_unavailable", _title(error), _public(error))
        if scored.format.hash != format.hash:
            detail = f"the reward server's {format.name!r} is {scored.format.hash}, this server's is {format.hash}"
            return _failed("format_mismatch", "The two servers' formats differ", detail)
        if scored.score.error is not None and scored.score.error.type in OUTDATED:
            self._ask_soon()
        return scored.score

    async def _known_abilities(self) -> RewardAbilities | None:
        """What the reward server can do, or could when it last said so; None if it never did."""
        async with self._asking:
            if time.monotonic() >= self._ask_at:
                answer = await self._ask()
                self._ask_at = time.monotonic() + (UNKNOWN_S if answer is None else REMEMBERED_S)
                self._abilities = answer or self._abilities
        return self._abilities

    async def _ask(self) -> RewardAbilities | None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return RewardAbilities.of(await self._client.presets(), await self._client.models())
        except (RLTError, TimeoutError):
            return None

    def _ask_soon(self) -> None:
        """It may have been started anew."""
        self._ask_at = min(self._ask_at, time.monotonic() + SOON_S)


def _title(error: RLTError) -> str:
    """A refusal here, such as a wrong key or an unknown format, is between the two servers, not the caller's doing."""
    return "The reward server refused" if isinstance(error, APIError) else "The reward server does not answer"


def _public(error: RLTError) -> str:
    """Where the reward server is, is nobody's business."""
    return f"{error.type}: {error.detail or error.title}" if isinstance(error, APIError) else type(error).__name__


def _failed(type: str, title: str, detail: str) -> Score:
    problem = Problem(type=type, title=title, detail=detail)
    return Score(index=0, status=ScoreStatus.score_error, error=problem)
