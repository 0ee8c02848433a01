"""`POST /explain` as its users see it."""

from __future__ import annotations

import pytest

from rlt_service.revision import model_revision
from rlt_teacher_server.seeds import derive_seed


def test_one_explanation(explain, tiny_model, mini):
    reply = explain(temperature=0)
    [explanation] = reply["explanations"]
    assert explanation["gen_status"] == "complete"
    assert explanation["completion"] == explanation["text"] + "#"
    assert explanation["finish_reason"] == "stop"
    assert explanation["text"].split()[0] == "36"
    assert explanation["score"] is None
    assert explanation["teacher"] is None
    assert reply["best"] is None
    assert reply["policy"] == {"name": tiny_model.name, "revision": model_revision(tiny_model)}
    assert reply["format"] == mini.ref.model_dump()


def test_usage_counts_the_prompt_once(explain):
    reply = explain(n=3, seed=1)
    each = [explanation["usage"] for explanation in reply["explanations"]]
    assert {usage["prompt_tokens"] for usage in each} == {13}  # Q 36, four pairs, = 17 >
    assert reply["usage"]["prompt_tokens"] == 13
    assert reply["usage"]["completion_tokens"] == sum(usage["completion_tokens"] for usage in each)


def test_samples_come_in_order_and_differ(explain):
    reply = explain(n=8, seed=1)
    assert [explanation["index"] for explanation in reply["explanations"]] == list(range(8))
    assert len({explanation["completion"] for explanation in reply["explanations"]}) > 3


def test_a_seed_makes_a_request_repeatable(explain):
    texts = [[e["completion"] for e in explain(n=4, seed=seed)["explanations"]] for seed in (5, 5, 6)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_without_a_seed_requests_differ(explain):
    texts = [[e["completion"] for e in explain(n=6)["explanations"]] for _ in range(2)]
    assert texts[0] != texts[1]


def test_a_sample_does_not_depend_on_how_many_were_asked_for(explain):
    few, many = explain(n=2, seed=9), explain(n=7, seed=9)
    assert [e["completion"] for e in few["explanations"]] == [e["completion"] for e in many["explanations"]][:2]


def test_every_sample_tells_its_seed(explain):
    assert [e["seed"] for e in explain(n=3, seed=4)["explanations"]] == [derive_seed(4, i) for i in range(3)]


def test_the_seed_of_a_sample_follows_from_the_documented_hash():
    """sha256("4:1") begins with c6 8c 9c 7f … by any tool; the first eight bytes, shifted by one bit."""
    import hashlib

    assert derive_seed(4, 1) == int(hashlib.sha256(b"4:1").hexdigest()[:16], 16) // 2
    assert all(0 <= derive_seed(2**63 - 1, i) < 2**63 for i in range(100))


def test_a_truncated_explanation_is_named_so(explain):
    [explanation] = explain(max_tokens=2, temperature=0)["explanations"]
    assert explanation["gen_status"] == "truncated"
    assert explanation["finish_reason"] == "length"
    assert explanation["usage"]["completion_tokens"] == 2
    assert explanation["text"] is None, "an unfinished thought is no answer"
    assert len(explanation["completion"].split()) == 2


def test_the_default_budget_is_cut_to_the_context(teacher, problem):
    response = teacher.post("/explain", json=problem | {"temperature": 0})
    assert response.json()["explanations"][0]["gen_status"] == "complete"


def test_a_budget_beyond_the_context_overflows(explain):
    reply = explain(n=2, max_tokens=300)
    assert [e["gen_status"] for e in reply["explanations"]] == ["context_overflow"] * 2
    assert reply["explanations"][0]["text"] is None
    assert reply["explanations"][0]["error"]["type"] == "context_overflow"
    assert reply["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("extra", [{}, {"max_tokens": None}])
def test_a_question_beyond_the_context_overflows(explain, extra):
    question = "Q 36 " + " ".join(f"{label} +5" for label in "ABCDEFGH" * 20)
    [explanation] = explain(question=question, **extra)["explanations"]
    assert explanation["gen_status"] == "context_overflow"


def test_timing_adds_up(explain):
    timing = explain(n=4)["timing"]
    assert timing["engine_ms"] > 0
    assert all(value >= 0 for value in timing.values())


def test_return_tokens(explain):
    [explanation] = explain(return_tokens=True, seed=3, top_p=0.9, top_k=7)["explanations"]
    teacher = explanation["teacher"]
    assert len(teacher["token_ids"]) == len(teacher["logprobs"]) == explanation["usage"]["completion_tokens"]
    assert (teacher["temperature"], teacher["top_p"], teacher["top_k"]) == (0.7, 0.9, 7)
    assert teacher["revision"].startswith("sha256:")


def test_the_policy_can_be_named(explain, tiny_model):
    name = explain()["policy"]
    assert explain(policy=name["name"])["policy"] == explain(policy=name["revision"])["policy"] == name
