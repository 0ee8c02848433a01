"""`/policies`: versions of the teacher, how they are published, compared and taken back.

A policy is a name and the content hash of its weights. One of them is active: what requests get that name none.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from rlt_client.schemas.common import ModelRef, Reply, Request
from rlt_client.schemas.models import NAME, ModelKind

__all__ = [
    "ActivatePolicy",
    "EngineInfo",
    "LoadPolicy",
    "LoadedPolicy",
    "PolicyInfo",
    "PolicyList",
    "PolicyState",
    "RollbackPolicy",
    "UnloadPolicy",
]


class PolicyState(StrEnum):
    serving = "serving"
    """In every engine that is up: requests can name it."""
    retiring = "retiring"
    """Unloaded or replaced; requests that began before still use it."""
    known = "known"
    """In no engine: it can be activated, and rolled back to, as long as its files are there unchanged. Of full weights
    engines hold one version at a time, so all but the active one, and adapters on them, are in this state."""


class LoadPolicy(Request):
    """`POST /policies`: make a version known under a name and load it into every engine."""

    name: str = Field(min_length=1, max_length=200, pattern=NAME, description="what requests call it")
    source: str = Field(
        min_length=1,
        max_length=4096,
        description="a folder inside the allowed roots, at the same path for the teacher and its engines: a LoRA "
        "adapter of PEFT, or a whole model of the served model's architecture and tokenizer",
    )
    kind: ModelKind = Field(
        default=ModelKind.lora, description="`full` weights replace the ones in the engines, so they must be activated"
    )
    activate: bool = Field(default=False, description="requests that name no policy get it from now on")
    expected_revision: str | None = Field(
        default=None, description="load only what has this content hash, else 409 `revision_mismatch`"
    )


class ActivatePolicy(Request):
    revision: str | None = Field(default=None, description="of several versions of one name; the newest if left out")


class UnloadPolicy(Request):
    revision: str | None = Field(default=None, description="of several versions of one name; the newest if left out")


class RollbackPolicy(Request):
    expected_revision: str | None = Field(
        default=None,
        description="go back only if this is active, else 409 `revision_mismatch`: makes a rollback safe to repeat",
    )


class PolicyInfo(ModelRef):
    """One version. An adapter's revision is `<its base's>+<its own>`."""

    kind: ModelKind
    base: ModelRef | None = Field(default=None, description="the full weights that an adapter sits on")
    active: bool
    state: PolicyState
    requests: int = Field(default=0, description="requests that use it at this moment")
    served_name: str | None = Field(
        default=None, description="what the engines call it: never used for another version"
    )
    loaded_at: float | None = Field(default=None, description="seconds since 1970")
    detail: str | None = Field(default=None, description="why it is not in the engines, though it should be")


class EngineInfo(Reply):
    """One engine behind the teacher."""

    name: str
    up: bool
    detail: str | None = Field(default=None, description="why it is not up, or what is done with it")
    version: str | None = None
    weights: str | None = Field(default=None, description="revision of the full weights that it holds")
    samples: int = Field(description="samples of this teacher in it")
    running: int | None = Field(default=None, description="sequences that it generates, by its own gauge")
    waiting: int | None = Field(default=None, description="sequences in its queue, by its own gauge")


class PolicyList(Reply):
    active: PolicyInfo
    policies: list[PolicyInfo] = Field(description="every version, newest first")
    history: list[ModelRef] = Field(description="what was active before, the latest first: where a rollback goes")
    engines: list[EngineInfo]


class LoadedPolicy(Reply):
    policy: PolicyInfo
    loaded: bool = Field(description="false: this very version was there already")
    seconds: float = Field(description="what it took, hashing and proving included; without waiting for other loads")
