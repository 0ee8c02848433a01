"""A reward server, by its batched client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from rlt_client.aio import AsyncRewardClient, ScoredItem
from rlt_client.errors import NotFound
from rlt_client.prompts import content
from rlt_client.schemas.reward import Detail, RewardItem, SpecRequest, TeacherTokens
from rlt_trainer.config.rl import Reward
from rlt_trainer.errors import BadConfig, StaleStudent
from rlt_trainer.rl.engines.base import Completion
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.base import Rewarded
from rlt_trainer.rl.rewards.students import Student, settle
from rlt_trainer.texts import Writer

__all__ = ["ServerRewards"]

UNKNOWN: Final = "unknown_student"
UNREADABLE: Final = "teacher_logprobs_unusable"
TRIES: Final = 5  # for one item: a server may be started anew more than once
PROBE: Final = "probe"  # the revision of what nobody sampled


class ServerRewards:
    """Args:
    writer: of the model that is trained.
    temperature: that completions are sampled at; the reward's for the teacher's log-probs, where `config` names none.

    Raises:
        BadConfig: there is no such reward, or it wants log-probs at another temperature.
    """

    def __init__(self, config: Reward, *, key: str | None, writer: Writer, temperature: float) -> None:
        self._config = config
        self._writer = writer
        self._temperature = temperature
        self._spec = _spec(config.spec, temperature)
        self._client = AsyncRewardClient(config.url, key=key, deadline=config.deadline_s, patience=config.patience_s)
        self._student: Student | None = None
        self._settled = 0
        self._mending = asyncio.Lock()

    async def hold(self, wanted: Student | None) -> Student:
        """From now on only `wanted` rewards; None: the student that is served now. As `rewards.students.settle`."""
        self._student = await settle(self._client, self._config.student, wanted)
        self._settled += 1
        return self._student

    async def prove(self) -> None:
        """The server reads the ids of this run as the texts that they are, and by the same format.

        Raises:
            BadConfig: it does not, and all its rewards would be those of other texts.
        """
        format, told = self._writer.format, self._writer.format.probe
        ids = self._writer.codec.encode([content(told.explanation)]).ids
        made = Completion(ids, [-1.0] * len(ids), "length", PROBE)  # its closing tag is the format's affair
        item = self._item(Problem(told.question, told.answer, None, []), made)
        item = item.model_copy(update={"completion": told.explanation})
        scored, ours = await self._asked(item), format.ref
        if scored.format.hash != ours.hash:
            raise BadConfig(
                f"the reward server's format is {scored.format}, this run's {ours}: give both the same file"
            )
        if scored.score.error is not None and scored.score.error.type == UNREADABLE:
            raise BadConfig(
                f"the reward server does not take this run's tokens: {scored.score.error.detail}. Want a student with "
                "the same tokenizer, or --teacher-tokenizer and the preset rlt_segments"
            )

    async def score(self, problem: Problem, completion: Completion) -> Rewarded:
        """As `Rewards.score`. A server that was started anew is given the student again, if it is one of this run.

        Raises:
            StaleStudent: another student rewards.
        """
        item = self._item(problem, completion)
        for _ in range(TRIES):
            settled = self._settled
            scored = await self._scored(item)
            if scored is not None:
                return _rewarded(scored)
            async with self._mending:
                if self._settled == settled:  # nobody else has, since this item was sent
                    await self.hold(self._student)
        raise StaleStudent(
            f"the reward server's student is not {self._student}, though it was given that {TRIES} times: "
            "somebody else exchanges it"
        )

    async def _scored(self, item: RewardItem) -> ScoredItem | None:
        """None where another student than the one held to scored it, or there is none."""
        held = self._student
        try:
            scored = await self._asked(item)
        except NotFound as error:
            if held is None or error.type != UNKNOWN:
                raise
            return None
        return scored if held is None or scored.student.revision == held.revision else None

    async def _asked(self, item: RewardItem) -> ScoredItem:
        return await self._client.score_item(
            item,
            spec=self._spec,
            format=self._writer.format.name,
            student=self._config.student,
            detail=Detail.components,
        )

    def _item(self, problem: Problem, completion: Completion) -> RewardItem:
        return RewardItem(
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


def _rewarded(scored: ScoredItem) -> Rewarded:
    score, failure = scored.score, None
    if score.reward is None:
        failure = score.error.type if score.error else str(score.status)
    found: dict[str, Any] = score.components.model_dump() if score.components else {}
    parts = {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
    return Rewarded(score.reward, parts, tuple(score.flags), failure, scored.student.revision)
