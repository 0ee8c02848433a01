"""`/explain` with `score: true`, against a real reward server."""

from __future__ import annotations

import httpx
import pytest

from rlt_reward_server import app as reward_app
from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.testing import running
from rlt_teacher_server.app import build


def test_ranked_by_reward(explain):
    reply = explain(n=8, seed=2, score=True)
    rewards = [e["score"]["reward"] for e in reply["explanations"]]
    assert rewards == sorted(rewards, reverse=True)
    assert len(set(rewards)) > 1
    complete = [e for e in reply["explanations"] if e["gen_status"] == "complete"]
    assert reply["best"] == complete[0]["index"]
    assert all(e["score"]["kl_source"] == "sent" for e in reply["explanations"])
    assert all(e["score"]["index"] == e["index"] for e in reply["explanations"])


def test_scoring_changes_no_sample(explain):
    by_index = sorted(explain(n=6, seed=2, score=True)["explanations"], key=lambda e: e["index"])
    assert [e["completion"] for e in by_index] == [e["completion"] for e in explain(n=6, seed=2)["explanations"]]


def test_the_score_is_that_of_the_reward_server(explain, reward, problem):
    """Of the text with its ids, and of the completion with its ids: the invariants of the reward."""
    for explanation in explain(n=4, seed=7, score=True, return_tokens=True)["explanations"]:
        teacher = explanation["teacher"]
        items = [
            problem | {"completion": explanation["completion"], "teacher": teacher},
            problem | {"teacher": teacher},
        ]
        if explanation["gen_status"] == "complete":
            items.append(problem | {"explanation": explanation["text"], "teacher": teacher})
        scores = reward.post("/reward", json={"items": items}).json()["items"]
        assert [score["reward"] for score in scores] == pytest.approx(
            [explanation["score"]["reward"]] * len(items), abs=1e-5
        )


def test_an_unclosed_explanation_is_scored_with_its_penalty_and_is_never_best(explain):
    reply = explain(n=3, max_tokens=2, score=True, seed=1)
    assert reply["best"] is None
    assert [e["score"]["components"]["format"] for e in reply["explanations"]] == [-1.0] * 3


def test_other_rewards_can_be_ranked_by(explain):
    plain, weighted = (explain(n=2, seed=1, score=True, spec=spec) for spec in ("ss_only", {"lambda": 8}))
    assert plain["explanations"][0]["score"]["components"]["r_kl"] is None
    rewards = weighted["explanations"][0]["score"]
    parts = rewards["components"]
    assert rewards["reward"] == pytest.approx(parts["r_ss"] - 8 * parts["r_kl"] + parts["format"], abs=1e-4)


def test_a_sampling_whose_logprobs_are_no_use_is_refused_before_anything_is_sampled(teacher, problem):
    body = problem | {"score": True, "temperature": 1.0}
    refused = [teacher.post("/explain", json=body | extra) for extra in ({}, {"stream": True})]
    assert [(each.status_code, each.json()["type"]) for each in refused] == [(422, "sampling_unusable_for_kl")] * 2
    assert refused[0].json()["errors"][0]["pointer"] == "/temperature"


def test_what_overflows_is_not_scored(explain):
    [explanation] = explain(max_tokens=300, score=True)["explanations"]
    assert explanation["score"] is None


def test_a_spec_that_the_reward_server_refuses_is_refused(teacher, problem):
    response = teacher.post("/explain", json=problem | {"score": True, "spec": {"kl": "exact"}, "max_tokens": 5})
    assert (response.status_code, response.json()["type"]) == (422, "unsupported_kl")


def test_exact_kl_is_of_a_hosted_teacher(settings, tiny_model, problem):
    """The sampled log-probs are no help to it, and are left out."""
    hosting = RewardSettings(student=str(tiny_model), teacher=str(tiny_model), format="mini", threads=1)
    with (
        running(lambda: reward_app.build(hosting)) as reward_url,
        running(lambda: build(settings(reward_url=reward_url))) as url,
    ):
        body = problem | {"score": True, "spec": {"kl": "exact"}, "n": 2, "seed": 3, "max_tokens": 27}
        explanations = httpx.post(f"{url}/explain", json=body, timeout=60).json()["explanations"]
        items = [problem | {"completion": each["completion"]} for each in explanations]
        scores = httpx.post(f"{reward_url}/reward", json={"items": items, "spec": {"kl": "exact"}}).json()["items"]
        hot = httpx.post(f"{url}/explain", json=problem | {"score": True, "temperature": 1.0, "seed": 3}, timeout=60)
    assert [each["score"]["kl_source"] for each in explanations] == ["hosted"] * 2
    assert [each["score"]["reward"] for each in explanations] == pytest.approx([s["reward"] for s in scores], abs=1e-4)
    [explanation] = hot.json()["explanations"]
    assert "kl_hosted" in explanation["flags"], "the sampled log-probs are no use, and it is said whose are"
    assert explanation["score"]["kl_source"] == "hosted"


def test_without_a_reward_server(settings, problem):
    with running(lambda: build(settings())) as url:
        response = httpx.post(f"{url}/explain", json=problem | {"score": True})
    assert (response.status_code, response.json()["type"]) == (422, "scoring_not_configured")
    assert response.json()["errors"][0]["pointer"] == "/score"


def test_a_reward_server_that_is_down_costs_the_scores_only(settings, problem):
    given = settings(reward_url="http://127.0.0.1:9", reward_timeout_s=0.5)
    with running(lambda: build(given)) as url:
        reply = httpx.post(f"{url}/explain", json=problem | {"score": True, "n": 2, "max_tokens": 5}, timeout=60).json()
    assert [e["score"]["error"]["type"] for e in reply["explanations"]] == ["scorer_unavailable"] * 2
    assert all(e["completion"] for e in reply["explanations"])
    assert reply["best"] is None
