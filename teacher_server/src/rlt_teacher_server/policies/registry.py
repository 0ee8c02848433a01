"""The policies by name, and which of them a request gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rlt_client.errors import NotFound
from rlt_client.schemas.common import FieldError, ModelRef
from rlt_teacher_server.engine.base import FullWeights
from rlt_teacher_server.engine.pool import Engines, Group, Held, Session
from rlt_teacher_server.model import TeacherModel

__all__ = ["Policies", "Use"]


@dataclass(frozen=True, slots=True)
class Use:
    """A policy while a request uses it: every sample of it comes from these very weights."""

    policy: ModelRef
    session: Session

    def group(self) -> Group:
        """For the samples of one question."""
        return self.session.group()


class Policies:
    """Args:
    model: what the engines were started with; it is a policy too, under its own name.
    """

    def __init__(self, model: TeacherModel, engines: Engines) -> None:
        self._engines = engines
        self._base = model.ref
        self._held = Held(FullWeights(model.ref.revision, model.folder))

    @asynccontextmanager
    async def using(self, name: str | None) -> AsyncIterator[Use]:
        """The policy of one request, held while it runs: by its name, by a revision, or the active one.

        Raises:
            NotFound: policy_not_found.
            Conflict: policy_not_loaded: it is known, but in no engine.
            Overloaded, Unavailable: as `Engines.session`.
        """
        if name not in (None, self._base.name, self._base.revision):
            detail = f"no such policy; there is {self._base.name}"
            raise NotFound(detail, type="policy_not_found", errors=[FieldError(pointer="/policy", detail=detail)])
        async with self._engines.session(self._held) as session:
            yield Use(self._base, session)
