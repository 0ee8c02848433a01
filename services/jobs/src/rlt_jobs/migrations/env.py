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
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_name=include_name,
        compare_type=True,
        transaction_per_migration=True,  # the ones before stay done, and a new value of an enum can be used
    )
    with context.begin_transaction():
        context.run_migrations()


def print_sql() -> None:
    context.configure(dialect_name="postgresql", target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    print_sql()
else:
    given = context.config.attributes
    options = {"options": f"-c lock_timeout={given['lock_ms']}", "application_name": "rlt-jobs migrate"}
    engine = create_engine(given["url"], poolclass=NullPool, connect_args=options)
    with engine.connect() as connection:
        migrate(connection)
        connection.commit()
