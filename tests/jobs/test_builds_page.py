"""docs/builds.md says what the code does: its tables name everything that there is, its commands are commands."""

from __future__ import annotations

import re
import shlex
from enum import StrEnum
from pathlib import Path

import click
import pytest
import typer

from rlt_client.cli.app import make_app
from rlt_client.schemas.builds import (
    BuildKind,
    BuildState,
    Component,
    ExportFormat,
    ExportShape,
    SelectionMode,
    Truncated,
)
from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds.quotas import Quota

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "builds.md").read_text()
SOURCES = ROOT / "services" / "jobs" / "src" / "rlt_jobs"
OF_THE_CLIENT = {"invalid_request", "not_found", "payload_too_large"}
# by a default_type, or as a plain string
MADE_ELSEWHERE = {
    "store_unavailable",
    "store_full",
    "no_problems",
    "given_up",
    "scorer_changed",
}  # default_type, or a plain string


def table(heading: str) -> list[str]:
    """Names in the first column of the table with this heading."""
    found = re.search(rf"^\| {re.escape(heading)} \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found is not None
    rows = found[1].splitlines()
    return [name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]


NAMES: dict[str, type[StrEnum]] = {
    "`kind`": BuildKind,
    "`state`": BuildState,
    "`gen_status`": GenStatus,
    "`truncated`": Truncated,
    "`mode`": SelectionMode,
    "component": Component,
    "`format`": ExportFormat,
    "`shape`": ExportShape,
}


@pytest.mark.parametrize("heading", NAMES)
def test_the_tables_name_everything(heading: str) -> None:
    assert table(heading) == [name.value for name in NAMES[heading]]


def test_every_quota_is_named() -> None:
    assert table("quota") == [column.name for column in Quota.__table__.columns if column.name != "owner"]


def test_every_kind_of_event_is_named() -> None:
    texts = [path.read_text() for path in SOURCES.rglob("*.py")]
    made = {kind for text in texts for kind in re.findall(r'Event\([^)]*?kind="(\w+)"', text)}
    made |= {kind for text in texts for kind in re.findall(r'add_events\(\s*session,[^,]+, "(\w+)"', text)}
    assert set(table("event's `kind`")) == made


def test_every_type_of_error_is_named() -> None:
    said = set(re.findall(r"`(\w+)`", PAGE.partition("## Errors")[2].partition("## From Python")[0]))
    texts = [path.read_text() for path in SOURCES.rglob("*.py")]
    raised = {name for text in texts for name in re.findall(r'(?<!_)type="([a-z_]+)"', text)}
    assert raised - said == set()
    assert said - raised - OF_THE_CLIENT - MADE_ELSEWHERE - {"type", "error"} == set()


def test_every_command_of_the_page_is_one_with_such_options() -> None:
    root = typer.main.get_command(make_app())
    lines = re.findall(r"^    \$ (rlt .*)$", PAGE, re.MULTILINE)
    lines += [found for found in re.findall(r"`(rlt (?:build|data) [^`]*)`", PAGE) if "…" not in found]
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(line)[1:]
        command, context = root, click.Context(root, info_name="rlt")
        while isinstance(command, click.Group) or hasattr(command, "commands"):
            name, words = words[0], words[1:]
            assert name in command.commands, line
            command = command.commands[name]
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        used = {word for word in words if re.match(r"-{1,2}[a-z]", word)}
        assert used <= known, (line, used - known, context)
