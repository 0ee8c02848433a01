"""Tables of builds, as rlt_jobs.tables describes them, and the partitions of samples and scores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from rlt_jobs.migrations.keeping import refuse_loss

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PARTITIONS = 32  # enough that one partition of a billion samples still fits a machine's memory with its indexes


def _partition(table: str) -> None:
    for index in range(PARTITIONS):
        op.execute(
            f"CREATE TABLE {table}_p{index:02d} PARTITION OF {table} "
            f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {index})"
        )


def upgrade() -> None:
    op.create_table(
        "canaries",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_canaries")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("owner", "name", name=op.f("uq_datasets_owner_name")),
    )
    op.create_table(
        "keys",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("in_path", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_keys")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("ref", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"},
    )
    op.create_index("ix_outbox_unsent", "outbox", ["id"], unique=False, postgresql_where=sa.text("sent_at IS NULL"))
    op.create_table(
        "samples",
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Integer(), nullable=False),
        sa.Column("sample_idx", sa.SmallInteger(), nullable=False),
        sa.Column("try", sa.SmallInteger(), nullable=False),
        sa.Column(
            "gen_status",
            sa.Enum(
                "complete", "truncated", "malformed", "context_overflow", "engine_error", "cancelled", name="gen_status"
            ),
            nullable=False,
        ),
        sa.Column("gen_reason", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("policy_revision", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("request_key", sa.LargeBinary(), nullable=False),
        sa.Column("file_id", sa.BigInteger(), nullable=True),
        sa.Column("row", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("build_id", "problem", "sample_idx", name=op.f("pk_samples")),
        postgresql_partition_by="HASH (build_id)",
    )
    op.create_index(
        "ix_samples_length", "samples", ["build_id", "completion_tokens", "problem", "sample_idx"], unique=False
    )
    op.create_index("ix_samples_status", "samples", ["build_id", "gen_status", "problem", "sample_idx"], unique=False)
    _partition("samples")
    op.create_table(
        "scorers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("student", sa.Text(), nullable=False),
        sa.Column("student_revision", sa.Text(), nullable=False),
        sa.Column("teacher_source", sa.Text(), nullable=True),
        sa.Column("teacher_revision", sa.Text(), nullable=True),
        sa.Column("format_name", sa.Text(), nullable=False),
        sa.Column("format_hash", sa.Text(), nullable=False),
        sa.Column("kl", sa.Text(), nullable=True),
        sa.Column("student_temperature", sa.Double(), nullable=False),
        sa.Column("teacher_temperature", sa.Double(), nullable=True),
        sa.Column("dtype", sa.Text(), nullable=True),
        sa.Column("engine", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scorers")),
        sa.UniqueConstraint("hash", name=op.f("uq_scorers_hash")),
    )
    op.create_table(
        "scores",
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Integer(), nullable=False),
        sa.Column("sample_idx", sa.SmallInteger(), nullable=False),
        sa.Column("scorer_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Enum("scored", "score_error", "skipped", name="score_status"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.Column("ss_mean", sa.Double(), nullable=True),
        sa.Column("ss_min", sa.Double(), nullable=True),
        sa.Column("ss_sum", sa.Double(), nullable=True),
        sa.Column("kl_mean", sa.Double(), nullable=True),
        sa.Column("kl_max", sa.Double(), nullable=True),
        sa.Column("format", sa.Double(), nullable=True),
        sa.Column("n_answer", sa.Integer(), nullable=True),
        sa.Column("n_think", sa.Integer(), nullable=True),
        sa.Column("flags", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("build_id", "problem", "sample_idx", "scorer_id", name=op.f("pk_scores")),
        postgresql_partition_by="HASH (build_id)",
    )
    op.create_index(
        "ix_scores_reward", "scores", ["build_id", "scorer_id", "reward", "problem", "sample_idx"], unique=False
    )
    _partition("scores")
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("kind", sa.Enum("generate", "score", name="build_kind"), nullable=False),
        sa.Column(
            "state",
            sa.Enum("importing", "running", "paused", "finishing", "done", "failed", "cancelled", name="build_state"),
            nullable=False,
        ),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("spec_hash", sa.LargeBinary(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("problems", sa.Integer(), server_default="0", nullable=False),
        sa.Column("bad_rows", sa.Integer(), server_default="0", nullable=False),
        sa.Column("upload_id", sa.Uuid(), nullable=True),
        sa.Column("import_line", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("import_offset", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("scorer_id", sa.BigInteger(), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("barren", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("rang_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_builds_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["scorer_id"], ["scorers.id"], name=op.f("fk_builds_scorer_id_scorers")),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name=op.f("fk_builds_upload_id_uploads")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
        sa.UniqueConstraint("owner", "idempotency_key", name=op.f("uq_builds_owner_idempotency_key")),
    )
    op.create_index(op.f("ix_builds_dataset_id"), "builds", ["dataset_id"], unique=False)
    op.create_index(
        "ix_builds_open",
        "builds",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state IN ('importing', 'running', 'paused', 'finishing')"),
    )
    op.create_index("ix_builds_owner", "builds", ["owner", "id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_events_build_id_builds"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_build_id", "events", ["build_id", "id"], unique=False)
    op.create_table(
        "files",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("lo", sa.Integer(), nullable=False),
        sa.Column("hi", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_files_build_id_builds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("uri", name=op.f("uq_files_uri")),
    )
    op.create_index(op.f("ix_files_build_id"), "files", ["build_id"], unique=False)
    op.create_table(
        "problems",
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("question_hash", sa.LargeBinary(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), nullable=True),
        sa.Column("explanation", sa.Text(), nullable=True),
        sa.Column("meta", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_problems_build_id_builds"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("build_id", "idx", name=op.f("pk_problems")),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("lo", sa.Integer(), nullable=False),
        sa.Column("hi", sa.Integer(), nullable=False),
        sa.Column("try", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "only",
            sa.ARRAY(
                postgresql.ENUM(
                    "complete",
                    "truncated",
                    "malformed",
                    "context_overflow",
                    "engine_error",
                    "cancelled",
                    name="gen_status",
                    create_type=False,
                )
            ),
            nullable=True,
        ),
        sa.Column(
            "state",
            sa.Enum("ready", "running", "done", "dead", name="shard_state"),
            server_default="ready",
            nullable=False,
        ),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("barren", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("rang_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("complete", sa.Integer(), server_default="0", nullable=False),
        sa.Column("truncated", sa.Integer(), server_default="0", nullable=False),
        sa.Column("malformed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("context_overflow", sa.Integer(), server_default="0", nullable=False),
        sa.Column("engine_error", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cancelled", sa.Integer(), server_default="0", nullable=False),
        sa.Column("scored", sa.Integer(), server_default="0", nullable=False),
        sa.Column("score_error", sa.Integer(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens_per_s", sa.REAL(), server_default="0", nullable=False),
        sa.Column("samples_per_s", sa.REAL(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_shards_build_id_builds"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shards")),
        postgresql_with={
            "fillfactor": "60",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "2000",
            "autovacuum_analyze_scale_factor": "0.05",
        },
    )
    op.create_index(op.f("ix_shards_build_id"), "shards", ["build_id"], unique=False)
    op.create_index("ix_shards_ready", "shards", ["rang_at"], unique=False, postgresql_where=sa.text("state = 'ready'"))
    op.create_index("ix_shards_running", "shards", ["id"], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "versions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("build_id", sa.BigInteger(), nullable=True),
        sa.Column("selection", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("scorer_id", sa.BigInteger(), nullable=True),
        sa.Column("manifest_uri", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.Text(), nullable=False),
        sa.Column("manifest_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("lineage", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_versions_build_id_builds")),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_versions_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name=op.f("fk_versions_parent_id_versions")),
        sa.ForeignKeyConstraint(["scorer_id"], ["scorers.id"], name=op.f("fk_versions_scorer_id_scorers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("dataset_id", "number", name=op.f("uq_versions_dataset_id_number")),
    )
    op.create_index(
        "uq_versions_published", "versions", ["build_id"], unique=True, postgresql_where=sa.text("parent_id IS NULL")
    )
    op.create_table(
        "spool",
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Integer(), nullable=False),
        sa.Column("sample_idx", sa.Integer(), nullable=False),
        sa.Column("shard_id", sa.BigInteger(), nullable=False),
        sa.Column("texts", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], name=op.f("fk_spool_shard_id_shards"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("build_id", "problem", "sample_idx", name=op.f("pk_spool")),
        postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"},
    )
    op.execute("ALTER TABLE spool ALTER COLUMN texts SET STORAGE EXTERNAL")  # compressed already
    op.create_index(op.f("ix_spool_shard_id"), "spool", ["shard_id"], unique=False)
    op.create_table(
        "version_files",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("file_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_version_files_file_id_files")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_version_files_version_id_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", "file_id", name=op.f("pk_version_files")),
    )
    op.create_index(op.f("ix_version_files_file_id"), "version_files", ["file_id"], unique=False)


def downgrade() -> None:
    refuse_loss(values={name: name for name in ("builds", "versions", "uploads", "keys")})
    op.drop_index(op.f("ix_version_files_file_id"), table_name="version_files")
    op.drop_table("version_files")
    op.drop_index(op.f("ix_spool_shard_id"), table_name="spool")
    op.drop_table("spool")
    op.drop_index("uq_versions_published", table_name="versions", postgresql_where=sa.text("parent_id IS NULL"))
    op.drop_table("versions")
    op.drop_index("ix_shards_running", table_name="shards", postgresql_where=sa.text("state = 'running'"))
    op.drop_index("ix_shards_ready", table_name="shards", postgresql_where=sa.text("state = 'ready'"))
    op.drop_index(op.f("ix_shards_build_id"), table_name="shards")
    op.drop_table("shards")
    op.drop_table("problems")
    op.drop_index(op.f("ix_files_build_id"), table_name="files")
    op.drop_table("files")
    op.drop_index("ix_events_build_id", table_name="events")
    op.drop_table("events")
    op.drop_index("ix_builds_owner", table_name="builds")
    op.drop_index(
        "ix_builds_open",
        table_name="builds",
        postgresql_where=sa.text("state IN ('importing', 'running', 'paused', 'finishing')"),
    )
    op.drop_index(op.f("ix_builds_dataset_id"), table_name="builds")
    op.drop_table("builds")
    op.drop_table("uploads")
    op.drop_index("ix_scores_reward", table_name="scores")
    op.drop_table("scores")
    op.drop_table("scorers")
    op.drop_index("ix_samples_status", table_name="samples")
    op.drop_index("ix_samples_length", table_name="samples")
    op.drop_table("samples")
    op.drop_index("ix_outbox_unsent", table_name="outbox", postgresql_where=sa.text("sent_at IS NULL"))
    op.drop_table("outbox")
    op.drop_table("keys")
    op.drop_table("datasets")
    op.drop_table("canaries")
    for name in ("build_kind", "build_state", "shard_state", "gen_status", "score_status"):
        op.execute(f"DROP TYPE {name}")
