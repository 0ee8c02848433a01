"""Two policies on one question in one call: the model and an adapter on it, both sampled and scored for real."""

from __future__ import annotations

import httpx
import pytest

from rlt_service.revision import model_revision
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.seeds import derive_seed

N = 4


@pytest.fixture(scope="module")
def client(settings, policies_dir, reward_url, tiny_adapter):
    """`a` writes as the model does, almost; `b` is far from it."""
    given = settings(allowed_roots=[policies_dir], reward_url=reward_url)
    with running(lambda: build(given)) as url, httpx.Client(base_url=url, timeout=60) as client:
        for name, source in (("a", tiny_adapter(1, scale=0.01)), ("b", tiny_adapter(2, scale=2.0))):
            assert client.post("/policies", json={"name": name, "source": str(source)}).status_code == 201
        yield client


@pytest.fixture
def compared(client, problem, tiny_model):
    def ask(**given):
        body = problem | {"n": N, "seed": 4, "max_tokens": 27, "policies": [tiny_model.name, "b"]} | given
        response = client.post("/explain", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


def by_index(reply):
    return sorted(reply["explanations"], key=lambda each: each["index"])


def test_each_policy_writes_its_own_explanations_with_the_same_seeds(compared, client, problem, tiny_model):
    reply = compared()
    explanations = by_index(reply)
    assert [each["seed"] for each in explanations] == [derive_seed(4, place) for place in range(N)] * 2
    revisions = [each["policy"]["revision"] for each in explanations]
    assert revisions[:N] == [model_revision(tiny_model)] * N
    assert len({*revisions[N:]}) == 1
    assert revisions[N].startswith(f"{model_revision(tiny_model)}+")
    for first, name in ((0, tiny_model.name), (N, "b")):
        alone = client.post("/explain", json=problem | {"n": N, "seed": 4, "max_tokens": 27, "policy": name}).json()
        texts = [each["completion"] for each in by_index(alone)]
        assert [each["completion"] for each in explanations[first : first + N]] == texts


def test_the_comparison_is_what_the_explanations_say(compared, tiny_model):
    reply = compared(score=True)
    explanations = by_index(reply)
    assert [each["policy"]["name"] for each in reply["comparison"]] == [tiny_model.name, "b"]
    for place, summary in enumerate(reply["comparison"]):
        own = explanations[place * N : (place + 1) * N]
        rewards = [each["score"]["reward"] for each in own if each["score"]["reward"] is not None]
        assert summary["samples"] == N
        assert summary["scored"] == len(rewards)
        assert summary["mean_reward"] == pytest.approx(sum(rewards) / len(rewards))
        assert summary["complete"] == sum(each["gen_status"] == "complete" for each in own)
    model, far = reply["comparison"]
    assert model["mean_reward"] > far["mean_reward"]
    assert model["wins"] + far["wins"] <= N
    assert model["wins"] > far["wins"]
    assert reply["best"] < N


def test_a_policy_is_not_compared_with_itself(client, problem, tiny_model):
    body = problem | {"policies": ["b", tiny_model.name, model_revision(tiny_model)]}
    response = client.post("/explain", json=body)
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["pointer"] == "/policies/2"
    assert "once more" in error["detail"]


def test_the_teacher_tokens_say_which_policy_wrote_them(compared):
    explanations = by_index(compared(return_tokens=True))
    assert [each["teacher"]["revision"] for each in explanations] == [
        each["policy"]["revision"] for each in explanations
    ]


def test_a_streamed_comparison_ends_in_the_same_reply(client, compared, problem, tiny_model):
    body = problem | {"n": N, "seed": 4, "max_tokens": 27, "policies": [tiny_model.name, "b"], "stream": True}
    text = client.post("/explain", json=body).text
    assert text.count("event: finished\n") == 2 * N
    last = text.rstrip().rpartition("event: done\ndata: ")[2]
    done = httpx.Response(200, content=last.encode()).json()["response"]
    texts = [[each["completion"] for each in by_index(reply)] for reply in (done, compared())]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("stream", [False, True])
def test_one_unknown_policy_fails_the_whole_request(client, problem, stream):
    response = client.post("/explain", json=problem | {"policies": ["a", "nope"], "stream": stream})
    assert (response.status_code, response.json()["type"]) == (404, "policy_not_found")
    assert response.json()["errors"][0]["pointer"] == "/policies/1"


@pytest.mark.parametrize("policies", [["a"], ["a", "a"], ["p"] * 9, []], ids=["one", "the-same-twice", "nine", "none"])
def test_what_is_no_comparison(client, problem, policies):
    assert client.post("/explain", json=problem | {"policies": policies}).status_code == 422


def test_a_policy_and_policies(client, problem):
    assert client.post("/explain", json=problem | {"policies": ["a", "b"], "policy": "a"}).status_code == 422


def test_nothing_is_held_afterwards(client, compared):
    compared()
    policies = client.get("/policies").json()
    assert [policy["requests"] for policy in policies["policies"]] == [0, 0, 0]
