"""`POST /generate`: ids in, ids and log-probs out."""

from __future__ import annotations

from importlib.metadata import version

import pytest

PROMPT = [69 + 8, 36]  # any two ids of the vocabulary


@pytest.fixture
def generate(teacher):
    def ask(items, **given):
        response = teacher.post("/generate", json={"items": items, "max_tokens": 6} | given)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


def test_items_keep_their_order_and_ids(generate, tiny_model):
    items = [{"prompt_token_ids": [1 + i], "id": f"row {i}", "seed": i} for i in range(20)]
    reply = generate(items)
    assert [(item["id"], item["index"]) for item in reply["items"]] == [(f"row {i}", i) for i in range(20)]
    assert all(len(item["token_ids"]) == len(item["logprobs"]) > 0 for item in reply["items"])
    assert {item["policy_revision"] for item in reply["items"]} == {reply["policy"]["revision"]}
    assert reply["engine"] == f"transformers {version('transformers')}"


def test_one_seed_one_sample(generate):
    reply = generate([{"prompt_token_ids": PROMPT, "seed": seed} for seed in (1, 1, 2, 3, 4)], temperature=1.5)
    samples = [item["token_ids"] for item in reply["items"]]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) > 2


def test_without_seeds_equal_items_differ(generate):
    reply = generate([{"prompt_token_ids": PROMPT}] * 12, temperature=1.5)
    assert len({tuple(item["token_ids"]) for item in reply["items"]}) > 4


def test_an_explanation_can_be_made_again_from_its_seed(generate, explain, tiny_model, mini, problem):
    from rlt_client.prompts import teacher_prompt
    from rlt_teacher_server.model import load_model

    codec = load_model(str(tiny_model)).codec
    prompt = codec.encode(teacher_prompt(codec, mini, problem["question"], problem["answer"])).ids
    [explanation] = explain(return_tokens=True, seed=17)["explanations"]
    item = {"prompt_token_ids": prompt, "seed": explanation["seed"]}
    [again] = generate([item], max_tokens=27, stop=["#"])["items"]
    assert again["token_ids"] == explanation["teacher"]["token_ids"]
    assert again["logprobs"] == pytest.approx(explanation["teacher"]["logprobs"], abs=1e-5)


def test_stop_tokens_are_kept(generate):
    [free] = generate([{"prompt_token_ids": PROMPT, "seed": 1}], temperature=0)["items"]
    stop = free["token_ids"][2]
    [stopped] = generate([{"prompt_token_ids": PROMPT, "seed": 1}], temperature=0, stop_token_ids=[stop])["items"]
    assert stopped["token_ids"] == free["token_ids"][: free["token_ids"].index(stop) + 1]
    assert stopped["finish_reason"] == "stop"


def test_one_bad_item_spoils_no_other(generate):
    items = [{"prompt_token_ids": PROMPT}, {"prompt_token_ids": [10**6]}, {"prompt_token_ids": [1] * 300}]
    good, unknown, long = generate(items)["items"]
    assert good["error"] is None
    assert good["token_ids"]
    assert (unknown["error"]["type"], unknown["token_ids"], unknown["finish_reason"]) == ("unknown_token", [], None)
    assert long["error"]["type"] == "context_overflow"
