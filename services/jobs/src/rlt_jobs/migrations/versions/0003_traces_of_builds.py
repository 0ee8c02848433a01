"""Which trace a build's work stands in. Workers and APIs of the version before need not know of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("builds", sa.Column("traceparent", sa.Text(), nullable=True))


def downgrade() -> None:
    """Builds lose the connection with their submitter's trace, and nothing else."""
    op.drop_column("builds", "traceparent")
