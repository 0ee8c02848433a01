"""What a schema is, and what of it programs of the version before would miss after a migration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

__all__ = ["Column", "Schema", "breaking", "execute", "schema", "snapshot"]

Row = dict[str, Any]
OURS = """
SELECT oid, relname FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace
    AND relname <> 'alembic_version'"""
COLUMNS = f"""
SELECT t.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
    coalesce(nullif(a.attidentity, '')::text, pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute a JOIN ({OURS}) t ON t.oid = a.attrelid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped"""
# What can refuse a row. That a column must be given is told of the column.
RULES = f"""
SELECT t.relname, c.conname FROM pg_constraint c JOIN ({OURS}) t ON t.oid = c.conrelid WHERE c.contype <> 'n'
UNION SELECT t.relname, i.indexrelid::regclass::text FROM pg_index i JOIN ({OURS}) t ON t.oid = i.indrelid
WHERE i.indisunique"""


@dataclass(frozen=True)
class Column:
    type: str
    nullable: bool
    default: str | None


@dataclass(frozen=True)
class Schema:
    """Args:
    tables: columns by name of each table.
    unique: names of unique constraints and indexes, and of checks and foreign keys, by table.
    """

    tables: dict[str, dict[str, Column]]
    rules: dict[str, frozenset[str]]


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


def names(url: str) -> list[str]:
    return sorted(row[1] for row in execute(url, OURS))


def snapshot(url: str) -> dict[str, list[Row]]:
    """Every row of every table, as text, in an order of its own."""
    return {
        name: sorted((row[0] for row in execute(url, f"SELECT to_jsonb(t) FROM {name} t")), key=str)
        for name in names(url)
    }


def schema(url: str) -> Schema:
    tables: dict[str, dict[str, Column]] = {name: {} for name in names(url)}
    for table, name, kind, nullable, default in execute(url, COLUMNS):
        tables[table][name] = Column(kind, nullable, default)
    rules: dict[str, set[str]] = {name: set() for name in tables}
    for table, rule in execute(url, RULES):
        rules[table].add(rule)
    return Schema(tables, {name: frozenset(found) for name, found in rules.items()})


def breaking(before: Schema, after: Schema) -> list[str]:
    """Why programs that know `before` could fail on `after`, or write rows that say another thing there."""
    return list(_breaking(before, after))


def _breaking(before: Schema, after: Schema) -> Iterator[str]:
    for table, columns in before.tables.items():
        if table not in after.tables:
            yield f"{table} is gone"
            continue
        yield from _columns(table, columns, after.tables[table])
        for rule in sorted(after.rules[table] - before.rules[table]):
            if not _of_new_columns(rule, set(after.tables[table]) - set(columns)):
                yield f"{table} has a new rule, {rule}"


def _of_new_columns(rule: str, new: set[str]) -> bool:
    """By the naming convention: what only weighs columns that old programs leave empty refuses none of their rows."""
    return any(column in rule for column in new)


def _columns(table: str, before: dict[str, Column], after: dict[str, Column]) -> Iterator[str]:
    for name, column in before.items():
        now = after.get(name)
        if now is None:
            yield f"{table}.{name} is gone"
        elif now.type != column.type:
            yield f"{table}.{name} was {column.type} and is {now.type}"
        elif column.nullable and not now.nullable:
            yield f"{table}.{name} must be given now"
        elif column.default != now.default:
            yield f"{table}.{name} had the default {column.default}, now {now.default}"
    for name in after.keys() - before.keys():
        if not after[name].nullable and after[name].default is None:
            yield f"{table}.{name} is new and must be given"
