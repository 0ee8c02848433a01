"""`/v1/chat/completions` and `/v1/models`: the same explanations as `/explain`, in OpenAI's shapes."""

from __future__ import annotations

import time

import pytest

from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import PolicyInfo, PolicyState
from rlt_teacher_server.openai.models import card, cards
from rlt_teacher_server.openai.reading import NEUTRAL


def contents(reply) -> dict[int, str | None]:
    return {choice["index"]: choice["message"]["content"] for choice in reply.json()["choices"]}


def test_a_completion_is_what_explain_says(chat, explain):
    before = int(time.time())
    reply = chat(n=3, seed=1)
    body, expected = reply.json(), explain(n=3, seed=1)
    assert contents(reply) == {each["index"]: each["text"] for each in expected["explanations"]}
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["role"] for choice in body["choices"]} == {"assistant"}
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert before <= body["created"] <= time.time()
    assert (body["model"], body["system_fingerprint"]) == (
        expected["policy"]["name"],
        expected["policy"]["revision"],
    )
    spent = expected["usage"]["completion_tokens"]
    assert body["usage"] == {"prompt_tokens": 13, "completion_tokens": spent, "total_tokens": 13 + spent}
    assert (body["rlt"]["format"], body["rlt"]["seed"]) == (expected["format"], 1)


def test_every_reply_has_an_id_of_its_own(chat):
    assert chat(seed=1).json()["id"] != chat(seed=1).json()["id"]


def test_the_solution_may_stand_beside_the_messages(chat, conversation, problem):
    beside = chat(messages=conversation[:1], answer=problem["answer"], seed=2)
    assert contents(beside) == contents(chat(seed=2))


def test_text_in_parts_and_an_empty_system_message_change_nothing(chat, problem):
    question = problem["question"]
    parts = [{"type": "text", "text": question[:9]}, {"type": "text", "text": question[9:]}]
    messages = [
        {"role": "system", "content": " "},
        {"role": "user", "content": parts, "name": "ada"},
        {"role": "assistant", "content": problem["answer"], "refusal": None},
    ]
    assert contents(chat(messages=messages, seed=2)) == contents(chat(seed=2))


def test_the_defaults_are_the_papers(chat, explain):
    reply = contents(chat(n=4, seed=3, temperature=None, top_p=None))
    assert reply == contents(chat(n=4, seed=3, temperature=0.7, top_p=1))
    assert reply != contents(chat(n=4, seed=3, temperature=1))
    assert list(contents(chat(seed=3)).values()) == [explain(seed=3)["explanations"][0]["text"]]


def test_sampling_is_as_asked(chat, explain):
    sampling = {"temperature": 1.5, "top_p": 0.9, "top_k": 3, "seed": 11, "n": 4}
    told = [each["text"] for each in explain(**sampling)["explanations"]]
    assert list(contents(chat(**sampling)).values()) == told


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_what_is_cut_off_is_no_explanation(chat, name):
    reply = chat(temperature=0, **({"max_tokens": None} | {name: 2}))
    [choice] = reply.json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] is None
    assert "its budget of tokens ran out" in choice["message"]["refusal"]
    assert choice["rlt"]["gen_status"] == "truncated"
    assert reply.json()["usage"]["completion_tokens"] == 2


def test_scored_choices_are_ranked(chat, explain):
    asked = {"n": 4, "seed": 5, "score": True}
    expected = explain(**asked)
    body = chat(n=4, seed=5, rlt={"score": True}).json()
    rewards = [choice["rlt"]["reward"] for choice in body["choices"]]
    assert rewards == sorted(rewards, reverse=True)
    assert [choice["index"] for choice in body["choices"]] == [each["index"] for each in expected["explanations"]]
    assert rewards == pytest.approx([each["score"]["reward"] for each in expected["explanations"]], abs=1e-5)
    assert body["rlt"]["best"] == body["choices"][0]["index"] == expected["best"]
    [best] = chat(n=4, seed=5, rlt={"score": True, "keep": "best"}).json()["choices"]
    assert best["message"] == body["choices"][0]["message"]


def test_a_spec_and_a_least_reward(chat):
    body = chat(n=3, seed=5, rlt={"score": True, "spec": {"preset": "ss_only"}, "min_reward": 1e6}).json()
    assert body["choices"] == []
    assert body["rlt"]["dropped"]["min_reward"] == 3


def test_log_probs_are_those_that_were_sampled(chat):
    reply = chat(n=3, seed=7, logprobs=True, rlt={"return_tokens": True}).json()
    for choice in reply["choices"]:
        content, teacher = choice["logprobs"]["content"], choice["rlt"]["teacher"]
        assert "".join(token["token"] for token in content) == choice["message"]["content"]
        assert bytes(byte for token in content for byte in token["bytes"]).decode() == choice["message"]["content"]
        logprobs = [token["logprob"] for token in content]
        assert logprobs == teacher["logprobs"][: len(logprobs)]
        assert len(logprobs) == len(teacher["logprobs"]), "the last token is a space and the closing tag"
    assert reply["choices"][0]["logprobs"]["refusal"] is None


def test_log_probs_and_tokens_come_only_if_asked_for(chat):
    [choice] = chat(seed=7).json()["choices"]
    assert choice["logprobs"] is None
    assert choice["rlt"]["teacher"] is None
    [choice] = chat(seed=7, logprobs=True).json()["choices"]
    assert choice["rlt"]["teacher"] is None
    [choice] = chat(seed=7, logprobs=True, max_tokens=2).json()["choices"]
    assert choice["logprobs"] is None


def test_what_changes_nothing_is_let_through(chat):
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
    ignored = {"user": "ada", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": False, "novelty": [1]}
    nulls = dict.fromkeys(("tools", "stop", "rlt", "answer", "seed", "stream", "n", "stream_options"))
    assert contents(chat(**neutral | ignored | nulls | {"seed": 2})) == contents(chat(seed=2))


@pytest.mark.parametrize("name", ["active", "name", "revision", "both"])
def test_a_policy_by_any_of_its_names(chat, teacher, name):
    policy = chat(seed=1).json()["rlt"]["policy"]
    names = {
        "active": "teacher",
        "name": policy["name"],
        "revision": policy["revision"],
        "both": f"{policy['name']}@{policy['revision']}",
    }
    assert contents(chat(seed=1, model=names[name])) == contents(chat(seed=1))
    found = teacher.get(f"/v1/models/{names[name]}").json()
    assert found["id"] == names[name]
    assert (found["rlt"]["name"], found["rlt"]["revision"]) == (policy["name"], policy["revision"])


def test_models_are_listed(teacher, tiny_model):
    body = teacher.get("/v1/models").json()
    assert body["object"] == "list"
    assert [each["id"] for each in body["data"]] == ["teacher", tiny_model.name]
    assert {each["object"] for each in body["data"]} == {"model"}
    assert all(0 < each["created"] <= time.time() for each in body["data"])
    assert all(each["rlt"]["active"] and each["rlt"]["kind"] == "full" for each in body["data"])


def policy(name: str, revision: str, state: PolicyState = PolicyState.serving, *, active: bool = False) -> PolicyInfo:
    return PolicyInfo(name=name, revision=revision, kind=ModelKind.lora, active=active, state=state, loaded_at=3.5)


INFOS = [
    policy("new/one", "r5"),
    policy("gone", "r4", PolicyState.known),
    policy("gone", "r3"),
    policy("teacher", "r2"),
    policy("base", "r1", active=True),
    policy("old", "r0", PolicyState.retiring),
]
"""The newest first."""


def test_only_what_requests_get_is_listed():
    listed = [(each.id, each.rlt.revision) for each in cards(INFOS).data]
    assert listed == [("teacher", "r1"), ("new/one", "r5"), ("base", "r1")]


@pytest.mark.parametrize(
    ("id", "revision"),
    [("teacher", "r1"), ("new/one", "r5"), ("r3", "r3"), ("gone@r3", "r3"), ("r2", "r2"), ("base@r1", "r1")],
)
def test_one_is_found_by_what_requests_call_it(id, revision):
    assert card(INFOS, id).rlt == card(INFOS, revision).rlt
    assert card(INFOS, id).rlt.revision == revision


@pytest.mark.parametrize("id", ["gone", "r4", "old", "r0", "base@r2", ""])
def test_what_is_not_served_is_not_found(id):
    from rlt_client.errors import NotFound

    with pytest.raises(NotFound, match="there is teacher, new/one, base"):
        card(INFOS, id)


def test_a_card_says_when_it_was_loaded():
    assert card(INFOS, "base").created == 3
    assert ModelRef(name="base", revision="r1").model_dump().items() <= card(INFOS, "base").rlt.model_dump().items()
