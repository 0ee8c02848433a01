"""One step's completions: in order, from the right weights, each scored as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from plugins.scripted_rl import WEIGHTS, ScriptedEngine, ScriptedRewards

from rlt_client.errors import Unavailable
from rlt_trainer.errors import StalePolicy
from rlt_trainer.rl.engines import Ask, Completion, Failed, Published
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards import Rewarded
from rlt_trainer.rl.rollout import Rolled, RollOut, sample_seed

PROBLEMS = [Problem(f"Q {number}", "1", None, [number]) for number in range(6)]


def echo(ask: Ask, _: int) -> Completion:
    """The prompt's own id."""
    return Completion(list(ask.prompt_ids), [-1.0], "stop", "")


def first_token(_: Problem, made: Completion) -> Rewarded:
    return Rewarded(float(made.token_ids[0]))


async def rolled(engine: ScriptedEngine, rewards: ScriptedRewards, **options: object) -> Rolled:
    return await RollOut(engine, rewards, **options)(PROBLEMS, range(6), WEIGHTS)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("together", [1, 2, 4, 6])
async def test_gives_samples_in_the_order_they_were_asked_for(overlap: bool, together: int) -> None:
    engine, rewards = ScriptedEngine(echo), ScriptedRewards(first_token)

    found = await rolled(engine, rewards, overlap=overlap, together=together)

    assert [each.problem for each in found.samples] == PROBLEMS
    assert [each.rewarded.reward for each in found.samples] == [0, 1, 2, 3, 4, 5]
    assert sorted(ask.seed for ask in engine.asked) == list(range(6))
    assert engine.events == ["made"] * -(-6 // together)


class LastWaits(ScriptedEngine):
    """Makes the last completion only once another has been scored."""

    scored: asyncio.Event

    async def generate(self, asks: Sequence[Ask], weights: Published) -> list[Completion | Failed]:
        if asks[0].seed == len(PROBLEMS) - 1:
            async with asyncio.timeout(60):  # else a roll-out that scores late would wait for ever
                await self.scored.wait()
        return await super().generate(asks, weights)


async def test_scores_completions_while_others_are_made() -> None:
    engine = LastWaits(echo)
    engine.scored = asyncio.Event()

    def seen(problem: Problem, made: Completion) -> Rewarded:
        engine.scored.set()
        return first_token(problem, made)

    found = await rolled(engine, ScriptedRewards(seen))
    assert [each.rewarded.reward for each in found.samples] == [0, 1, 2, 3, 4, 5]


async def test_without_overlap_scores_after_the_last_completion() -> None:
    events: list[str] = []
    found = await rolled(
        ScriptedEngine(echo, events=events), ScriptedRewards(first_token, events=events), overlap=False
    )
    assert events == ["made"] * 6 + ["scored"] * 6
    assert found.generating_s >= 0.01  # the last one waits 5 · 2 ms


async def test_what_could_not_be_made_is_not_scored() -> None:
    def fails(ask: Ask, place: int) -> Completion | Failed:
        return Failed("context_overflow", "too long") if place == 2 else echo(ask, place)

    rewards = ScriptedRewards(first_token)
    found = await rolled(ScriptedEngine(fails), rewards)

    assert rewards.events == ["scored"] * 5
    assert [each.rewarded.failure for each in found.samples] == [None, None, "context_overflow", None, None, None]
    assert found.samples[2].rewarded.reward is None


async def test_refuses_what_other_weights_sampled() -> None:
    def stale(ask: Ask, place: int) -> Completion:
        return Completion(list(ask.prompt_ids), [-1.0], "stop", "sha256:0" if place == 3 else "")

    rewards = ScriptedRewards(first_token)
    with pytest.raises(StalePolicy, match=r"sha256:0, not with sha256:1"):
        await rolled(ScriptedEngine(stale), rewards)
    assert len(rewards.events) <= 5  # not that one


async def test_a_server_that_is_gone_ends_the_step_with_its_error() -> None:
    def gone(problem: Problem, _: Completion) -> Rewarded:
        raise Unavailable("the reward server is away")

    with pytest.raises(Unavailable, match="the reward server is away"):
        await rolled(ScriptedEngine(echo), ScriptedRewards(gone), together=3)


async def test_an_error_of_its_own_is_not_hidden() -> None:
    def broken(ask: Ask, place: int) -> Completion:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        await rolled(ScriptedEngine(broken), ScriptedRewards(first_token))
    assert raised.group_contains(ZeroDivisionError)


def test_every_step_and_place_has_its_own_seed() -> None:
    seeds = {sample_seed(seed, step, place) for seed in range(3) for step in range(20) for place in range(50)}
    assert len(seeds) == 3 * 20 * 50
    assert max(seeds) < 2**63  # what `POST /generate` takes
    assert sample_seed(7, 11, 13) == sample_seed(7, 11, 13)
