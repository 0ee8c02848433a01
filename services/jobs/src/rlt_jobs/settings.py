"""Settings of all processes of the service: `RLT_JOBS_…`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from rlt_service.settings import PathList, ServerSettings

__all__ = ["Settings"]


class Settings(ServerSettings):
    """One class for api, relay, worker and reaper, so that all of them are told the same."""

    model_config = SettingsConfigDict(env_prefix="RLT_JOBS_")

    port: int = Field(8003, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    database_url: str = Field(description="Postgres 15 or newer: postgresql+psycopg://user@host/name")
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis or Valkey, with maxmemory-policy noeviction")
    teacher_url: str = Field("http://127.0.0.1:8001", description="the teacher server")
    teacher_key: SecretStr | None = Field(None, description="key for the teacher server, scope explain")
    reward_url: str = Field("http://127.0.0.1:8002", description="the reward server")
    reward_key: SecretStr | None = Field(None, description="key for the reward server, scope reward")
    store: str = Field(
        "store",
        description="sealed files, versions and uploads: a folder shared by all processes, or s3://bucket/prefix",
    )
    store_endpoint: str | None = Field(
        None, description="of an S3 other than Amazon's; region and credentials come from the usual AWS variables"
    )
    formats: Path | None = Field(
        None, description="folder of prompt formats beside the shipped ones, as the servers have"
    )
    data_roots: PathList = Field(
        [], description="folders that builds may read sources from, as API and workers see them, separated by commas"
    )
    allow_hub: bool = Field(
        False,
        description="let builds read data sets of the Hugging Face hub, private ones too where HF_TOKEN is set; off, "
        "for a server asks nobody outside unless told to",
    )
    database_keys: bool = Field(False, description="accept the keys of the database too (`rlt-jobs keys add`)")

    max_upload_bytes: int = Field(16 * 2**30, ge=1, description="largest upload: a million long problems")
    max_text_chars: int = Field(200_000, ge=1, description="longest question or answer: a mistake beyond any context")
    import_batch: int = Field(10_000, ge=1, description="rows a transaction of an import: what a restart repeats")
    shard_samples: int = Field(
        256,
        ge=1,
        le=10_000,
        description="samples a shard: 2 to 10 minutes of one worker; more in builds of over 10,000 shards",
    )
    lease_seconds: float = Field(120.0, gt=0, description="a worker silent for so long has lost its shard")
    heartbeat_seconds: float = Field(30.0, gt=0, description="how often a lease is renewed: four times within it")
    control_seconds: float = Field(
        1.0, gt=0, description="how soon a worker learns that its build was paused or cancelled, by a query of so often"
    )
    stall_seconds: float = Field(
        60.0, gt=0, description="a build whose requests were all refused for so long is called stalled"
    )
    flush_seconds: float = Field(10.0, gt=0, description="a killed worker loses the samples of so long at most")
    flush_rows: int = Field(256, ge=1, description="samples waiting that make it flush sooner")
    max_barren: int = Field(5, ge=1, description="leases in a row without a new row that make a shard dead")
    shard_limit_seconds: float = Field(
        3_000.0, gt=0, description="after so long a worker gives a shard back, so that Celery's limit never strikes"
    )
    task_limit_seconds: int = Field(3_600, ge=10, description="Celery's hard limit of a task; the soft one is 90 %")
    compact_bytes: int = Field(
        256 * 2**20, ge=2**16, description="size of a version's files: few, yet parallel to read"
    )

    quota_open_builds: int | None = Field(
        100,
        ge=1,
        description="builds an owner may have open; `rlt-jobs quota` sets exceptions to this and the next four",
    )
    quota_queued_samples: int | None = Field(
        50_000_000, ge=1, description="samples an owner may have waiting: six builds of a million problems, 8 each"
    )
    quota_samples_per_day: int | None = Field(
        None, ge=1, description="samples an owner may ask for in 24 hours; no limit"
    )
    quota_running_shards: int | None = Field(
        None,
        ge=1,
        description="shards of an owner that run at once; none: builds share the workers by fair share alone",
    )
    quota_upload_bytes: int | None = Field(2**40, ge=1, description="bytes of uploads an owner may keep: a terabyte")

    concurrency: int = Field(
        4,
        ge=1,
        description="worker processes of `rlt-jobs worker`; each runs a shard, and begins the next under its tail",
    )
    max_in_flight: int = Field(64, ge=1, description="requests under way a worker process at most")
    start_in_flight: int = Field(
        64, ge=1, description="requests under way at the start; a server that is asked too much refuses, and it halves"
    )
    request_seconds: float = Field(900.0, gt=0, description="for one explanation or score, queueing there included")
    patience_seconds: float = Field(5.0, ge=0, description="a broken connection is retried for so long, then believed")
    heartbeat_file: Path | None = Field(
        None, description="touched by the worker or relay once it is ready and while it lives, for an orchestrator"
    )

    retention_days: float = Field(
        7.0, ge=0, description="what was deleted can be brought back by hand for so long; 0: until the next sweep"
    )
    orphan_hours: float = Field(
        24.0, ge=0, description="a file that no row names is kept for so long: one being written has no row yet"
    )
    export_days: float = Field(30.0, ge=0, description="an export nobody asked for in so long is removed")
    unused_upload_days: float = Field(90.0, ge=0, description="an upload that no build used in so long is deleted")
    sweep_seconds: float = Field(3_600.0, gt=0, description="how often the relay looks for what may be removed")

    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="where a worker gives out the metrics of all its processes; nowhere if unset",
    )
    relay_metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="where a relay gives out its metrics; not the worker's, beside which it may run; nowhere if unset",
    )
    traced_samples: int = Field(
        4,
        ge=0,
        description="samples a lease whose requests stand in the build's trace, where OTEL_EXPORTER_OTLP_ENDPOINT is "
        "set; all of a large build's would make a trace that nothing can show",
    )

    relay_seconds: float = Field(0.5, gt=0, description="pause between looks into an empty outbox")
    reap_seconds: float = Field(10.0, gt=0, description="pause between looks for lost leases")
    reconcile_seconds: float = Field(60.0, gt=0, description="a ready shard nobody took for so long is rung again")
    probe_seconds: float = Field(3.0, gt=0, description="how often a worker is woken for a build that cannot go on")
    canary_seconds: float = Field(60.0, gt=0, description="how often a message is sent through each queue as a proof")

    @field_validator("store")
    @classmethod
    def _usable(cls, store: str) -> str:
        scheme, found, _ = store.partition("://")
        if found and scheme != "s3":
            raise ValueError(f"a store is a folder or s3://bucket/prefix, not {scheme}://")
        if found and find_spec("s3fs") is None:
            raise ValueError("a store on S3 needs `pip install rlt-jobs[s3]`")
        return store

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("heartbeat_seconds must be at most half of lease_seconds, so that one may be missed")
        if self.shard_limit_seconds >= self.soft_limit_seconds:
            raise ValueError("shard_limit_seconds must be below 90 % of task_limit_seconds")
        return self

    @property
    def soft_limit_seconds(self) -> int:
        return self.task_limit_seconds * 9 // 10

    @property
    def visibility_seconds(self) -> int:
        """Redis hands a message out again after this; over twice the hard limit, so that no running task is doubled."""
        return self.task_limit_seconds * 2 + 300
