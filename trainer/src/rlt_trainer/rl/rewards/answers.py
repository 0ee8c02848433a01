"""Right answers: the reward of a solver, in this process."""

from __future__ import annotations

import asyncio
from typing import Final

from rlt_trainer.answers import given_answer, text_of, verdict
from rlt_trainer.config.evaluate import Match
from rlt_trainer.rl.engines.base import Completion
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.base import Rewarded
from rlt_trainer.texts import Writer

__all__ = ["AnswerRewards"]

TOO_SLOW: Final = "comparison_too_slow"


class AnswerRewards:
    """An answer that could not be compared in time has no reward."""

    def __init__(self, match: Match, writer: Writer) -> None:
        self._match = match
        self._writer = writer

    async def score(self, problem: Problem, completion: Completion) -> Rewarded:
        text = text_of(self._writer.codec, self._writer.format, completion.token_ids)
        given = given_answer(self._writer.format, text)
        reward = await asyncio.to_thread(verdict, self._match, given, problem.answer)  # mathematics takes its time
        answered = {"answered": float(given is not None)}
        return Rewarded(reward, answered, failure=TOO_SLOW if reward is None else None)

    async def aclose(self) -> None:
        return None
