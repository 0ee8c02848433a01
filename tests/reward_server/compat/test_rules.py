"""What holds for every trainer's protocol: keys, configuration, deadlines, load, the guard, bodies of any kind."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzzing
from hypothesis import strategies as st

from rlt_client.schemas.common import Scope
from rlt_reward_server.app import build
from rlt_reward_server.compat import CompatMisconfigured, load_config
from rlt_reward_server.settings import Settings
from rlt_service import logs
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.testing import running

POSTS = {
    "openrlhf": "/compat/openrlhf/get_reward",
    "slime": "/compat/slime/reward",
    "nemo_gym": "/compat/nemo_gym/verify",
    "roll": "/compat/roll/submit_task",
}


@pytest.fixture(scope="session")
def bodies(sample: dict[str, Any], label: dict[str, str]) -> dict[str, dict[str, Any]]:
    """A good request of each protocol."""
    prompt, response = sample["prompt"], sample["completion"]
    item = {"type": "message", "content": [{"type": "output_text", "text": response}]}
    return {
        "openrlhf": {"query": [prompt + response], "prompts": [prompt], "labels": [label]},
        "slime": {"prompt": prompt, "response": response, "label": label},
        "nemo_gym": {**label, "responses_create_params": {"input": prompt}, "response": {"output": [item]}},
        "roll": {"prompt": prompt, "response": response, "reward_info": label},
    }


def every(toml: str) -> str:
    return "\n".join(f"[{name}]\n{toml}" for name in POSTS)


# Configuration


@pytest.mark.parametrize("protocol", POSTS)
@pytest.mark.parametrize("toml", ["", every("deadline_s = 5")], ids=["no section", "no choice of kl"])
def test_without_a_source_of_kl_a_route_answers_503(
    bare_and_unsettled: dict[str, httpx.Client], bodies: dict[str, Any], protocol: str, toml: str
) -> None:
    reply = bare_and_unsettled[toml].post(POSTS[protocol], json=bodies[protocol])
    assert (reply.status_code, reply.json()["type"]) == (503, "kl_source_not_configured")
    assert f"[{protocol}]" in reply.json()["detail"]


@pytest.fixture(scope="module")
def bare_and_unsettled(served: Any) -> Iterator[dict[str, httpx.Client]]:
    unsettled = every("deadline_s = 5")
    with served("") as bare, served(unsettled) as client:
        yield {"": bare, unsettled: client}


def test_a_reward_without_kl_needs_no_source(served: Any, bodies: dict[str, Any]) -> None:
    with served('[slime]\nspec = "verifree"', teacher=None) as client:
        assert client.post(POSTS["slime"], json=bodies["slime"]).status_code == 200


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[openrlhf", "--compat"),
        ("[trl]\nkl = 'hosted'", "[trl] Extra inputs are not permitted"),
        ("[slime]\nkl = 'sent'", "[slime.kl] Input should be 'ss_only' or 'hosted'"),
        ("[slime]\nkl = 'hosted'\ndeadline = 3", "[slime.deadline] Extra inputs are not permitted"),
        ("[slime]\nkl = 'hosted'\ndeadline_s = 0", "[slime.deadline_s] Input should be greater than 0"),
        ("[slime]\nkl = 'hosted'\ninvalid_reward = nan", "[slime.invalid_reward] Input should be a finite number"),
        ("[slime]\nkl = 'ss_only'\nspec = 'rlt'", "[slime] kl is ss_only, but spec is rlt"),
        ("[slime]\nkl = 'hosted'\nspec = 'rlpr'", "[slime] kl is hosted, but rlpr has no KL"),
        ("[slime]\nkl = 'hosted'\nspec = 'best'", "[slime.spec.preset] Input should be"),
        ("[nemo_gym]\nkl = 'sent'", "[nemo_gym] kl is sent: set temperature"),
        ("[nemo_gym]\nkl = 'sent'\ntemperature = 0.7\ntext = 'explanation'", "text cannot be explanation"),
        ("[roll]\nkl = 'hosted'\nquestion_from = 'last_user'", "[roll.question_from] Input should be 'label'"),
        ("[roll]\nkl = 'hosted'\ninvalid_reward = -1e6", "[roll.invalid_reward]"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(
    settings: Callable[..., Settings], tmp_path: Path, toml: str, told: str
) -> None:
    file = tmp_path / "compat.toml"
    file.write_text(toml)
    with pytest.raises(CompatMisconfigured) as found:
        build(settings(compat=file))
    assert told in str(found.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CompatMisconfigured, match="No such file"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[slime]\nkl = 'hosted'", "[slime] kl is hosted, but no teacher is"),
        ("[slime]\nkl = 'ss_only'\nformat = 'nameless'", "[slime] no such format"),
        ("[slime]\nkl = 'ss_only'\nstudent = 'nobody'", "[slime] no such student"),
        ("[slime]\nkl = 'ss_only'\nteacher = 'nobody'", "[slime] no such teacher"),
    ],
)
def test_a_section_that_does_not_fit_the_models_does_not_start(served: Any, toml: str, told: str) -> None:
    with pytest.raises(CompatMisconfigured) as found, served(toml, teacher=None):
        pass
    assert told in str(found.value)


# Keys


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {name: create_token() for name in ("header", "path", "explain")}


@pytest.fixture(scope="module")
def guarded(served: Any, keys: dict[str, str]) -> Iterator[httpx.Client]:
    lines = [
        Key(hash_token(keys["header"]), "header-owner", frozenset({Scope.reward})).line(),
        Key(hash_token(keys["path"]), "path-owner", frozenset({Scope.reward}), in_path=True).line(),
        Key(hash_token(keys["explain"]), "other", frozenset({Scope.explain})).line(),
    ]
    with served(every('kl = "hosted"'), keys=";".join(lines)) as client:
        yield client


@pytest.mark.parametrize("protocol", POSTS)
def test_every_protocol_needs_a_key_of_the_scope(
    guarded: httpx.Client, keys: dict[str, str], bodies: dict[str, Any], protocol: str
) -> None:
    def status(**headers: str) -> int:
        return guarded.post(POSTS[protocol], json=bodies[protocol], headers=headers).status_code

    assert status() == 401
    assert status(authorization=f"Bearer {keys['explain']}") == 403
    assert status(authorization=f"Bearer {keys['header']}") == 200


@pytest.mark.parametrize(("protocol", "last"), [("openrlhf", "get_reward"), ("slime", "reward")])
def test_a_key_in_the_path_is_taken_and_shown_nowhere(
    guarded: httpx.Client, keys: dict[str, str], bodies: dict[str, Any], protocol: str, last: str
) -> None:
    written = io.StringIO()
    logs.configure("debug", stream=written)
    path = f"/compat/{protocol}/k/{{}}/{last}"
    statuses = [guarded.post(path.format(keys[name]), json=bodies[protocol]).status_code for name in ("path", "header")]
    failed = guarded.post(path.format(keys["path"]), json={"query": 3})
    figures = guarded.get("/metrics").text
    assert statuses == [200, 401]  # the second is no key for paths
    assert failed.status_code == 422
    assert f'route="/compat/{protocol}/k/{{path_key}}/{last}"' in figures
    assert f"/compat/{protocol}/k/{{path_key}}/{last}" in written.getvalue()
    for shown in (written.getvalue(), figures, failed.text):
        assert keys["path"] not in shown
        assert keys["header"] not in shown


def test_roll_sends_its_key_under_a_name_of_its_own(
    guarded: httpx.Client, keys: dict[str, str], bodies: dict[str, Any]
) -> None:
    mine = {"XRL-Authorization": f"Bearer {keys['header']}"}
    others = {"XRL-Authorization": f"Bearer {keys['path']}"}
    reply = guarded.post(POSTS["roll"], json=bodies["roll"], headers=mine)
    assert reply.status_code == 200
    asked = {"json": {"reward_request_id": reply.json()["reward_request_id"]}}
    assert guarded.request("GET", "/compat/roll/task_result", headers=mine, **asked).json()["errcode"] in (0, 1)
    assert guarded.request("GET", "/compat/roll/task_result", headers=others, **asked).json()["errcode"] == 3


# Time and load


@pytest.fixture(scope="module")
def late(served: Any) -> Iterator[httpx.Client]:
    """No score comes in time."""
    with served(every('kl = "hosted"\ndeadline_s = 1e-6')) as client:
        yield client


@pytest.mark.parametrize(("protocol", "status"), [("openrlhf", 504), ("slime", 504), ("nemo_gym", 200)])
def test_a_score_that_is_late_is_a_failure(
    late: httpx.Client, bodies: dict[str, Any], protocol: str, status: int
) -> None:
    reply = late.post(POSTS[protocol], json=bodies[protocol])
    figures = late.get("/metrics").text
    assert reply.status_code == status
    assert "deadline_exceeded" in reply.text
    if protocol == "nemo_gym":  # the judge's fault and not the sample's: it may be tried again
        assert (reply.json()["_ng_failure_class"], reply.json()["reward"]) == ("judge_failed", None)
        assert "_ng_failure_terminal" not in reply.json()
    assert f'outcome="deadline_exceeded",protocol="{protocol}"}} 1.0' in figures


def test_a_late_score_has_the_configured_reward(served: Any, bodies: dict[str, Any]) -> None:
    with served(every('kl = "hosted"\ndeadline_s = 1e-6\ninvalid_reward = -30')) as client:
        assert client.post(POSTS["slime"], json=bodies["slime"]).json()["reward"] == -30
        id = client.post(POSTS["roll"], json=bodies["roll"]).json()["reward_request_id"]
        found = {"errcode": 1}  # under way
        until = time.monotonic() + 60
        while found["errcode"] == 1 and time.monotonic() < until:
            found = client.request("GET", "/compat/roll/task_result", json={"reward_request_id": id}).json()
    assert found["reward_score"] == -30


def test_a_full_queue_refuses_with_retry_after_unless_the_trainer_would_make_it_a_zero(
    served: Any, bodies: dict[str, Any]
) -> None:
    def asked(protocol: str, index: int) -> httpx.Response:
        body = json.loads(json.dumps(bodies[protocol]).replace("What is", f"What {index} is"))
        return client.post(POSTS[protocol], json=body)

    with served(every('kl = "hosted"\ndeadline_s = 100'), max_items=1, max_queue=2, batch_window_ms=300) as client:
        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(asked, itertools.repeat("slime", 12), range(12)))
            submitted = list(pool.map(asked, itertools.repeat("roll", 4), range(4)))
            verified = list(pool.map(asked, itertools.repeat("nemo_gym", 4), range(4, 8)))
        refused = [reply for reply in replies if reply.status_code == 429]
        assert refused
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert all(reply.status_code in (200, 429) for reply in replies)
        assert all(isinstance(reply.json()["reward"], float) for reply in verified)
        waiting = {reply.json()["reward_request_id"] for reply in submitted}
        until = time.monotonic() + 60
        while waiting and time.monotonic() < until:
            time.sleep(0.1)
            polled = {
                id: client.request("GET", "/compat/roll/task_result", json={"reward_request_id": id}).json()
                for id in waiting
            }
            assert all(body["errcode"] in (0, 1) for body in polled.values())
            waiting = {id for id, body in polled.items() if body["errcode"] == 1}
        assert not waiting


def test_the_work_of_a_caller_who_left_is_dropped(served: Any, bodies: dict[str, Any]) -> None:
    """On a busy machine a batch may be full of time before its caller is seen to leave: then another one leaves."""

    def leave(number: int) -> None:
        body = json.loads(json.dumps(bodies["openrlhf"]).replace("What is", f"What {number} is"))
        with contextlib.suppress(httpx.ReadTimeout):
            client.post(POSTS["openrlhf"], json=body, timeout=0.3)

    def dropped() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("rlt_reward_dropped_passes_total "))

    with served(every('kl = "hosted"'), batch_window_ms=1000) as client:
        for number in range(20):
            before = dropped()
            leave(number)
            time.sleep(1.5)
            if dropped() == before + 2:
                return
    pytest.fail("the work of twenty callers was done after they had left")


# The guard


def leaking(protocol: str, body: dict[str, Any], index: int) -> dict[str, Any]:
    """The question holds the answer: what a teacher's prompt looks like."""
    changed = json.loads(json.dumps(body))
    task = {"question": f"Explain {index}: the sum is five.", "answer": "The sum is five."}
    if protocol == "openrlhf":
        changed["labels"] = [task]
    elif protocol == "nemo_gym":
        changed |= task
    else:
        changed["label" if protocol == "slime" else "reward_info"] = task
    return changed


@pytest.fixture(scope="module")
def watchful(served: Any) -> Iterator[httpx.Client]:
    with served(every('kl = "ss_only"\nguard_window = 10')) as client:
        yield client


@pytest.mark.parametrize("protocol", POSTS)
def test_questions_with_their_answers_are_flagged_counted_and_then_refused(
    watchful: httpx.Client, bodies: dict[str, Any], protocol: str
) -> None:
    replies = [watchful.post(POSTS[protocol], json=leaking(protocol, bodies[protocol], index)) for index in range(12)]
    figures = watchful.get("/metrics").text
    assert [reply.status_code for reply in replies[:9]] == [200] * 9
    assert (replies[-1].status_code, replies[-1].json()["type"]) == (422, "answer_in_question")
    if protocol != "roll":  # its flag comes with the result
        assert "answer_in_question" in replies[0].text
    assert f'rlt_reward_compat_answer_in_question_total{{protocol="{protocol}"}} 12.0' in figures


# Bodies of any kind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["question", "answer"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = {
    "openrlhf": ["query", "prompts", "labels"],
    "slime": ["prompt", "response", "label"],
    "nemo_gym": ["responses_create_params", "response", "question", "answer", "system"],
    "roll": ["prompt", "response", "reward_info", "timeout", "reward_request_id"],
}
ROUTES = [
    *((name, path) for name, path in POSTS.items()),
    ("nemo_gym", "/compat/nemo_gym/seed_session"),
    ("nemo_gym", "/compat/nemo_gym/aggregate_metrics"),
]


def shaped(protocol: str) -> st.SearchStrategy[Any]:
    """Random JSON, more often with the protocol's own names, and with texts where texts are."""
    text = st.text(max_size=20) | st.just("the")
    task = st.fixed_dictionaries({"question": JSON | text, "answer": JSON | text})
    near = {
        "openrlhf": st.lists(st.tuples(text, text, task | JSON), max_size=3).map(
            lambda rows: {name: [row[i] for row in rows] for i, name in enumerate(NAMES["openrlhf"])}
        ),
        "slime": st.fixed_dictionaries({"prompt": JSON | text, "response": text, "label": task | JSON}),
        "roll": st.fixed_dictionaries({"prompt": text, "response": text, "reward_info": task | JSON}),
        "nemo_gym": st.fixed_dictionaries(
            {
                "question": JSON | text,
                "answer": JSON | text,
                "responses_create_params": st.fixed_dictionaries({"input": text | st.lists(JSON)}),
                "response": st.fixed_dictionaries({"output": st.lists(st.dictionaries(text, JSON) | JSON)}),
                "verify_responses": st.lists(st.dictionaries(st.sampled_from(["_ng_task_index", "x"]), JSON)),
            }
        ),
    }
    named = st.dictionaries(st.sampled_from(NAMES[protocol]), JSON)
    return JSON | named | near[protocol]


@pytest.mark.parametrize(("protocol", "path"), ROUTES)
def test_no_body_breaks_a_route(lenient: httpx.Client, protocol: str, path: str) -> None:
    @fuzzing(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(shaped(protocol))
    def check(body: Any) -> None:
        text = json.dumps(body)
        reply = lenient.post(path, content=text, headers={"content-type": "application/json"})
        assert reply.status_code < 500, (text, reply.text)
        if reply.status_code >= 400:
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.json()["type"]

    check()


@pytest.fixture(scope="module")
def lenient(served: Any) -> Iterator[httpx.Client]:
    """With the guard off, so that every body is really looked at, and the quickest reward."""
    with served(every('kl = "ss_only"\nguard_share = 1.0') + "\nmax_jobs = 100000", batch_window_ms=0) as client:
        yield client


@pytest.mark.parametrize("path", [*POSTS.values(), "/compat/roll/task_result"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"prompt": "\\ud800"}', b'{"a": NaN}', b"1e999"])
def test_what_is_no_json_object_is_refused(lenient: httpx.Client, path: str, content: bytes) -> None:
    method = "GET" if path.endswith("task_result") else "POST"
    reply = lenient.request(method, path, content=content, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500
    assert reply.headers["content-type"] == "application/problem+json"


def test_a_json_string_that_spells_half_a_surrogate_is_a_failure_of_the_sample(lenient: httpx.Client) -> None:
    body = {"prompt": "p", "response": "r", "label": '{"question": "\\ud800?", "answer": "a"}'}
    reply = lenient.post(POSTS["slime"], json=body)
    assert (reply.status_code, reply.json()["type"]) == (422, "unreadable_sample")


def test_an_app_without_the_file_is_built_and_its_routes_say_what_is_missing(settings: Callable[..., Settings]) -> None:
    with running(lambda: build(settings())) as url:
        reply = httpx.post(url + POSTS["roll"], json={"prompt": "p", "response": "r"}, verify=False)
    assert reply.json()["type"] == "kl_source_not_configured"
