"""`/policies`: versions of the teacher, and how an administrator changes them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request, Response, status

from rlt_client.schemas.common import Scope
from rlt_client.schemas.policies import (
    ActivatePolicy,
    LoadedPolicy,
    LoadPolicy,
    PolicyInfo,
    PolicyList,
    RollbackPolicy,
    UnloadPolicy,
)
from rlt_service.auth import requires
from rlt_service.routing import Router
from rlt_teacher_server.policies.hosting import PolicyHost

__all__ = ["router"]

router = Router(tags=["policies"])


async def _host(request: Request) -> PolicyHost:
    host: PolicyHost = request.app.state.policies
    return host


Host = Annotated[PolicyHost, Depends(_host)]
Name = Annotated[str, Path(max_length=200)]


@router.get("/policies", dependencies=[requires(Scope.explain)])
async def policies(host: Host) -> PolicyList:
    """Every version that is known, what requests get that name none, where a rollback goes, and the engines."""
    return PolicyList(
        active=host.policies.info(host.book.active),
        policies=host.policies.infos(),
        history=[version.ref for version in host.book.history],
        engines=await host.engines(),
    )


@router.post(
    "/policies",
    dependencies=[requires(Scope.admin)],
    responses={201: {"model": LoadedPolicy, "description": "Loaded; full weights that are not activated: known"}},
)
async def load_policy(body: LoadPolicy, response: Response, host: Host) -> LoadedPolicy:
    """Publish a version: a LoRA adapter or full weights. Requests that began keep the version that they had.

    The reply comes when every engine that is up has it. It takes the place of an older version of its name. Full
    weights take the place of those in the engines, and so have to be activated: now, or later by its own route.
    """
    done = await host.load(body)
    if done.loaded:
        response.status_code = status.HTTP_201_CREATED
    return LoadedPolicy(policy=host.policies.info(done.version), loaded=done.loaded, seconds=done.seconds)


@router.post("/policies/rollback", dependencies=[requires(Scope.admin)])
async def rollback_policy(host: Host, body: RollbackPolicy | None = None) -> PolicyInfo:
    """Make active what was active before. Again and again goes further back."""
    return host.policies.info(await host.rollback(body.expected_revision if body else None))


@router.post("/policies/{name:path}/activate", dependencies=[requires(Scope.admin)])
async def activate_policy(name: Name, host: Host, body: ActivatePolicy | None = None) -> PolicyInfo:
    """Make a known version what requests get that name none; it is loaded first where the engines lack it."""
    return host.policies.info(await host.activate(name, body.revision if body else None))


@router.post("/policies/{name:path}/unload", dependencies=[requires(Scope.admin)])
async def unload_policy(name: Name, host: Host, body: UnloadPolicy | None = None) -> PolicyInfo:
    """Take an adapter out of the engines when its last request has ended. It stays known. Not for the active one."""
    return host.policies.info(await host.unload(name, body.revision if body else None))


@router.delete("/policies/{name:path}", dependencies=[requires(Scope.admin)], status_code=status.HTTP_204_NO_CONTENT)
async def delete_policy(
    name: Name, host: Host, revision: Annotated[str | None, Query(description="all versions if left out")] = None
) -> None:
    """Forget it; its files stay. Requests that began keep it. Not for the active one, nor what adapters sit on."""
    await host.delete(name, revision and revision.replace(" ", "+"))  # which is what servers read a bare `+` as
