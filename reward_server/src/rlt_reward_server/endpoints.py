"""The routes: JSON in, the service, JSON out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response

from rlt_client.schemas.common import Scope
from rlt_client.schemas.reward import PresetInfo, PresetList, RewardRequest, RewardResponse, SpecRequest
from rlt_reward_server.catalog import Entry
from rlt_reward_server.reward import RewardPreset
from rlt_reward_server.schemas import FormatInfo, FormatList
from rlt_reward_server.service import RewardService
from rlt_reward_server.specs import Means
from rlt_service.auth import Principal, requires
from rlt_service.callers import while_connected
from rlt_service.rates import spend
from rlt_service.routing import Router

__all__ = ["router"]

router = Router(tags=["reward"], dependencies=[requires(Scope.reward)])


async def _service(request: Request) -> RewardService:
    """Asynchronous, so that it needs no thread."""
    service: RewardService = request.app.state.service
    return service


Service = Annotated[RewardService, Depends(_service)]


@router.post("/reward", response_model=RewardResponse)
async def reward(
    body: RewardRequest, request: Request, service: Service, caller: Annotated[Principal, requires(Scope.reward)]
) -> RewardResponse | Response:
    """Score explanations. One item that cannot be scored carries its own `error`; the reply is 200 all the same."""
    spend(request, len(body.items))
    return await while_connected(request, service.score(body, owner=caller.owner))


@router.get("/formats")
async def formats(service: Service) -> FormatList:
    """The prompt formats, and which of them the models can take."""
    catalog = service.registry.default.catalog
    return FormatList(default=catalog.default, formats=[_format(entry) for entry in catalog.entries])


@router.get("/presets")
async def presets(service: Service) -> PresetList:
    """The rewards that the default models can give, and their coefficients."""
    means = Means.of(service.registry.default)
    presets = [_preset(reward) for reward in means.presets]
    return PresetList(default=service.default_preset, presets=presets, kl=means.estimators)


def _format(entry: Entry) -> FormatInfo:
    ref = entry.format.ref
    return FormatInfo(
        name=ref.name, version=ref.version, hash=ref.hash, available=entry.refusal is None, reason=entry.refusal
    )


def _preset(reward: RewardPreset) -> PresetInfo:
    return PresetInfo(
        name=reward.preset,
        description=reward.description,
        needs_teacher=reward.uses_kl,
        spec=reward.resolve(SpecRequest(preset=reward.preset)),
    )
