"""What all hooks share: settings, one score a sample, failures that stay failures, and the guard."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from rlt_client.errors import ItemError, NotFound, Unavailable
from rlt_client.integrations.hook import AnswersInQuestions, Hook, Sample, shared
from rlt_client.integrations.settings import HookMisconfigured, HookSettings
from rlt_client.schemas.reward import KLEstimator, MappingKind, Preset, RewardItem, RewardRequest
from rlt_client.testing import FakePlatform, hashed_reward

URL = "http://fake"


def make(fake: FakePlatform, **settings: Any) -> Hook:
    given = {"url": URL, "kl": "hosted"} | settings
    return Hook(HookSettings.read(**given), transport=fake.transport())


def sample(number: int, **more: Any) -> Sample:
    return Sample(f"because {number}", row={"question": f"question {number}", "answer": f"answer {number}"}, **more)


def expected(number: int) -> float:
    return hashed_reward(
        RewardItem(question=f"question {number}", answer=f"answer {number}", completion=f"because {number}")
    )


class TestSettings:
    def test_the_source_of_the_teachers_log_probs_must_be_chosen(self) -> None:
        with pytest.raises(HookMisconfigured, match=r"kl \(RLT_HOOK_KL\) is not set: choose .*hosted.*sent.*ss_only"):
            HookSettings.read(url=URL)
        with pytest.raises(HookMisconfigured, match="kl"):
            HookSettings.read(url=URL, spec="kl_only")

    @pytest.mark.parametrize(
        ("given", "preset"),
        [
            ({"kl": "ss_only"}, Preset.ss_only),
            ({"kl": "hosted"}, Preset.rlt),
            ({"kl": "sent", "temperature": 0.7}, Preset.rlt),
            ({"kl": "hosted", "spec": "kl_only"}, Preset.kl_only),
            ({"spec": "ss_only"}, Preset.ss_only),
            ({"spec": "rlpr"}, Preset.rlpr),
        ],
    )
    def test_the_reward_that_follows_from_it(self, given: dict[str, Any], preset: Preset) -> None:
        assert HookSettings.read(url=URL, **given).reward_spec.preset is preset

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"kl": "ss_only", "spec": "rlt"}, "leave out one"),
            ({"kl": "hosted", "spec": "rlpr"}, "rlpr has no KL"),
            ({"kl": "sent"}, r"temperature \(RLT_HOOK_TEMPERATURE\)"),
            ({"kl": "guess"}, r"kl \(RLT_HOOK_KL\)"),
            ({"kl": "hosted", "spec": "best"}, r"spec.preset \(RLT_HOOK_SPEC\)"),
            ({"kl": "hosted", "spec": "{"}, r"spec \(RLT_HOOK_SPEC\)"),
            ({"kl": "hosted", "deadline": 0}, r"deadline \(RLT_HOOK_DEADLINE\)"),
            ({"kl": "hosted", "invalid_reward": float("nan")}, r"invalid_reward \(RLT_HOOK_INVALID_REWARD\)"),
            ({"kl": "hosted", "invalid_rewards": -9}, r"invalid_rewards \(RLT_HOOK_INVALID_REWARDS\)"),
            ({"kl": "hosted", "url": "fake:8002"}, r"url \(RLT_REWARD_URL\)"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_variable(self, given: dict[str, Any], said: str) -> None:
        with pytest.raises(HookMisconfigured, match=said):
            HookSettings.read(**{"url": URL} | given)

    def test_variables_stand_in_for_what_is_not_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        variables = {
            "RLT_REWARD_URL": URL,
            "RLT_KEY": "secret",
            "RLT_HOOK_KL": "hosted",
            "RLT_HOOK_SPEC": '{"preset": "rlt", "kl": "k3", "mapping": {"kind": "sigmoid"}}',
            "RLT_HOOK_DEADLINE": "12.5",
            "RLT_HOOK_INVALID_REWARD": "-30",
            "RLT_HOOK_FORMAT": "mini",
            "RLT_HOOK_STUDENT": "",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings = HookSettings.read(format="plain", student=None)
        assert settings.key is not None
        assert settings.key.get_secret_value() == "secret"
        assert settings.reward_spec.kl is KLEstimator.k3
        assert settings.reward_spec.mapping is not None
        assert settings.reward_spec.mapping.kind is MappingKind.sigmoid
        assert (settings.deadline, settings.invalid_reward) == (12.5, -30)
        assert settings.format == "plain"
        assert settings.student is None

    def test_a_misspelt_variable_is_told_and_no_value_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RLT_HOOK_DEADLNE", "12")
        monkeypatch.setenv("RLT_KEY", "secret")
        with pytest.raises(HookMisconfigured, match="RLT_HOOK_DEADLNE") as caught:
            HookSettings.read(url=URL, kl="hosted")
        assert "secret" not in str(caught.value)

    def test_settings_are_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(HookMisconfigured, match="RLT_REWARD_URL"):
            shared()
        monkeypatch.setenv("RLT_REWARD_URL", URL)
        monkeypatch.setenv("RLT_HOOK_KL", "hosted")
        assert shared() is shared()
        assert shared(deadline=3) is not shared()


class TestScoring:
    async def test_rewards_come_back_in_order_in_few_requests(self, fake: FakePlatform) -> None:
        with make(fake) as hook:
            rewards = await hook.rewards([sample(i) for i in range(150)])
        assert rewards == [expected(i) for i in range(150)]
        assert len(fake.requests) == 3  # 64 items a request at most

    async def test_single_calls_at_the_same_time_travel_together(self, fake: FakePlatform) -> None:
        with make(fake) as hook:
            lists = await asyncio.gather(*(hook.rewards([sample(i)]) for i in range(40)))
        assert [rewards[0] for rewards in lists] == [expected(i) for i in range(40)]
        assert len(fake.requests) < 20  # one a call would be 40

    def test_a_new_event_loop_a_step_and_threads_share_one_client(self, fake: FakePlatform) -> None:
        others = set(threading.enumerate())  # hooks that trainers' own tests leave open, as trainers do
        with make(fake) as hook:
            for step in range(3):
                assert asyncio.run(hook.rewards([sample(step)])) == [expected(step)]
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(lambda i: hook.rewards_now([sample(i)]), range(8))) == [
                    [expected(i)] for i in range(8)
                ]
            [own] = [each for each in threading.enumerate() if each.name == "rlt-hook" and each not in others]
        assert not own.is_alive()

    def test_a_closed_hook_opens_again(self, fake: FakePlatform) -> None:
        with make(fake) as hook:
            hook.rewards_now([sample(1)])
            hook.close()
            assert hook.rewards_now([sample(1)]) == [expected(1)]

    def test_what_is_configured_is_what_is_asked(self, fake: FakePlatform) -> None:
        settings = {"format": "mini", "student": "s", "teacher": "t", "teacher_revision": "r", "spec": "kl_only"}
        with make(fake, **settings) as hook:
            hook.rewards_now([sample(1)])
        [request] = fake.requests
        assert isinstance(request, RewardRequest)
        asked = (request.format, request.student, request.teacher, request.teacher_revision)
        assert asked == ("mini", "s", "t", "r")
        assert request.items[0].teacher is None

    def test_a_forked_worker_opens_a_line_of_its_own(self, fake_url: str) -> None:
        hook = Hook(HookSettings.read(url=fake_url, kl="hosted"))
        with hook:
            assert hook.rewards_now([sample(1)]) == [expected(1)]
            context = multiprocessing.get_context("fork")  # what process pools of trainers do on Linux
            results = context.Queue()
            worker = context.Process(target=lambda: results.put(hook.rewards_now([sample(2)])))
            worker.start()
            assert results.get(timeout=60) == [expected(2)]
            worker.join(timeout=60)
            assert worker.exitcode == 0
            assert hook.rewards_now([sample(3)]) == [expected(3)]


class TestFailures:
    def test_a_failed_item_ends_the_run_unless_told_otherwise(self) -> None:
        fake = FakePlatform(reward=fails_on("because 1"))
        with make(fake) as hook, pytest.raises(ItemError, match="too_long"):
            hook.rewards_now([sample(0), sample(1)])
        with make(fake, invalid_reward=-30) as hook:
            assert hook.rewards_now([sample(0), sample(1), sample(2)]) == [-1.0, -30.0, -1.0]

    @pytest.mark.parametrize(
        "broken",
        [
            Sample("because", row={"question": "q"}),
            Sample("because", label="42"),
            Sample(None, row={"question": "q", "answer": "a"}),
            Sample([{"role": "user", "content": "x"}], row={"question": "q", "answer": "a"}),
            Sample("half a \ud83d character", row={"question": "q", "answer": "a"}),
        ],
        ids=["no answer", "bare label", "no completion", "no assistant", "surrogate"],
    )
    def test_a_sample_that_cannot_be_read_spoils_no_other(self, fake: FakePlatform, broken: Sample) -> None:
        with make(fake) as hook:
            good, bad = hook.outcomes_now([sample(1), broken])
        assert good.reward == expected(1)
        assert bad.reward is None
        assert bad.failure is not None
        assert bad.failure.type == "unreadable_sample"

    @pytest.mark.parametrize("reward", [float("inf"), float("nan")])
    def test_a_reward_that_is_no_number_is_none(self, reward: float) -> None:
        with make(FakePlatform(reward=lambda _: reward)) as hook:
            [outcome] = hook.outcomes_now([sample(1)])
        assert outcome.reward is None
        assert outcome.failure is not None

    def test_a_server_that_stays_away_is_a_failure_within_the_deadline(self, caplog: pytest.LogCaptureFixture) -> None:
        fake = FakePlatform(refuse=lambda _: Unavailable(type="loading", retry_after=0.05))
        with make(fake, deadline=0.3) as hook, caplog.at_level(logging.WARNING):
            [outcome] = hook.outcomes_now([sample(1)])
        assert outcome.reward is None
        assert outcome.failure is not None
        assert outcome.failure.type in ("loading", "deadline_exceeded")
        assert "1 of 1 samples have no score" in caplog.text

    def test_nobody_there(self) -> None:
        with Hook(HookSettings.read(url="http://127.0.0.1:9", kl="hosted", deadline=0.3)) as hook:
            [outcome] = hook.outcomes_now([sample(1)])
        assert outcome.failure is not None
        assert outcome.failure.type in ("transport_error", "deadline_exceeded")

    def test_a_refusal_that_holds_for_all_ends_the_run(self) -> None:
        fake = FakePlatform(refuse=lambda _: NotFound(type="unknown_format"))
        with make(fake, invalid_reward=-30) as hook, pytest.raises(NotFound, match="unknown_format"):
            hook.rewards_now([sample(1), sample(2)])

    async def test_a_caller_who_leaves_takes_its_request_along(self) -> None:
        left = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def hang(_: httpx.Request) -> httpx.Response:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                loop.call_soon_threadsafe(left.set)
                raise
            return httpx.Response(500)

        hook = Hook(HookSettings.read(url=URL, kl="hosted"), transport=httpx.MockTransport(hang))
        with hook:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(hook.rewards([sample(1)]), 0.2)
            await asyncio.wait_for(left.wait(), 60)


class TestSent:
    def test_ids_and_log_probs_go_along_in_place_of_the_text(self, fake: FakePlatform) -> None:
        with make(fake, kl="sent", temperature=0.7, top_k=-1) as hook:
            hook.outcomes_now([sample(1, token_ids=[5, 6], logprobs=[-0.5, -0.25])])
        [request] = fake.requests
        assert isinstance(request, RewardRequest)
        [item] = request.items
        assert item.completion is None
        assert item.teacher is not None
        assert item.teacher.model_dump() == {
            "token_ids": [5, 6],
            "logprobs": [-0.5, -0.25],
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": -1,
            "revision": None,
        }

    def test_without_log_probs_there_is_no_fall_back(self, fake: FakePlatform) -> None:
        with (
            make(fake, kl="sent", temperature=0.7, invalid_reward=-30) as hook,
            pytest.raises(HookMisconfigured, match="teacher_logprobs"),
        ):
            hook.outcomes_now([sample(1, token_ids=[5, 6])])
        assert fake.requests == []

    @pytest.mark.parametrize("hole", [None, float("nan"), float("-inf")])
    def test_a_hole_in_the_log_probs_fails_that_sample_only(self, fake: FakePlatform, hole: float | None) -> None:
        samples = [sample(i, token_ids=[5, 6], logprobs=[-0.5, hole if i else -0.5]) for i in range(2)]
        with make(fake, kl="sent", temperature=0.7) as hook:
            good, bad = hook.outcomes_now(samples)
        assert good.reward is not None
        assert bad.reward is None


class TestGuard:
    LEAK = Sample("because", row={"question": "What is it? It is the answer.", "answer": "the answer"})

    def test_a_question_that_holds_its_answer_is_flagged(self, fake: FakePlatform) -> None:
        with make(fake) as hook:
            outcome, other = hook.outcomes_now([self.LEAK, sample(1)])
        assert outcome.flags == ["answer_in_question"]
        assert outcome.reward is not None
        assert other.flags == []

    def test_past_the_share_nothing_is_scored(self, fake: FakePlatform) -> None:
        with make(fake, guard_window=100) as hook:
            hook.outcomes_now([sample(i) for i in range(95)] + [self.LEAK] * 5)
            before = len(fake.requests)
            with pytest.raises(AnswersInQuestions, match=r"5% of the last questions.*question_key"):
                hook.outcomes_now([self.LEAK])
            assert len(fake.requests) == before

    def test_the_guard_can_be_told_that_it_is_right_so(self, fake: FakePlatform) -> None:
        with make(fake, guard_share=1) as hook:
            assert len(hook.outcomes_now([self.LEAK] * 100)) == 100


def fails_on(text: str) -> Any:
    def reward(item: RewardItem) -> float:
        if item.completion == text:
            raise ValueError("too_long")
        return -1.0

    return reward
