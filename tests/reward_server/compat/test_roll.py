"""ROLL's reward system: roll/pipeline/rlvr/rewards/remote_reward_system_worker.py, `RewardSystemHandler`, of
alibaba/ROLL (commit 8eb27cc2dc34c4d1310b169d9b86d339004d811a, after 0.3.0)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import httpx
import pytest

from rlt_client.errors import Overloaded
from rlt_reward_server.compat.jobs import Jobs

Served = Callable[..., AbstractContextManager[httpx.Client]]
Native = Callable[..., dict[str, Any]]


def submission(sample: dict[str, Any], info: Any) -> dict[str, Any]:
    """What `submit_task` sends. ROLL decodes without special tokens and cuts the template's last role."""
    return {
        "priority": 1,
        "project_id": "roll_default_task_id",
        "experiment_id": "roll_default_task_id",
        "global_step": 0,
        "data_id": "17",
        "rollout_id": "0",
        "prompt": "system\n…user\n" + sample["question"],
        "response": sample["completion"],
        "reward_info": info,
        "reward_manager": [{"plugin_name": "rlt"}],
        "timeout": 300,
    }


def submit(client: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post("/compat/roll/submit_task", json=body, headers=headers)


def poll(client: httpx.Client, id: str, **headers: str) -> dict[str, Any]:
    """As ROLL does it, every 2 s there: GET with a JSON body, until `errcode` is not 1."""
    until = time.monotonic() + 60
    while True:
        reply = client.request("GET", "/compat/roll/task_result", json={"reward_request_id": id}, headers=headers)
        body: dict[str, Any] = reply.raise_for_status().json()
        if int(body["errcode"]) != 1:
            return body
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("wrap", [lambda label: label, lambda label: {"ground_truth": json.dumps(label)}])
def test_a_score_is_submitted_and_polled_for(
    compat: httpx.Client, native: Native, sample: dict[str, Any], label: dict[str, str], wrap: Any
) -> None:
    reply = submit(compat, submission(sample, wrap(label)))
    assert (reply.status_code, reply.json()["errcode"]) == (200, 0)
    body = poll(compat, reply.json()["reward_request_id"])
    assert (body["errcode"], body["reward_score"]) == (0, native(sample)["reward"])
    assert datetime.fromisoformat(body["start_time"]) <= datetime.fromisoformat(body["end_time"])
    [dimension] = body["dimention_reward_score"].values()
    assert dimension["score"] == body["reward_score"]
    assert all(value.get("time_cost", 0) >= 0 for value in dimension["debug_info"].values())


def test_a_result_may_be_asked_for_again(compat: httpx.Client, sample: dict[str, Any], label: dict[str, str]) -> None:
    id = submit(compat, submission(sample, label)).json()["reward_request_id"]
    assert poll(compat, id) == poll(compat, id)


def test_an_unknown_id_is_an_errcode_of_its_own(compat: httpx.Client) -> None:
    body = poll(compat, "nobody's")
    assert body["errcode"] == 3
    assert "reward_score" not in body


def test_a_failure_is_an_errcode_and_no_score(compat: httpx.Client, sample: dict[str, Any]) -> None:
    id = submit(compat, submission(sample, {"ground_truth": "42"})).json()["reward_request_id"]
    body = poll(compat, id)
    assert body["errcode"] == 2
    assert "unreadable_sample" in body["errmsg"]
    assert "reward_score" not in body


def test_a_failure_becomes_the_configured_reward(served: Any, sample: dict[str, Any]) -> None:
    with served('[roll]\nkl = "hosted"\ninvalid_reward = -30') as client:
        id = submit(client, submission(sample, None)).json()["reward_request_id"]
        body = poll(client, id)
    assert (body["errcode"], body["reward_score"]) == (0, -30.0)
    assert body["dimention_reward_score"]["rlt"]["rlt_failed"] == 1.0


def test_a_reward_that_is_no_float16_is_a_failure(served: Any, sample: dict[str, Any], label: dict[str, str]) -> None:
    toml = '[roll]\nkl = "hosted"\n[roll.spec]\npreset = "rlt"\nlambda = 1e6'
    with served(toml) as client:
        body = poll(client, submit(client, submission(sample, label)).json()["reward_request_id"])
    assert body["errcode"] == 2
    assert "reward_too_large" in body["errmsg"]


def test_results_that_nobody_asks_for_are_bounded(served: Any, sample: dict[str, Any], label: dict[str, str]) -> None:
    with served('[roll]\nkl = "hosted"\nmax_jobs = 2\nkeep_s = 600') as client:
        ids = [submit(client, submission(sample, label)).json()["reward_request_id"] for _ in range(2)]
        full = submit(client, submission(sample, label))
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        assert poll(client, ids[0])["errcode"] == 0
        assert submit(client, submission(sample, label)).status_code == 200


async def _value(value: int) -> dict[str, Any]:
    return {"value": value}


async def test_results_expire() -> None:
    jobs = Jobs(most=2, keep_s=0.02)
    id = jobs.start(_value(1), "me")
    await asyncio.sleep(0)
    found = jobs.find(id, "me")
    assert found is not None
    assert await found.task == {"value": 1}
    async with asyncio.timeout(60):
        while jobs.find(id, "me") is not None:  # noqa: ASYNC110 nobody is told
            await asyncio.sleep(0.01)
    assert len(jobs) == 0


async def test_a_job_is_its_owners_and_memory_is_bounded() -> None:
    jobs = Jobs(most=2, keep_s=60)
    for value in range(10):
        id = jobs.start(_value(value), "me")
        await asyncio.sleep(0.001)
        assert jobs.find(id, "somebody else") is None
        assert jobs.find(id, "me") is not None
    assert len(jobs) == 2
    jobs.start(_value(10), "me"), jobs.start(_value(11), "me")
    with pytest.raises(Overloaded):
        jobs.start(_value(12), "me")
    await jobs.close()


@pytest.mark.parametrize(("configured", "errcode"), [("", 2), ("invalid_reward = -30.0", 0)])
def test_a_refusal_inside_a_job_is_a_failure_like_any_other(
    served: Served, sample: dict[str, Any], label: dict[str, str], configured: str, errcode: int
) -> None:
    """ROLL takes a job without a score for 0."""
    with served(f'[roll]\nkl = "hosted"\n{configured}\n', max_queue_tokens=10) as client:  # no text is as short
        body = poll(client, submit(client, submission(sample, label)).json()["reward_request_id"])
    assert body["errcode"] == errcode
    assert body.get("reward_score") == (-30.0 if configured else None)


def test_the_guard_recovers_once_the_questions_do(
    served: Served, sample: dict[str, Any], label: dict[str, str]
) -> None:
    leaking = label | {"question": f"{label['question']} {label['answer']}"}
    with served('[roll]\nkl = "hosted"\nguard_window = 60\n') as client:
        statuses = [submit(client, submission(sample, leaking)).status_code for _ in range(60)]
        assert statuses[:10] == [200] * 10
        assert statuses[-1] == 422
        for _ in range(60):
            status = submit(client, submission(sample, label)).status_code
        assert status == 200
