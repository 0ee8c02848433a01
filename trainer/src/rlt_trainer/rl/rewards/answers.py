"""Right answers: the reward of a solver, in this process."""

from __future__ import annotations

from rlt_trainer.answers import given_answer, share_right
from rlt_trainer.config.evaluate import Match
from rlt_trainer.rl.engines.base import Completion
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.base import Rewarded
from rlt_trainer.texts import Writer

__all__ = ["AnswerRewards"]


class AnswerRewards:
    def __init__(self, match: Match, writer: Writer) -> None:
        self._match = match
        self._writer = writer

    async def score(self, problem: Problem, completion: Completion) -> Rewarded:
        text = self._writer.codec.decode(completion.token_ids)
        given = given_answer(self._writer.format, text)
        reward = share_right(self._match, given, problem.answer)
        return Rewarded(reward, {"answered": float(given is not None)})

    async def aclose(self) -> None:
        return None
