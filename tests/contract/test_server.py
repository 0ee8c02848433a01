"""The API over both engines, with a real reward server: what is returned, scored and sent on is one and the same."""

from __future__ import annotations

import json

import httpx
import pytest

from rlt_reward_server import app as reward_app
from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.settings import Settings


@pytest.fixture(scope="module")
def reward_url(tiny_model):
    settings = RewardSettings(student=str(tiny_model), teacher=str(tiny_model), format="mini", threads=1)
    with running(lambda: reward_app.build(settings)) as url:
        yield url


@pytest.fixture(scope="module")
def teacher(tiny_model, engine_address, reward_url):
    given = {"model": str(tiny_model), "engine": engine_address, "format": "mini", "reward_url": reward_url}
    with running(lambda: build(Settings(**given, threads=1))) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def reply(teacher, mini):
    body = {"question": mini.probe.question, "answer": mini.probe.answer, "n": 8, "seed": 5, "max_tokens": 27}
    response = teacher.post("/explain", json=body | {"score": True, "return_tokens": True})
    assert response.status_code == 200, response.text
    return response.json()


def score(reward_url, mini, **item):
    problem = {"question": mini.probe.question, "answer": mini.probe.answer}
    [scored] = httpx.post(f"{reward_url}/reward", json={"items": [problem | item]}, timeout=60).json()["items"]
    return scored


def test_samples_are_ranked(reply):
    rewards = [explanation["score"]["reward"] for explanation in reply["explanations"]]
    assert rewards == sorted(rewards, reverse=True)
    assert len({explanation["completion"] for explanation in reply["explanations"]}) > 2


def test_the_same_score_for_the_ids_the_text_and_the_completion(reply, reward_url, mini):
    explanation = next(e for e in reply["explanations"] if e["gen_status"] == "complete")
    teacher, expected = explanation["teacher"], pytest.approx(explanation["score"]["reward"], abs=1e-5)
    assert score(reward_url, mini, teacher=teacher)["reward"] == expected
    assert score(reward_url, mini, completion=explanation["completion"], teacher=teacher)["reward"] == expected
    assert score(reward_url, mini, explanation=explanation["text"], teacher=teacher)["reward"] == expected


def test_the_log_probs_sent_are_those_a_hosted_teacher_computes(reply, reward_url, mini):
    for explanation in reply["explanations"]:
        hosted = score(reward_url, mini, completion=explanation["completion"])
        assert hosted["kl_source"] == "hosted"
        assert hosted["reward"] == pytest.approx(explanation["score"]["reward"], abs=1e-3)


def test_ready(teacher):
    assert teacher.get("/readyz").status_code == 200


def test_overflow(teacher, mini):
    body = {"question": mini.probe.question, "answer": mini.probe.answer, "max_tokens": 300}
    [explanation] = teacher.post("/explain", json=body).json()["explanations"]
    assert explanation["gen_status"] == "context_overflow"


@pytest.mark.parametrize("stream", [False, True])
def test_openai_s_protocol_gives_the_same_explanations(teacher, reply, mini, stream):
    body = {
        "model": "teacher",
        "messages": [
            {"role": "user", "content": mini.probe.question},
            {"role": "assistant", "content": mini.probe.answer},
        ],
        "n": 8,
        "seed": 5,
        "max_tokens": 27,
        "logprobs": True,
    }
    response = teacher.post("/v1/chat/completions", json=body | {"stream": stream})
    assert response.status_code == 200, response.text
    parts = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    choices = [choice for part in parts or [response.json()] for choice in part["choices"]]
    said = {place: dict.fromkeys(("content", "logprobs"), "") for place in range(8)}
    for choice in choices:
        said[choice["index"]]["content"] += (choice.get("message") or choice["delta"]).get("content") or ""
        tokens = (choice["logprobs"] or {"content": []})["content"]
        said[choice["index"]]["logprobs"] += "".join(token["token"] for token in tokens)
    for each in reply["explanations"]:
        if each["gen_status"] == "complete":
            assert said[each["index"]] == {"content": each["text"], "logprobs": each["text"]}
