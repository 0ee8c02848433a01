"""Tables of builds. `samples` and `scores` are split by build into 32 partitions, made by the migration."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Identity, Index, SmallInteger, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ENUM, REAL
from sqlalchemy.orm import Mapped, mapped_column

from rlt_client.schemas.builds import BuildKind, BuildState, ShardState
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.database import Base

__all__ = ["PARTITIONS", "Build", "Dataset", "Event", "Problem", "Sample", "Score", "Scorer", "Shard"]

PARTITIONS = 32


class Dataset(Base):
    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("owner", "name"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Build(Base):
    """One submitted build. Import and publishing hold the lease of the build, as a worker holds that of a shard."""

    __tablename__ = "builds"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        Index("ix_builds_owner", "owner", "id"),
        Index(
            "ix_builds_open", "state", postgresql_where=text("state IN ('importing', 'running', 'paused', 'finishing')")
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), index=True)
    owner: Mapped[str]
    kind: Mapped[BuildKind]
    state: Mapped[BuildState]
    n: Mapped[int]
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[bytes]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[bytes]
    problems: Mapped[int] = mapped_column(server_default="0")
    bad_rows: Mapped[int] = mapped_column(server_default="0")
    duplicates: Mapped[int] = mapped_column(server_default="0")
    of_build_id: Mapped[int | None] = mapped_column(ForeignKey("builds.id"), index=True)
    """Whose samples are scored again or selected from; null: its own."""
    of_version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", use_alter=True))
    """What the version will be derived from."""
    upload_id: Mapped[UUID | None] = mapped_column(ForeignKey("uploads.id"))
    import_line: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Lines of the source already read."""
    import_offset: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Bytes of the source already read."""
    scorer_id: Mapped[int | None] = mapped_column(ForeignKey("scorers.id"))
    engines: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """What generated, by name and version, such as `vllm 0.31.0`."""
    lease_token: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    worker: Mapped[str | None]
    barren: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    rang_at: Mapped[datetime] = mapped_column(server_default=func.now())
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    stalled_at: Mapped[datetime | None]
    """Since when nothing has been made though work waits; `stalled` says why."""
    stalled: Mapped[str | None]
    deleted_at: Mapped[datetime | None]
    """Hidden since; the sweep removes it once the retention is over."""
    traceparent: Mapped[str | None]
    """The request that submitted it, in whose trace all of its work stands (W3C Trace Context)."""

    @property
    def data_id(self) -> int:
        """The build that problems, samples and scores are filed under."""
        return self.of_build_id or self.id


class Problem(Base):
    __tablename__ = "problems"
    __table_args__ = (
        Index("ix_problems_same", "build_id", "question_hash", postgresql_where=text("first_idx IS NULL")),
        Index("ix_problems_first", "build_id", "first_idx", postgresql_where=text("first_idx IS NOT NULL")),
    )

    build_id: Mapped[int] = mapped_column(ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True)
    idx: Mapped[int] = mapped_column(primary_key=True)
    question_hash: Mapped[bytes]
    """SHA-256 of question, answer and system."""
    question: Mapped[str]
    answer: Mapped[str]
    system: Mapped[str | None]
    explanation: Mapped[str | None]
    """What kind `score` scores."""
    first_idx: Mapped[int | None]
    """The first problem with the same question and answer, whose traces are ranked with this one's; null: itself."""
    meta: Mapped[dict[str, Any] | None]


class Shard(Base):
    """Samples of the problems `lo … hi−1`: the unit of work, of leasing and of sealing.

    A shard with `only` asks again, as try `try`, those samples of its range whose gen_status is one of `only`.
    Narrow and hot: `lease_until` and the counters are in no index, so that their updates stay within the page.
    """

    __tablename__ = "shards"
    __table_args__ = (
        Index("ix_shards_running", "id", postgresql_where=text("state = 'running'")),
        Index("ix_shards_ready", "rang_at", postgresql_where=text("state = 'ready'")),
        Index("ix_shards_claim", "build_id", "id", postgresql_where=text("state = 'ready'")),
        {
            "postgresql_with": {
                "fillfactor": "60",
                "autovacuum_vacuum_scale_factor": "0",
                "autovacuum_vacuum_threshold": "2000",
                "autovacuum_analyze_scale_factor": "0.05",
            }
        },
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    build_id: Mapped[int] = mapped_column(ForeignKey("builds.id", ondelete="CASCADE"), index=True)
    lo: Mapped[int]
    hi: Mapped[int]
    try_: Mapped[int] = mapped_column("try", SmallInteger, server_default="0")
    only: Mapped[list[GenStatus] | None] = mapped_column(
        ARRAY(ENUM(GenStatus, name="gen_status", values_callable=lambda e: [m.value for m in e], create_type=False))
    )
    score_only: Mapped[bool] = mapped_column(server_default=text("false"))
    """Scores again what could not be scored, among samples whose gen_status is one of `only`; generates nothing."""
    max_tokens: Mapped[int | None]
    """Budget of one explanation, in place of the build's."""
    state: Mapped[ShardState] = mapped_column(server_default="ready")
    lease_token: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    worker: Mapped[str | None]
    barren: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """Leases in a row that brought no new row: a claim adds one, a flush that changed something sets it to 0."""
    error: Mapped[str | None]
    rang_at: Mapped[datetime | None]
    """When a message for it was last queued; null: not since it became ready."""
    retry_at: Mapped[datetime | None]
    """Not before this: a lease that ended badly is not tried again at once."""
    total: Mapped[int]
    """Samples in the range; those of a build are problems × n, whatever is asked again."""
    complete: Mapped[int] = mapped_column(server_default="0")
    truncated: Mapped[int] = mapped_column(server_default="0")
    malformed: Mapped[int] = mapped_column(server_default="0")
    context_overflow: Mapped[int] = mapped_column(server_default="0")
    engine_error: Mapped[int] = mapped_column(server_default="0")
    cancelled: Mapped[int] = mapped_column(server_default="0")
    scored: Mapped[int] = mapped_column(server_default="0")
    score_error: Mapped[int] = mapped_column(server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    tokens_per_s: Mapped[float] = mapped_column(REAL, server_default="0")
    """Of the running lease, 0 otherwise."""
    samples_per_s: Mapped[float] = mapped_column(REAL, server_default="0")


# The conditions of the indexes of length and reward hold for all rows that pages are made of, and only pages state
# them: in tables without statistics an index that has all columns of a primary key is as good to the planner.
class Sample(Base):
    """One outcome. `file_id` and `row` say where its texts are sealed; null while they are spooled, or none exist."""

    __tablename__ = "samples"
    __table_args__ = (
        Index(
            "ix_samples_length",
            "build_id",
            "gen_status",
            "completion_tokens",
            "problem",
            "sample_idx",
            postgresql_where=text("completion_tokens >= 0"),
        ),
        Index("ix_samples_status", "build_id", "gen_status", "problem", "sample_idx"),
        {"postgresql_partition_by": "HASH (build_id)"},
    )

    build_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    problem: Mapped[int] = mapped_column(primary_key=True)
    sample_idx: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    try_: Mapped[int] = mapped_column("try", SmallInteger)
    gen_status: Mapped[GenStatus]
    gen_reason: Mapped[str | None]
    finish_reason: Mapped[str | None]
    policy_revision: Mapped[str | None]
    prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    completion_tokens: Mapped[int] = mapped_column(server_default="0")
    request_key: Mapped[bytes]
    flags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    file_id: Mapped[int | None] = mapped_column(BigInteger)
    row: Mapped[int | None]


class Scorer(Base):
    """What makes scores comparable: everything that the components depend on beside the texts."""

    __tablename__ = "scorers"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    hash: Mapped[bytes] = mapped_column(unique=True)
    student: Mapped[str]
    student_revision: Mapped[str]
    teacher_source: Mapped[str | None]
    teacher_revision: Mapped[str | None]
    format_name: Mapped[str]
    format_hash: Mapped[str]
    kl: Mapped[str | None]
    student_temperature: Mapped[float]
    teacher_temperature: Mapped[float | None]
    dtype: Mapped[str | None]
    engine: Mapped[str | None]
    spec: Mapped[dict[str, Any] | None]
    """The reward with every coefficient written out: `reward` of a score follows from it and the components."""


class Score(Base):
    """One score of one sample. A sample that was never sent to a scorer has none."""

    __tablename__ = "scores"
    __table_args__ = (
        Index(
            "ix_scores_reward",
            "build_id",
            "scorer_id",
            "gen_status",
            "reward",
            "problem",
            "sample_idx",
            postgresql_where=text("gen_status IS NOT NULL AND reward IS NOT NULL"),
        ),
        Index(
            "ix_scores_errors",
            "build_id",
            "scorer_id",
            "problem",
            "sample_idx",
            postgresql_where=text("status = 'score_error'"),
        ),
        {"postgresql_partition_by": "HASH (build_id)"},
    )

    build_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    problem: Mapped[int] = mapped_column(primary_key=True)
    sample_idx: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    scorer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    gen_status: Mapped[GenStatus] = mapped_column(server_default="complete")
    """The sample's, so that scores of one state have an order. What is scored again is complete."""
    status: Mapped[ScoreStatus]
    reason: Mapped[str | None]
    reward: Mapped[float | None]
    ss_mean: Mapped[float | None]
    ss_min: Mapped[float | None]
    ss_sum: Mapped[float | None]
    kl_mean: Mapped[float | None]
    kl_max: Mapped[float | None]
    format: Mapped[float | None]
    n_answer: Mapped[int | None]
    n_think: Mapped[int | None]
    student_tokens: Mapped[int | None]
    baseline: Mapped[float | None]
    unmapped: Mapped[float | None]
    flags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")


class Event(Base):
    """What the owner of a build should be able to read later, such as a refused row of the source.

    Written under a lock of the build's row only. Readers go on from the last id that they saw, and one that was given
    earlier and committed later than that would never be read.
    """

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_build_id", "build_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    build_id: Mapped[int] = mapped_column(ForeignKey("builds.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    kind: Mapped[str]
    line: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[str]
