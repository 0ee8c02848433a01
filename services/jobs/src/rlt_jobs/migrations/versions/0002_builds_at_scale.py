"""Other sources, scoring again, selections, deletion: what builds at scale need beside the first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from rlt_jobs.migrations.keeping import refuse_loss

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)

_KNOWN = """
UPDATE scores c SET gen_status = s.gen_status
FROM samples s
WHERE s.build_id = c.build_id AND s.problem = c.problem AND s.sample_idx = c.sample_idx
    AND s.gen_status <> 'complete'"""


def upgrade() -> None:
    for kind in ("rescore", "rerank"):
        op.execute(f"ALTER TYPE build_kind ADD VALUE IF NOT EXISTS '{kind}'")
    op.add_column("builds", sa.Column("duplicates", sa.Integer(), server_default="0", nullable=False))
    op.add_column("builds", sa.Column("of_build_id", sa.BigInteger(), nullable=True))
    op.add_column("builds", sa.Column("of_version_id", sa.BigInteger(), nullable=True))
    op.add_column("builds", sa.Column("stalled_at", TIME, nullable=True))
    op.add_column("builds", sa.Column("stalled", sa.Text(), nullable=True))
    op.add_column("builds", sa.Column("deleted_at", TIME, nullable=True))
    op.create_foreign_key(op.f("fk_builds_of_build_id_builds"), "builds", "builds", ["of_build_id"], ["id"])
    op.create_foreign_key(op.f("fk_builds_of_version_id_versions"), "builds", "versions", ["of_version_id"], ["id"])
    op.create_index(op.f("ix_builds_of_build_id"), "builds", ["of_build_id"])
    op.add_column("builds", sa.Column("engines", sa.ARRAY(sa.Text()), server_default="{}", nullable=False))
    op.add_column("scorers", sa.Column("spec", postgresql.JSONB(), nullable=True))
    op.add_column("problems", sa.Column("first_idx", sa.Integer(), nullable=True))
    op.create_index(
        "ix_problems_same",
        "problems",
        ["build_id", "question_hash"],
        postgresql_where=sa.text("first_idx IS NULL"),
    )
    op.create_index(
        "ix_problems_first",
        "problems",
        ["build_id", "first_idx"],
        postgresql_where=sa.text("first_idx IS NOT NULL"),
    )
    op.add_column("shards", sa.Column("score_only", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("shards", sa.Column("max_tokens", sa.Integer(), nullable=True))
    op.add_column("shards", sa.Column("retry_at", TIME, nullable=True))
    op.alter_column("shards", "rang_at", nullable=True, server_default=None)
    op.create_index("ix_shards_claim", "shards", ["build_id", "id"], postgresql_where=sa.text("state = 'ready'"))
    op.create_table(
        "quotas",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("open_builds", sa.BigInteger(), nullable=True),
        sa.Column("queued_samples", sa.BigInteger(), nullable=True),
        sa.Column("samples_per_day", sa.BigInteger(), nullable=True),
        sa.Column("running_shards", sa.BigInteger(), nullable=True),
        sa.Column("upload_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_quotas")),
    )
    op.add_column("samples", sa.Column("flags", sa.ARRAY(sa.Text()), server_default="{}", nullable=False))
    op.add_column("scores", sa.Column("student_tokens", sa.Integer(), nullable=True))
    op.add_column("scores", sa.Column("baseline", sa.Float(), nullable=True))
    op.add_column("scores", sa.Column("unmapped", sa.Float(), nullable=True))
    op.execute("ALTER TABLE scores ADD COLUMN gen_status gen_status DEFAULT 'complete' NOT NULL")
    op.execute(_KNOWN)
    op.drop_index("ix_samples_length", table_name="samples")
    op.create_index(
        "ix_samples_length",
        "samples",
        ["build_id", "gen_status", "completion_tokens", "problem", "sample_idx"],
        postgresql_where=sa.text("completion_tokens >= 0"),
    )
    op.drop_index("ix_scores_reward", table_name="scores")
    op.create_index(
        "ix_scores_reward",
        "scores",
        ["build_id", "scorer_id", "gen_status", "reward", "problem", "sample_idx"],
        postgresql_where=sa.text("gen_status IS NOT NULL AND reward IS NOT NULL"),
    )
    op.create_index(
        "ix_scores_errors",
        "scores",
        ["build_id", "scorer_id", "problem", "sample_idx"],
        postgresql_where=sa.text("status = 'score_error'"),
    )
    op.add_column("uploads", sa.Column("format", sa.Text(), server_default="jsonl", nullable=False))
    op.add_column("uploads", sa.Column("deleted_at", TIME, nullable=True))
    op.create_index("ix_uploads_owner", "uploads", ["owner", "created_at", "id"])
    op.add_column("versions", sa.Column("deleted_at", TIME, nullable=True))
    op.create_index(op.f("ix_versions_build_id"), "versions", ["build_id"])
    op.create_table(
        "exports",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("asked_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_exports_version_id_versions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
        sa.UniqueConstraint("uri", name=op.f("uq_exports_uri")),
        sa.UniqueConstraint("version_id", "format", "shape", name=op.f("uq_exports_version_id_format_shape")),
    )


# What 0001 has no column for, and what programs of it would take for something else.
_VALUES = {
    "quotas of owners": "quotas",
    "exports, which are written again when asked for": "exports",
    "numbers of repeated rows": "builds WHERE duplicates > 0",
    "engines of builds": "builds WHERE engines <> '{}'",
    "rewards of scorers, written out": "scorers WHERE spec IS NOT NULL",
    "problems that repeat another": "problems WHERE first_idx IS NOT NULL",
    "flags of samples": "samples WHERE flags <> '{}'",
    "token counts and baselines of scores": "scores WHERE coalesce(student_tokens, baseline, unmapped) IS NOT NULL",
}
_ROWS = {
    "builds from another build": "builds WHERE of_build_id IS NOT NULL OR kind IN ('rescore', 'rerank')",
    "builds deleted and not swept, which would be back": "builds WHERE deleted_at IS NOT NULL",
    "versions deleted and not forgotten, which would be back": "versions WHERE deleted_at IS NOT NULL",
    "uploads deleted and not swept, which would be back": "uploads WHERE deleted_at IS NOT NULL",
    "uploads that are no JSON lines": "uploads WHERE format <> 'jsonl'",
    "open shards of a retry": "shards WHERE state IN ('ready', 'running') AND (score_only OR max_tokens IS NOT NULL)",
}


def downgrade() -> None:
    refuse_loss(values=_VALUES, rows=_ROWS)
    op.drop_table("exports")
    op.drop_index(op.f("ix_versions_build_id"), table_name="versions")
    op.drop_column("versions", "deleted_at")
    op.drop_index("ix_uploads_owner", table_name="uploads")
    op.drop_column("uploads", "deleted_at")
    op.drop_column("uploads", "format")
    op.drop_index("ix_scores_errors", table_name="scores")
    op.drop_index("ix_scores_reward", table_name="scores")
    op.create_index("ix_scores_reward", "scores", ["build_id", "scorer_id", "reward", "problem", "sample_idx"])
    op.drop_index("ix_samples_length", table_name="samples")
    op.create_index("ix_samples_length", "samples", ["build_id", "completion_tokens", "problem", "sample_idx"])
    for name in ("gen_status", "unmapped", "baseline", "student_tokens"):
        op.drop_column("scores", name)
    op.drop_column("samples", "flags")
    op.drop_table("quotas")
    op.drop_index("ix_shards_claim", table_name="shards")
    op.execute("UPDATE shards SET rang_at = now() WHERE rang_at IS NULL")
    op.alter_column("shards", "rang_at", nullable=False, server_default=sa.text("now()"))
    op.drop_column("shards", "retry_at")
    op.drop_column("shards", "max_tokens")
    op.drop_column("shards", "score_only")
    op.drop_index("ix_problems_same", table_name="problems")
    op.drop_index("ix_problems_first", table_name="problems")
    op.drop_column("problems", "first_idx")
    op.drop_column("scorers", "spec")
    op.drop_constraint("fk_builds_of_version_id_versions", "builds")
    op.drop_constraint("fk_builds_of_build_id_builds", "builds")
    op.drop_index("ix_builds_of_build_id", table_name="builds")
    for name in ("engines", "deleted_at", "stalled", "stalled_at", "of_version_id", "of_build_id", "duplicates"):
        op.drop_column("builds", name)
    # values of an enum cannot be dropped; `rescore` and `rerank` stay
