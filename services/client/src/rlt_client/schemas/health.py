"""`GET /health/details` of the jobs service: what its operator, and `rlt doctor`, want to know. Scope `admin`."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from rlt_client.schemas.common import Reply

__all__ = [
    "BrokerHealth",
    "DatabaseHealth",
    "JobsHealth",
    "OutboxHealth",
    "QueueHealth",
    "ShardsHealth",
    "StoreHealth",
    "TroubledBuild",
]


class DatabaseHealth(Reply):
    """Postgres. Where it does not answer, what it alone knows is left out of the whole reply."""

    ok: bool
    detail: str | None = None
    version: str | None = Field(default=None, description="of Postgres, such as `17.2`")
    revision: str | None = Field(default=None, description="of the schema")
    newest: str = Field(description="the schema that this program was made for")
    now: datetime | None = Field(default=None, description="by its clock")


class BrokerHealth(Reply):
    """Redis or Valkey."""

    ok: bool
    detail: str | None = None
    version: str | None = None
    maxmemory_policy: str | None = Field(default=None, description="must be `noeviction`, or messages are lost")


class StoreHealth(Reply):
    ok: bool
    detail: str | None = None
    free_bytes: int | None = Field(default=None, description="of the disk under a folder; null for S3")
    total_bytes: int | None = None


class QueueHealth(Reply):
    """A queue of messages, and when one of the proofs that the relay sends through it last came to a worker."""

    name: str
    messages: int | None = Field(default=None, description="that wait in it; null where the broker does not answer")
    rung_seconds: float | None = Field(default=None, description="since the last proof was sent; null: none ever was")
    answered_seconds: float | None = Field(default=None, description="since one last arrived; null: none ever did")


class OutboxHealth(Reply):
    waiting: int = Field(description="messages that no relay has sent yet")
    oldest_seconds: float = Field(description="age of the oldest of them")


class ShardsHealth(Reply):
    """Of running builds."""

    ready: int
    running: int
    overdue: int = Field(description="whose lease ran out and was not taken back")


class TroubledBuild(Reply):
    id: int
    owner: str
    dataset: str
    stalled: str | None = Field(default=None, description="why it cannot go on, if so")
    stalled_seconds: float | None = None
    dead_shards: int = Field(default=0, description="given up: `POST /builds/{id}/retry` tries them again")
    last_error: str | None = Field(default=None, description="of a dead shard")


class JobsHealth(Reply):
    version: str
    now: datetime = Field(description="by this process's clock")
    canary_seconds: float = Field(description="how often a proof is sent through each queue")
    database: DatabaseHealth
    broker: BrokerHealth
    store: StoreHealth
    queues: list[QueueHealth] = Field(default_factory=list)
    outbox: OutboxHealth | None = None
    shards: ShardsHealth | None = None
    troubled: list[TroubledBuild] = Field(default_factory=list, description="open builds, at most 20")
