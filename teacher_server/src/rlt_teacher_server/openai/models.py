"""Policies as OpenAI lists models. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rlt_client.errors import NotFound
from rlt_client.schemas.policies import PolicyInfo, PolicyState
from rlt_service.pointers import at
from rlt_teacher_server.openai.replies import ModelCard, ModelCards, ModelDetails
from rlt_teacher_server.openai.requests import ALIAS

__all__ = ["card", "cards"]


def cards(infos: Sequence[PolicyInfo]) -> ModelCards:
    """What requests can name: the active policy by its alias, and each name whose newest version is served.

    Args:
        infos: every version, the newest first.
    """
    named = {name: info for name, info in _newest(infos).items() if info.state is PolicyState.serving and name != ALIAS}
    return ModelCards(data=[_card(ALIAS, _active(infos)), *(_card(name, info) for name, info in named.items())])


def card(infos: Sequence[PolicyInfo], id: str) -> ModelCard:
    """One by anything that requests can name it by. Raises `NotFound` (policy_not_found)."""
    if id == ALIAS:
        return _card(id, _active(infos))
    by_name = _newest(infos).get(id)
    for info in infos if by_name is None else [by_name]:
        if info.state is PolicyState.serving and id in (info.name, info.revision, f"{info.name}@{info.revision}"):
            return _card(id, info)
    names = ", ".join(each.id for each in cards(infos).data)
    raise at("/model", NotFound(f"no such model is served; there is {names}", type="policy_not_found"))


def _newest(infos: Sequence[PolicyInfo]) -> dict[str, PolicyInfo]:
    """What each name means."""
    newest: dict[str, PolicyInfo] = {}
    for info in infos:
        newest.setdefault(info.name, info)
    return newest


def _active(infos: Sequence[PolicyInfo]) -> PolicyInfo:
    return next(info for info in infos if info.active)


def _card(id: str, info: PolicyInfo) -> ModelCard:
    about = ModelDetails(name=info.name, revision=info.revision, kind=info.kind, active=info.active)
    return ModelCard(id=id, created=int(info.loaded_at or 0), rlt=about)
