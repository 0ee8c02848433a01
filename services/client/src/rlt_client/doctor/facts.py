"""What the servers said, or why they did not."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlt_client.errors import APIError, RLTError
from rlt_client.schemas.common import FormatRef, Reply, Scope
from rlt_client.schemas.explain import ExplainResponse
from rlt_client.schemas.health import JobsHealth
from rlt_client.schemas.models import ModelList
from rlt_client.schemas.policies import PolicyList

__all__ = ["NAMES", "Facts", "Named", "ServerFacts", "ServerFormats"]

NAMES = {"teacher": "rlt-teacher-server", "reward": "rlt-reward-server", "jobs": "rlt-jobs"}
"""What each server calls itself in `/version`."""


class Named(Reply):
    """`/version`."""

    name: str
    version: str


class ServerFormats(Reply):
    """`/formats` of the reward server."""

    class Format(FormatRef):
        available: bool = True
        reason: str | None = None

    default: str
    formats: list[Format]


@dataclass
class ServerFacts:
    """What one server says of itself to anybody, and what it lets this key do."""

    name: str
    """`teacher`, `reward` or `jobs`."""
    url: str
    with_key: bool = False
    away: RLTError | None = None
    """Why it was not reached; nothing else is known then."""
    version: Named | None = None
    lacking: dict[str, str] | None = None
    """What it waits for, by name of the check; empty where it is ready."""
    skew_s: float | None = None
    """Its clock minus this machine's."""
    refusals: dict[Scope, APIError | None] = field(default_factory=dict)
    """By scope: None where the key is enough."""


@dataclass
class Facts:
    """None is what could not be asked."""

    version: str
    """Of this client."""
    servers: dict[str, ServerFacts]
    models: ModelList | None = None
    formats: ServerFormats | None = None
    policies: PolicyList | None = None
    explained: ExplainResponse | RLTError | None = None
    """One short explanation, asked for with its tokens, and its score."""
    with_score: bool = True
    """Whether the score was asked for: not where the reward server is away, for which it would be waited in vain."""
    jobs: JobsHealth | None = None
    idle: bool = False
    """Shards were ready and none running, at two looks."""
