"""One thing that was found, for people."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

__all__ = ["Finding", "Level", "ok", "warning", "wrong"]


class Level(StrEnum):
    ok = "ok"
    warning = "warning"
    """It works, and will not for ever, or not for everybody."""
    wrong = "wrong"
    """Something that people want does not work."""


class Finding(BaseModel):
    model_config = ConfigDict(frozen=True)

    level: Level
    about: str
    """`teacher`, `reward`, `jobs`, or `stack` for what is between them."""
    says: str
    todo: str | None = None


def ok(about: str, says: str) -> Finding:
    return Finding(level=Level.ok, about=about, says=says)


def warning(about: str, says: str, todo: str) -> Finding:
    return Finding(level=Level.warning, about=about, says=says, todo=todo)


def wrong(about: str, says: str, todo: str) -> Finding:
    return Finding(level=Level.wrong, about=about, says=says, todo=todo)
