"""What the demo measures and says, without a stack."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlt_client import AsyncRewardClient, AsyncTeacherClient
from rlt_client.errors import ItemError, RLTError
from rlt_client.testing import FakePlatform
from rlt_local.demo.narrator import Narrator
from rlt_local.demo.problems import TracedProblem, draw, in_words
from rlt_local.demo.quality import BestOf, Ranking, best_of, good_against_leak

PROBLEM = {"question": "Q 36 A +5 B *3", "answer": "1"}


def test_the_gain_of_choosing_is_the_mean_over_problems() -> None:
    """(−1 − (−2)) and (0 − (−2)): means −2 and −2, bests −1 and 0, so 1.5 nats."""
    sampled = BestOf(2, [[-1.0, -3.0], [0.0, -4.0]])
    assert (sampled.mean, sampled.best, sampled.gain, sampled.good) == (-2.0, -0.5, 1.5, True)
    assert BestOf(2, [[-1.0, -2.9]]).good is False


def test_ninety_five_of_a_hundred_are_enough() -> None:
    assert Ranking([(0.0, -1.0)] * 95 + [(-1.0, 0.0)] * 5).good is True
    assert Ranking([(0.0, -1.0)] * 94 + [(-1.0, 0.0)] * 6).good is False
    assert Ranking([(0.0, 0.0)]).right == 0


async def test_best_of_n_is_measured_over_the_wire() -> None:
    """Explanations `x`, `xx`, `xxx` with reward −length: best −1, mean −2."""
    fake = FakePlatform(reward=lambda item: -float(len(item.explanation or "")), explain=lambda _, i: "x" * (i + 1))
    async with AsyncTeacherClient("http://fake", transport=fake.transport()) as teacher:
        sampled = await best_of(teacher, [PROBLEM, PROBLEM], 3)
    assert (sampled.best, sampled.mean) == (-1.0, -2.0)
    assert len({request.seed for request in fake.requests}) == 2


async def test_a_sample_without_a_reward_is_left_out_and_never_a_number() -> None:
    def reward(item) -> float:
        if item.explanation == "x":
            raise ValueError("too_long")
        return -5.0

    fake = FakePlatform(reward=reward, explain=lambda _, i: "x" * (i + 1))
    async with AsyncTeacherClient("http://fake", transport=fake.transport()) as teacher:
        assert (await best_of(teacher, [PROBLEM], 3)).rewards == [[-5.0, -5.0]]
        with pytest.raises(ItemError, match="too_long"):
            await best_of(teacher, [PROBLEM], 1)


async def test_hand_written_traces_are_compared_pair_by_pair() -> None:
    fake = FakePlatform(reward=lambda item: -1.0 if item.explanation == "good" else -2.0)
    traced = [TracedProblem(**PROBLEM, good="good", leak="leak"), TracedProblem(**PROBLEM, good="bad", leak="good")]
    async with AsyncRewardClient("http://fake", transport=fake.transport()) as reward:
        ranking = await good_against_leak(reward, traced)
    assert ranking.pairs == [(-1.0, -2.0), (-2.0, -1.0)]
    assert ranking.right == 1


def test_problems_come_from_the_trainer(tmp_path: Path) -> None:
    rows = draw(tmp_path / "p.jsonl", 3, traces=True)
    assert [sorted(row) for row in rows] == [["answer", "good", "leak", "question"]] * 3
    assert draw(tmp_path / "q.jsonl", 3) == [{key: row[key] for key in ("question", "answer")} for row in rows]
    with pytest.raises(RLTError, match="count must be between"):
        draw(tmp_path / "r.jsonl", 10**7)


def test_a_question_is_told_in_words() -> None:
    assert in_words("Q 36 A +5 B *3") == "start with 36; add 5, multiply by 3; everything modulo 61"


def test_chapters_are_numbered_and_timed() -> None:
    file = io.StringIO()
    tell = Narrator(Console(file=file, width=60))
    tell.chapter("One")
    tell.say("word " * 20)
    tell.chapter("Two")
    tell.command("a command that is much longer than the sixty columns of this terminal")
    tell.verdict("kept", good=True)
    tell.verdict("missed", good=False)
    tell.end_chapter()
    lines = file.getvalue().splitlines()
    assert list(tell.took) == ["One", "Two"]
    assert any(line.startswith(" 1  One") for line in lines)
    assert any(line.startswith(" 2  Two") for line in lines)
    assert "$ a command that is much longer than the sixty columns of this terminal" in lines
    assert lines[-2:] == ["✓ kept", "✗ missed"]
