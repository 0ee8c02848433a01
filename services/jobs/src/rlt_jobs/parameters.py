"""What the routes of this service take beside their bodies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from rlt_client.schemas.common import Scope
from rlt_service.auth import Principal, requires

__all__ = ["BuildId", "Caller", "VersionId"]

Caller = Annotated[Principal, requires(Scope.build)]
BuildId = Annotated[int, Path(ge=1, lt=2**63)]
VersionId = Annotated[int, Path(ge=1, lt=2**63)]
