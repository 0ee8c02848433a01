"""slime's remote reward: `--rm-type remote_rm --rm-url http://…/compat/slime/reward --reward-key reward`
(slime/rollout/rm_hub)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from rlt_client.schemas.common import Scope
from rlt_reward_server.compat.config import Slime
from rlt_reward_server.compat.judging import Judge, Reading, Sample
from rlt_reward_server.compat.serving import Caller, PathKey, Service, judge_of
from rlt_reward_server.compat.texts import codecs, plain_prompt, special_tokens
from rlt_reward_server.registry import Selection
from rlt_reward_server.service import RewardService
from rlt_service.auth import requires
from rlt_service.callers import while_connected
from rlt_service.rates import spend
from rlt_service.routing import Router

__all__ = ["router"]

router = Router(prefix="/compat/slime", tags=["slime"], dependencies=[requires(Scope.reward)])
SlimeJudge = Annotated[Judge[Slime], judge_of("slime")]


class SlimeSample(BaseModel):
    model_config = ConfigDict(extra="allow")

    prompt: str | list[dict[str, Any]] = Field(description="text, or chat messages")
    response: str
    label: Any = None


@router.post("/reward", name="slime_reward", response_model=dict[str, float])
async def reward(
    body: SlimeSample, request: Request, judge: SlimeJudge, service: Service, caller: Caller
) -> dict[str, float] | Response:
    """`reward`, and figures beside it that `--reward-key` may pick instead. The keys are always the same."""
    spend(request, 1)
    return await while_connected(request, _reward(judge, service, body, caller.owner))


@router.post("/k/{path_key}/reward", name="slime_reward_by_path_key", response_model=dict[str, float])
async def reward_by_path_key(
    _key: PathKey, body: SlimeSample, request: Request, judge: SlimeJudge, service: Service, caller: Caller
) -> dict[str, float] | Response:
    """The same with the key in the path: slime sends no headers."""
    spend(request, 1)
    return await while_connected(request, _reward(judge, service, body, caller.owner))


async def _reward(judge: Judge[Slime], service: RewardService, body: SlimeSample, owner: str) -> dict[str, float]:
    samples = judge.read(service.registry, [_reading(judge, body)])
    [outcome] = (await judge.judge(service, samples, owner=owner)).outcomes
    value = judge.reward(outcome)
    return {"reward": value, "score": value, **judge.figures(outcome)}


def _reading(judge: Judge[Slime], body: SlimeSample) -> Reading:
    def read(selection: Selection) -> Sample:
        asked: Any = body.prompt
        if isinstance(asked, str) and judge.section.question_from == "last_user":
            asked = plain_prompt(asked, [token for codec in codecs(selection) for token in special_tokens(codec)])
        task = judge.section.reader.read(body.label, messages=asked)
        return Sample(task, judge.response(body.response, selection))

    return read
