"""Replies of this server's own routes; those of `/reward` and `/models` are in `rlt_client.schemas`."""

from __future__ import annotations

from pydantic import Field

from rlt_client.schemas.common import Reply

__all__ = ["FormatInfo", "FormatList"]


class FormatInfo(Reply):
    name: str
    version: str
    hash: str
    available: bool
    reason: str | None = Field(default=None, description="why the models cannot take it")


class FormatList(Reply):
    default: str
    formats: list[FormatInfo]
