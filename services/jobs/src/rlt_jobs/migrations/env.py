"""Run by Alembic: migrates over the connection or URL that it is given in its configuration's attributes."""

from __future__ import annotations

import re
from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from rlt_jobs.tables import metadata

PARTITION = re.compile(r"(samples|scores)_p\d\d")


def include_name(name: str | None, kind: str, _parents: Any) -> bool:
    """Partitions follow their parent; they are no tables of the models."""
    return not (kind == "table" and name is not None and PARTITION.fullmatch(name))


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, include_name=include_name, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
with engine.connect() as connection:
    migrate(connection)
    connection.commit()
