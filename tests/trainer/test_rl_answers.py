"""The reward of a solver."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_client.prompts import TextCodec
from rlt_trainer.config.evaluate import Match
from rlt_trainer.rl.engines import Completion
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards import AnswerRewards, answers
from rlt_trainer.texts import Writer, named_format

PROBLEM = Problem("Q 36 A +5 B *3 C +11 D +5", "17", None, [1])


@pytest.fixture(scope="module")
def writer(tiny_base: Path) -> Writer:
    return Writer(TextCodec.of_folder(tiny_base), named_format("mini", None))


def completion(writer: Writer, text: str) -> Completion:
    ids = writer.codec.tokenizer.encode(text, add_special_tokens=False)
    return Completion(ids, [-1.0] * len(ids), "stop", "sha256:1")


@pytest.mark.parametrize(
    ("text", "reward", "answered"),
    [
        ("36 A +5 41 # 17 $", 1.0, 1.0),
        ("36 A +5 41 # 18 $", 0.0, 1.0),
        ("36 A +5 41 # 17", 0.0, 0.0),  # cut off
        ("36 A +5 41 17 $", 0.0, 0.0),  # the explanation has no end
    ],
    ids=["right", "wrong", "cut-off", "unclosed"],
)
async def test_a_right_answer_in_the_format_is_worth_one(
    writer: Writer, text: str, reward: float, answered: float
) -> None:
    rewarded = await AnswerRewards(Match.exact, writer).score(PROBLEM, completion(writer, text))
    assert (rewarded.reward, rewarded.components, rewarded.failure) == (reward, {"answered": answered}, None)


async def test_what_could_not_be_compared_has_no_reward(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "verdict", lambda *_: None)  # as for a comparison that takes too long
    rewarded = await AnswerRewards(Match.math, writer).score(PROBLEM, completion(writer, "36 # 17 $"))
    assert rewarded.reward is None
    assert rewarded.failure == "comparison_too_slow"
