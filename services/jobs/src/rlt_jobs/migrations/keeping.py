"""Going back loses nothing unless that is accepted: what each migration asks before it takes something away."""

from __future__ import annotations

from collections.abc import Mapping

from alembic import context, op
from sqlalchemy import text

from rlt_client.errors import RLTError

__all__ = ["CannotGoBack", "refuse_loss"]


class CannotGoBack(RLTError):
    """The older schema has no place for rows that are there. Nothing was changed."""


def refuse_loss(*, values: Mapping[str, str], rows: Mapping[str, str] | None = None) -> None:
    """Count what the older schema cannot hold.

    Args:
        values: what would be dropped, each with the FROM clause that finds it; `--accept-loss` lets it go.
        rows: what the older programs could not read; never let go: it has to be deleted first.

    Raises:
        CannotGoBack: with everything that is there, counted.
    """
    if context.is_offline_mode():
        return
    found = _counted(rows or {})
    if not context.config.attributes.get("accept_loss", False):
        found += _counted(values)
    if found:
        raise CannotGoBack(f"this would lose {', '.join(found)}")


def _counted(what: Mapping[str, str]) -> list[str]:
    connection = op.get_bind()
    counts = {words: connection.scalar(text(f"SELECT count(*) FROM {rest}")) for words, rest in what.items()}  # noqa: S608 our own SQL
    return [f"{words} ({count:,})" for words, count in counts.items() if count]
