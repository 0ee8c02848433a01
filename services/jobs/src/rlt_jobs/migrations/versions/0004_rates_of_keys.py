"""How much a key may ask for in a while. Programs of the version before know no rates and leave them empty."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rlt_jobs.migrations.keeping import refuse_loss

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

RATES = ("rate", "items")


def upgrade() -> None:
    for name in RATES:
        op.add_column("keys", sa.Column(name, sa.Text(), nullable=True))
        pattern = r"^[1-9]\d{0,11}/(second|minute|hour|day)$"
        op.create_check_constraint(f"ck_keys_{name}", "keys", f"{name} ~ '{pattern}'")


def downgrade() -> None:
    """Keys would have no limits but the server's."""
    refuse_loss(values={"limits of keys": "keys WHERE coalesce(rate, items) IS NOT NULL"})
    for name in RATES:
        op.drop_constraint(f"ck_keys_{name}", "keys")
        op.drop_column("keys", name)
