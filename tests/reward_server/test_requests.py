"""`POST /reward` and its neighbours over HTTP: what comes back, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_client.schemas.reward import RewardItem, TeacherTokens
from rlt_reward_server.settings import Settings
from rlt_service.revision import model_revision

ITEM = {"question": "What is 2 times 3?", "answer": "It is 6.", "explanation": "\n\nis carry so of"}


def post(client: httpx.Client, *items: dict[str, Any], **options: Any) -> Any:
    response = client.post("/reward", json={"items": list(items), **options})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx.Client, status: int, *items: Any, **options: Any) -> Any:
    response = client.post("/reward", json={"items": list(items), **options})
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    return response.json()


def pointers(problem: Any) -> set[str]:
    return {error["pointer"] for error in problem["errors"]}


def error_of(client: httpx.Client, item: dict[str, Any], **options: Any) -> Any:
    """The error of an item that cannot be scored."""
    [score] = post(client, item, **options)["items"]
    assert (score["status"], score["reward"]) == ("score_error", None)
    return score["error"]


# What comes back


def test_everything_that_shaped_a_score_is_echoed(hosted: httpx.Client, golden_dir: Path) -> None:
    reply = post(hosted, {**ITEM, "id": "a"}, ITEM, spec={"preset": "rlt", "lambda": 8})
    assert [(score["id"], score["index"], score["status"]) for score in reply["items"]] == [
        ("a", 0, "scored"),
        (None, 1, "scored"),
    ]
    assert reply["student"] == {"name": "student", "revision": model_revision(golden_dir / "student")}
    assert reply["teacher"] == {"name": "teacher", "revision": model_revision(golden_dir / "teacher")}
    assert reply["dtype"] == "float32"
    assert reply["engine"] == f"transformers {version('transformers')}, torch {version('torch')}"
    assert reply["format"]["name"] == "golden"
    assert len(reply["format"]["hash"]) == 16
    assert reply["spec"] == {
        "preset": "rlt",
        "kl": "k1",
        "lambda": 8.0,
        "ss_min_coef": 0.01,
        "kl_max_coef": 0.01,
        "format_penalty": -1.0,
        "student_temperature": 0.7,
        "teacher_temperature": 0.7,
        "mapping": None,
    }
    assert reply["usage"]["items"] == reply["usage"]["scored"] == 2
    assert reply["usage"]["student_tokens"] == 2 * reply["items"][0]["counts"]["student_tokens"]
    assert reply["usage"]["teacher_tokens"] > 0
    assert reply["timing"]["engine_ms"] > 0


def test_the_presets_add_up(hosted: httpx.Client) -> None:
    [rlt], [ss], [kl] = (post(hosted, ITEM, spec=name)["items"] for name in ("rlt", "ss_only", "kl_only"))
    assert ss["reward"] == pytest.approx(rlt["components"]["r_ss"], abs=1e-6)
    assert kl["reward"] == pytest.approx(-3 * rlt["components"]["r_kl"], abs=1e-5)
    assert ss["reward"] + kl["reward"] == pytest.approx(rlt["reward"], abs=1e-5)
    assert (ss["kl_source"], kl["kl_source"]) == (None, "hosted")
    assert ss["components"]["r_kl"] is None
    assert kl["components"]["r_ss"] is None


def test_ss_only_asks_no_teacher(hosted: httpx.Client) -> None:
    reply = post(hosted, ITEM, spec="ss_only")
    assert (reply["teacher"], reply["usage"]["teacher_tokens"], reply["spec"]["kl"]) == (None, 0, None)


def test_kl_only_of_an_empty_explanation(hosted: httpx.Client) -> None:
    [score] = post(hosted, {**ITEM, "explanation": ""}, spec="kl_only")["items"]
    assert (score["reward"], score["flags"]) == (pytest.approx(-3.03), ["empty_explanation"])


def test_k3_is_taken_from_the_same_logprobs(hosted: httpx.Client) -> None:
    [one], [three] = (post(hosted, ITEM, spec={"kl": kl}, detail="tokens")["items"] for kl in ("k1", "k3"))
    expected = [kl - 1 + math.exp(-kl) for kl in one["token_scores"]["think"]["kl"]]
    assert three["token_scores"]["think"]["kl"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("detail", "given"), [("none", set()), ("components", {"components", "counts"})])
def test_detail(hosted: httpx.Client, detail: str, given: set[str]) -> None:
    [score] = post(hosted, ITEM, detail=detail)["items"]
    assert {name for name in ("components", "counts", "token_scores") if score[name] is not None} == given


@pytest.mark.parametrize("preset", ["rlt", "ss_only", "kl_only"])
def test_tokens_are_columns_of_equal_length(hosted: httpx.Client, preset: str) -> None:
    [score] = post(hosted, ITEM, spec=preset, detail="tokens")["items"]
    think, answer = score["token_scores"]["think"], score["token_scores"]["answer"]
    assert "".join(think["texts"]) == "is carry so of"
    assert "".join(answer["texts"]) == "It is 6."
    assert len(answer["logprobs"]) == score["counts"]["n_answer"]
    assert len(think["student_logprobs"]) == score["counts"]["n_think"]
    assert (think["kl"] is None) == (preset == "ss_only")


@pytest.mark.parametrize("name", ["stratos", "deepseek", "plain", "mini"])
def test_shipped_formats_score(hosted: httpx.Client, name: str) -> None:
    by_text, closed, unclosed = post(
        hosted,
        ITEM,
        {**ITEM, "explanation": None, "completion": "is carry so of" + CLOSE[name]},
        {**ITEM, "explanation": None, "completion": "is carry so of"},
        format=name,
    )["items"]
    assert by_text["status"] == "scored"
    assert (closed["components"]["format"], unclosed["components"]["format"]) == (0, -1)
    assert closed["reward"] - 1 == pytest.approx(unclosed["reward"], abs=1e-5)


CLOSE = {"stratos": "<|end_of_explanation|>", "deepseek": "</explanation>", "plain": "\n[END]", "mini": "#"}


def test_temperatures_are_read(hosted: httpx.Client) -> None:
    [cool], [hot] = (post(hosted, ITEM, spec={"student_temperature": t})["items"] for t in (0.7, 5.0))
    assert hot["components"]["ss_mean"] > cool["components"]["ss_mean"]  # flatter, for tokens of little probability


def test_the_items_system_message_is_what_the_student_reads(hosted: httpx.Client) -> None:
    [own], [formats], [other] = (
        post(hosted, {**ITEM, "system": text})["items"]
        for text in ("Think step by step, then give the solution.", None, "Answer.")
    )
    assert own["reward"] == pytest.approx(formats["reward"], abs=1e-6)
    assert other["components"]["ss_mean"] != own["components"]["ss_mean"]


# One item that cannot be scored is that item's error


def test_a_bad_item_leaves_the_others_alone(hosted: httpx.Client) -> None:
    reply = post(hosted, ITEM, {**ITEM, "answer": " "}, {**ITEM, "id": "c"})
    assert [score["status"] for score in reply["items"]] == ["scored", "score_error", "scored"]
    assert reply["items"][1]["error"]["type"] == "empty_answer"
    assert reply["items"][0]["reward"] == pytest.approx(reply["items"][2]["reward"], abs=1e-5)
    assert (reply["usage"]["items"], reply["usage"]["scored"]) == (3, 2)


def test_all_items_failing_is_still_200(hosted: httpx.Client) -> None:
    assert error_of(hosted, {**ITEM, "question": "\n"})["type"] == "empty_question"


@pytest.mark.parametrize("field", ["question", "answer", "explanation"])
def test_too_long(hosted: httpx.Client, field: str) -> None:
    error = error_of(hosted, {**ITEM, field: "7 " * 3000})
    assert error["type"] == "too_long"
    assert "4096" in error["detail"]


def test_a_text_of_the_whole_context_is_scored(hosted: httpx.Client) -> None:
    [score] = post(hosted, ITEM)["items"]
    room = 4096 - score["counts"]["student_tokens"]
    question = ITEM["question"] + " 7" * (room // 2)
    [long] = post(hosted, {**ITEM, "question": question}, spec="ss_only")["items"]
    assert 4090 <= long["counts"]["student_tokens"] <= 4096


def test_kl_unavailable(bare: httpx.Client) -> None:
    for preset in ("rlt", "kl_only"):
        error = error_of(bare, ITEM, spec=preset)
        assert error["type"] == "kl_unavailable"
        assert "--teacher" in error["detail"]
    assert post(bare, ITEM, spec="ss_only")["items"][0]["status"] == "scored"


@pytest.mark.parametrize(
    "change",
    [
        {"logprobs": [-1.0]},
        {"temperature": 1.0},
        {"temperature": 0},
        {"top_p": 0.9},
        {"top_k": 20},
        {"token_ids": [10**9], "logprobs": [-1.0]},
        {"token_ids": [5], "logprobs": [-1.0]},
    ],
    ids=str,
)
def test_teacher_logprobs_unusable(
    hosted: httpx.Client, golden_items: list[RewardItem], sent: list[TeacherTokens], change: dict[str, Any]
) -> None:
    """Not even a hosted teacher stands in silently."""
    item = {**golden_items[0].model_dump(exclude_none=True), "teacher": sent[0].model_dump() | change}
    assert error_of(hosted, item)["type"] == "teacher_logprobs_unusable"


def test_logprobs_too_far_apart_are_no_reward(
    bare: httpx.Client, golden_items: list[RewardItem], sent: list[TeacherTokens]
) -> None:
    """k3 is exp(−kl): beyond the largest float there is no number, and so no reward."""
    teacher = sent[0].model_dump() | {"logprobs": [-9e5] * len(sent[0].logprobs)}
    item = {**golden_items[0].model_dump(exclude_none=True), "teacher": teacher}
    assert error_of(bare, item, spec={"kl": "k3"})["type"] == "non_finite_reward"


def test_spelled_tags_are_flagged(hosted: httpx.Client) -> None:
    [score] = post(hosted, {**ITEM, "explanation": "\n\nis <|end_of_thought|> <|im_end|> so"})["items"]
    assert (score["status"], score["flags"]) == ("scored", ["delimiter_in_explanation"])


# What is wrong with the request


@pytest.mark.parametrize(
    ("items", "options", "pointer"),
    [
        ([], {}, "/items"),
        (["text"], {}, "/items/0"),
        ([{"answer": "a", "explanation": "e"}], {}, "/items/0/question"),
        ([{"question": "q", "explanation": "e"}], {}, "/items/0/answer"),
        ([{"question": "q", "answer": "a"}], {}, "/items/0"),
        ([{**ITEM, "completion": "c"}], {}, "/items/0"),
        ([{**ITEM, "question": 7}], {}, "/items/0/question"),
        ([{**ITEM, "answer": None}], {}, "/items/0/answer"),
        ([{**ITEM, "explanation": ["e"]}], {}, "/items/0/explanation"),
        ([{**ITEM, "solution": "s"}], {}, "/items/0/solution"),
        (
            [{**ITEM, "teacher": {"token_ids": [1.5], "logprobs": [0], "temperature": 1}}],
            {},
            "/items/0/teacher/token_ids/0",
        ),
        (
            [{**ITEM, "teacher": {"token_ids": [1], "logprobs": [None], "temperature": 1}}],
            {},
            "/items/0/teacher/logprobs/0",
        ),
        ([ITEM], {"spec": "rlt2"}, "/spec"),
        ([ITEM], {"spec": {"preset": "rlt", "alpha": 1}}, "/spec/alpha"),
        ([ITEM], {"spec": {"lambda": -1}}, "/spec/lambda"),
        ([ITEM], {"spec": {"student_temperature": 0}}, "/spec/student_temperature"),
        ([ITEM], {"detail": "all"}, "/detail"),
        ([ITEM], {"presets": "rlt"}, "/presets"),
    ],
    ids=str,
)
def test_malformed_requests_point_at_what_is_wrong(
    hosted: httpx.Client, items: list[Any], options: dict[str, Any], pointer: str
) -> None:
    problem = refused(hosted, 422, *items, **options)
    assert problem["type"] == "invalid_request"
    assert pointer in pointers(problem)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(hosted: httpx.Client, number: str) -> None:
    teacher = f'{{"token_ids": [1], "logprobs": [{number}], "temperature": 1}}'
    body = f'{{"items": [{{"question": "q", "answer": "a", "teacher": {teacher}}}]}}'
    response = hosted.post("/reward", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (422, "not_finite")
    assert pointers(response.json()) == {"/items/0/teacher/logprobs/0"}


@pytest.mark.parametrize("body", ["", "{", "[]", '"text"'])
def test_bodies_that_are_no_request(hosted: httpx.Client, body: str) -> None:
    response = hosted.post("/reward", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_an_unknown_format_and_student(hosted: httpx.Client) -> None:
    problem = refused(hosted, 404, ITEM, format="nope")
    assert (problem["type"], pointers(problem)) == ("unknown_format", {"/format"})
    problem = refused(hosted, 404, ITEM, student="nope")
    assert (problem["type"], pointers(problem)) == ("unknown_student", {"/student"})
    assert post(hosted, ITEM, student="student")["items"][0]["status"] == "scored"


def test_exact_kl_is_refused_rather_than_replaced(bare: httpx.Client) -> None:
    problem = refused(bare, 422, ITEM, spec={"kl": "exact"})
    assert (problem["type"], pointers(problem)) == ("unsupported_kl", {"/spec/kl"})
    assert post(bare, ITEM, spec={"preset": "ss_only", "kl": "exact"})["spec"]["kl"] is None


def test_exact_kl_over_segments_is_refused(hosted: httpx.Client) -> None:
    problem = refused(hosted, 422, ITEM, spec={"preset": "rlt_segments", "kl": "exact"})
    assert (problem["type"], pointers(problem)) == ("unsupported_kl", {"/spec/kl"})


def test_a_stale_teacher_is_a_conflict(hosted: httpx.Client, bare: httpx.Client, golden_dir: Path) -> None:
    loaded = model_revision(golden_dir / "teacher")
    assert post(hosted, ITEM, teacher_revision=loaded)["teacher"]["revision"] == loaded
    for client in (hosted, bare):
        problem = refused(client, 409, ITEM, teacher_revision="sha256:0")
        assert (problem["type"], pointers(problem)) == ("stale_teacher", {"/teacher_revision"})


# The lists


def test_models(hosted: httpx.Client, bare: httpx.Client, golden_dir: Path) -> None:
    reply = hosted.get("/models").json()
    wanted = {
        "name": "student",
        "revision": model_revision(golden_dir / "student"),
        "max_tokens": 4096,
        "vocab_size": 4096,
        "dtype": "float32",
        "device": "cpu",
    }
    assert {name: reply["student"][name] for name in wanted} == wanted
    assert reply["teacher"]["revision"] == model_revision(golden_dir / "teacher")
    assert bare.get("/models").json()["teacher"] is None


def test_formats(hosted: httpx.Client) -> None:
    reply = hosted.get("/formats").json()
    assert reply["default"] == "golden"
    assert {entry["name"]: entry["available"] for entry in reply["formats"]} == dict.fromkeys(
        ["deepseek", "golden", "mini", "plain", "stratos"], True
    )


def test_presets(hosted: httpx.Client, bare: httpx.Client) -> None:
    reply = hosted.get("/presets").json()
    assert (reply["default"], reply["kl"]) == ("rlt", ["k1", "k3", "exact"])
    assert bare.get("/presets").json()["kl"] == ["k1", "k3"]
    assert {preset["name"]: preset["needs_teacher"] for preset in reply["presets"]} == {
        "rlt": True,
        "ss_only": False,
        "kl_only": True,
        "rlt_segments": True,
        "rlpr": False,
        "verifree": False,
        "info_gain": False,
    }
    for preset in reply["presets"]:
        assert post(hosted, ITEM, spec=preset["name"])["spec"] == preset["spec"]


def test_outcomes_and_phases_are_counted(bare: httpx.Client) -> None:
    def counted(line: str) -> float:
        found = [text for text in bare.get("/metrics").text.splitlines() if text.startswith(line)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    scored = 'rlt_reward_items_total{error="",status="scored"}'
    failed = 'rlt_reward_items_total{error="empty_answer",status="score_error"}'
    tokens = 'rlt_reward_batch_tokens_sum{model="student"}'
    engine = 'rlt_reward_phase_seconds_sum{phase="engine"}'
    before = [counted(line) for line in (scored, failed, tokens, engine)]
    post(bare, {**ITEM, "question": "What was asked nowhere else?"}, {**ITEM, "answer": ""}, spec="ss_only")
    after = [counted(line) for line in (scored, failed, tokens, engine)]
    assert [after[0] - before[0], after[1] - before[1]] == [1, 1]
    assert after[2] > before[2]
    assert after[3] > before[3]
    assert counted("rlt_reward_queue_passes") == 0


def test_settings_that_could_never_take_a_request_are_refused(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match="max_queue"):
        settings(max_items=100, max_queue=100)
