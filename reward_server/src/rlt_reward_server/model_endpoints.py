"""`/models`: what is served, and how an administrator changes it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request, Response, status

from rlt_client.schemas.common import Scope
from rlt_client.schemas.models import LoadedModelReply, LoadModel, ModelInfo, ModelList, Role
from rlt_reward_server.hosting import ModelHost
from rlt_reward_server.registry import Registry, Version
from rlt_service.auth import requires
from rlt_service.routing import Router

__all__ = ["router"]

router = Router(tags=["models"])


async def _host(request: Request) -> ModelHost:
    host: ModelHost = request.app.state.models
    return host


Host = Annotated[ModelHost, Depends(_host)]


@router.get("/models", dependencies=[requires(Scope.reward)])
async def models(host: Host) -> ModelList:
    """The students and hosted teachers, with their revisions; `student` and `teacher` are what requests get that name
    none."""
    infos = [_info(host.registry, version) for version in host.registry.versions()]
    student, teacher = (
        next((info for info in infos if info.role is role and info.default), None)
        for role in (Role.student, Role.teacher)
    )
    assert student is not None  # the default student is never unloaded
    return ModelList(
        student=student,
        teacher=teacher,
        students=[info for info in infos if info.role is Role.student],
        teachers=[info for info in infos if info.role is Role.teacher],
    )


@router.post(
    "/models",
    dependencies=[requires(Scope.admin)],
    responses={201: {"model": LoadedModelReply, "description": "Loaded, and served from now on"}},
)
async def load_model(body: LoadModel, response: Response, host: Host) -> LoadedModelReply:
    """Load a version of a model and switch to it under its name. Requests that began keep the version that they had.

    The reply comes when it is served. The same name and revision again is answered at once, with `loaded` false.
    """
    version, loaded, seconds = await host.load(body)
    if loaded:
        response.status_code = status.HTTP_201_CREATED
    return LoadedModelReply(model=_info(host.registry, version), loaded=loaded, seconds=seconds)


@router.delete(
    "/models/{role}/{name:path}", dependencies=[requires(Scope.admin)], status_code=status.HTTP_204_NO_CONTENT
)
async def unload_model(role: Role, name: Annotated[str, Path(max_length=200)], host: Host) -> None:
    """Serve it no more. Its memory is freed when the last request that uses it ends. Not for a default."""
    await host.unload(role, name)


def _info(registry: Registry, version: Version) -> ModelInfo:
    model = version.model
    scorer = model.scorer
    return ModelInfo(
        name=model.ref.name,
        revision=model.ref.revision,
        role=version.role,
        kind=model.kind,
        base=model.base.ref if model.base else None,
        default=registry.is_default(version),
        state=version.state,
        requests=version.requests,
        max_tokens=scorer.max_length,
        vocab_size=model.codec.vocab_size,
        dtype=scorer.dtype,
        device=str(scorer.device),
        devices=[str(each.device) for each in model.scorers],
        memory_bytes=model.weight_bytes,
    )
