"""What a run is made of besides its trainer: the problems, what samples, and what rewards."""

from __future__ import annotations

import logging

from rlt_trainer.answers import check_right_answer
from rlt_trainer.config.rl import RewardSource, RLConfig, RolloutEngine
from rlt_trainer.config.sections import TextRole
from rlt_trainer.data import read_rows
from rlt_trainer.errors import BadConfig, BadData
from rlt_trainer.keys import key_of
from rlt_trainer.rl.engines import Engine, TeacherEngine, VLLMEngine
from rlt_trainer.rl.problems import Problems
from rlt_trainer.rl.rewards import AnswerRewards, Rewards, ServerRewards
from rlt_trainer.texts import Writer

__all__ = ["find_problems", "make_engine", "make_rewards"]

log = logging.getLogger(__name__)


def find_problems(config: RLConfig, writer: Writer) -> Problems:
    """The rows that leave room for a completion.

    Raises:
        BadConfig: there is no room for any prompt.
        BadData: rows that cannot be used, or too few of them for an update.
    """
    rows = read_rows(config.data, want=("question", "answer"), may=("system",))
    room = config.texts.max_tokens - config.rollout.max_tokens
    if room < 1:
        raise BadConfig("texts.max_tokens must leave room for a prompt beside rollout.max_tokens")
    if config.reward.source is RewardSource.answer:
        for row in rows:
            check_right_answer(config.reward.match, row["answer"])
    problems = Problems(rows, writer, config.role, room)
    if problems.too_long:
        log.warning("%d problems have prompts of over %d tokens and are left out", problems.too_long, room)
    if len(problems) < (at_once := config.training.batch_size // config.grpo.generations):
        raise BadData(
            f"{config.data.path}: {len(problems)} problems, where an update takes {at_once} different ones "
            "(training.batch_size / grpo.generations)"
        )
    return problems


async def make_engine(config: RLConfig, writer: Writer) -> Engine:
    """What samples, told where a completion of the run's role ends."""
    format = writer.format
    close = format.teacher.close if config.role is TextRole.teacher else format.student.after_answer.strip()
    stop, key = [close] if close else [], key_of(config.rollout.key_env)
    if config.rollout.engine is RolloutEngine.teacher:
        return TeacherEngine(config.rollout, key=key, stop=stop)
    eos = writer.codec.eos_token_id
    return VLLMEngine(config.rollout, key=key, stop=stop, stop_ids=[] if eos is None else [eos])


async def make_rewards(config: RLConfig, writer: Writer) -> Rewards:
    if config.reward.source is RewardSource.answer:
        return AnswerRewards(config.reward.match, writer)
    return ServerRewards(
        config.reward,
        key=key_of(config.reward.key_env),
        writer=writer,
        temperature=config.rollout.temperature,
    )
