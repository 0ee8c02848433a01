"""OpenRLHF's remote reward: `--reward.remote_url http://…/compat/openrlhf/get_reward` (openrlhf/utils/agent.py)."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any, Self

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlt_client.integrations.outcomes import Outcome
from rlt_client.schemas.common import Problem, Scope
from rlt_reward_server.compat.config import OpenRLHF
from rlt_reward_server.compat.judging import Judge, Reading, Sample
from rlt_reward_server.compat.serving import Caller, PathKey, Service, judge_of
from rlt_reward_server.compat.texts import codecs, cut_prompt, plain_prompt, special_tokens
from rlt_reward_server.registry import Selection
from rlt_reward_server.service import RewardService
from rlt_service.auth import requires
from rlt_service.callers import while_connected
from rlt_service.rates import spend
from rlt_service.routing import Router

__all__ = ["router"]

router = Router(prefix="/compat/openrlhf", tags=["openrlhf"], dependencies=[requires(Scope.reward)])
OpenRLHFJudge = Annotated[Judge[OpenRLHF], judge_of("openrlhf")]


class Queries(BaseModel):
    """Three lists of one length."""

    model_config = ConfigDict(extra="allow")

    query: list[str] = Field(description="prompt and response, special tokens included")
    prompts: list[str]
    labels: list[Any]

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = (len(self.query), len(self.prompts), len(self.labels))
        if len(set(lengths)) != 1:
            raise ValueError(f"query, prompts and labels have {lengths[0]}, {lengths[1]} and {lengths[2]} elements")
        return self


class Rewards(BaseModel):
    rewards: list[float]
    scores: list[float] = Field(description="sigmoid of the reward before any mapping, 0..1; 0 where there is none")
    extra_logs: dict[str, list[float]]


@router.post("/get_reward", name="openrlhf_get_reward", response_model=Rewards)
async def get_reward(
    body: Queries, request: Request, judge: OpenRLHFJudge, service: Service, caller: Caller
) -> Rewards | Response:
    """Rewards of a list of queries, in order. Empty lists get empty lists."""
    spend(request, len(body.query))
    return await while_connected(request, _rewards(judge, service, body, caller.owner))


@router.post("/k/{path_key}/get_reward", name="openrlhf_get_reward_by_path_key", response_model=Rewards)
async def get_reward_by_path_key(
    _key: PathKey, body: Queries, request: Request, judge: OpenRLHFJudge, service: Service, caller: Caller
) -> Rewards | Response:
    """The same with the key in the path: OpenRLHF sends no headers."""
    spend(request, len(body.query))
    return await while_connected(request, _rewards(judge, service, body, caller.owner))


async def _rewards(judge: Judge[OpenRLHF], service: RewardService, body: Queries, owner: str) -> Rewards:
    samples = await _read(judge, service, body)
    outcomes = (await judge.judge(service, samples, owner=owner)).outcomes
    rewards = [judge.reward(outcome) for outcome in outcomes]
    logs = [judge.figures(outcome) for outcome in outcomes]
    return Rewards(
        rewards=rewards,
        scores=[_score(outcome) for outcome in outcomes],
        extra_logs={name: [row[name] for row in logs] for name in logs[0]} if logs else {},
    )


async def _read(judge: Judge[OpenRLHF], service: RewardService, body: Queries) -> list[Sample | Problem]:
    """In a thread where prompts have to be tokenised to find where they end."""
    rows = list(zip(body.query, body.prompts, body.labels, strict=True))
    reading = [_reading(judge, *row) for row in rows]
    if all(query.startswith(prompt) for query, prompt, _ in rows):
        return judge.read(service.registry, reading)
    return await asyncio.to_thread(judge.read, service.registry, reading)


def _reading(judge: Judge[OpenRLHF], query: str, prompt: str, label: Any) -> Reading:
    def read(selection: Selection) -> Sample:
        tokenizers = codecs(selection)
        section = judge.section
        asked = None
        if section.question_from == "last_user":
            asked = plain_prompt(prompt, [token for codec in tokenizers for token in special_tokens(codec)])
        task = section.reader.read(label, messages=asked)
        return Sample(task, judge.response(cut_prompt(query, prompt, tokenizers), selection))

    return read


def _score(outcome: Outcome) -> float:
    """Between 0 and 1, growing with the reward: OpenRLHF filters groups by it."""
    if outcome.reward is None:
        return 0.0
    unmapped = outcome.component("unmapped")
    return 0.5 * (1 + math.tanh((outcome.reward if unmapped is None else unmapped) / 2))
