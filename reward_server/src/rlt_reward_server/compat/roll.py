"""ROLL's reward system (roll/pipeline/rlvr/rewards/remote_reward_system_worker.py): a sample is submitted, and its
score polled for. Scores wait in memory, so one process must answer both."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any

from fastapi import Body, Request
from pydantic import BaseModel, ConfigDict, Field

from rlt_client.errors import APIError
from rlt_client.integrations.outcomes import Outcome
from rlt_client.schemas.common import Problem, Scope
from rlt_reward_server.compat.config import LARGEST_FLOAT16, Roll
from rlt_reward_server.compat.jobs import Job
from rlt_reward_server.compat.judging import Judge, Reading, Sample
from rlt_reward_server.compat.serving import Caller, CompatState, Service, judge_of
from rlt_reward_server.registry import Selection
from rlt_reward_server.service import RewardService
from rlt_service.auth import requires
from rlt_service.rates import spend
from rlt_service.routing import Router

__all__ = ["router"]

router = Router(prefix="/compat/roll", tags=["roll"], dependencies=[requires(Scope.reward)])
RollJudge = Annotated[Judge[Roll], judge_of("roll")]


class Code(IntEnum):
    """`errcode`: ROLL knows 0 and 1, and goes on asking at any other until its time is over."""

    done = 0
    running = 1
    failed = 2
    unknown = 3


class Submission(BaseModel):
    model_config = ConfigDict(extra="allow")

    prompt: str
    response: str
    reward_info: Any = Field(None, description="question and answer, or `ground_truth` that holds them")
    timeout: float | None = Field(None, gt=0, description="seconds after which the client asks no more")


class Submitted(BaseModel):
    errcode: int = Code.done
    reward_request_id: str


class Asked(BaseModel):
    model_config = ConfigDict(extra="allow")

    reward_request_id: str


@router.post("/submit_task", name="roll_submit_task")
async def submit_task(
    body: Submission, request: Request, judge: RollJudge, service: Service, compat: CompatState, caller: Caller
) -> Submitted:
    """Begin to score one sample."""
    spend(request, 1)
    samples = judge.read(service.registry, [_reading(judge, body)])
    leaks = judge.watch(samples)  # refused here, the trainer's log says why
    work = _score(judge, service, samples, leaks, owner=caller.owner, deadline_s=body.timeout or math.inf)
    return Submitted(reward_request_id=compat.jobs.start(work, caller.owner))


@router.get("/task_result", name="roll_task_result")
async def task_result(
    body: Annotated[Asked, Body()], _judge: RollJudge, compat: CompatState, caller: Caller
) -> dict[str, Any]:
    """Its score, once there is one. The id stands in a JSON body, though this is a GET."""
    job = compat.jobs.find(body.reward_request_id, caller.owner)
    if job is None:
        return {"errcode": Code.unknown, "errmsg": "no such reward_request_id: expired, or of another server"}
    if job.ended is None:
        return {"errcode": Code.running, "errmsg": "running"}
    return {**_result(job), "start_time": job.began.isoformat(), "end_time": job.ended.isoformat()}


def _result(job: Job) -> dict[str, Any]:
    error = asyncio.CancelledError() if job.task.cancelled() else job.task.exception()
    if error is None:
        return job.task.result()
    told = str(error) if isinstance(error, APIError) else "internal_error"
    return {"errcode": Code.failed, "errmsg": told}


async def _score(
    judge: Judge[Roll],
    service: RewardService,
    samples: Sequence[Sample | Problem],
    leaks: Sequence[bool],
    *,
    owner: str,
    deadline_s: float,
) -> dict[str, Any]:
    began = time.monotonic()
    try:
        judged = await judge.judge(service, samples, owner=owner, patient=True, deadline_s=deadline_s, leaks=leaks)
        outcome = _within_float16(judged.outcomes[0])
    except APIError as error:  # nobody is there to be refused: ROLL would go on asking, and then take 0
        outcome = Outcome(failure=error.problem(), answer_in_question=leaks[0])
    if outcome.failure is not None and judge.section.invalid_reward is None:
        return {"errcode": Code.failed, "errmsg": f"{outcome.failure.type}: {outcome.failure.detail}"}
    score = judge.reward(outcome)
    spent = {"rlt": {"time_cost": time.monotonic() - began}}
    return {
        "errcode": Code.done,
        "reward_score": score,
        "dimention_reward_score": {"rlt": {"score": score, **judge.figures(outcome), "debug_info": spent}},
    }


def _reading(judge: Judge[Roll], body: Submission) -> Reading:
    info = body.reward_info
    label = info.get("ground_truth") if isinstance(info, dict) else info
    row = info if isinstance(info, dict) else None

    def read(selection: Selection) -> Sample:
        return Sample(judge.section.reader.read(label, row=row), judge.response(body.response, selection))

    return read


def _within_float16(outcome: Outcome) -> Outcome:
    """ROLL casts scores to float16, where a larger one is infinite."""
    if outcome.reward is None or abs(outcome.reward) <= LARGEST_FLOAT16:
        return outcome
    detail = f"{outcome.reward:g} is no float16"
    return Outcome(failure=Problem(type="reward_too_large", title="The reward is too large", detail=detail))
