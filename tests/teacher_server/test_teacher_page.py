"""docs/teacher.md says what the code does: its tables name everything that there is, and nothing else."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import get_args

import pytest

from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import ExplainEvent, ExplanationFlag
from rlt_client.schemas.policies import PolicyState
from rlt_service.metrics import Metrics
from rlt_teacher_server.errors import Reason
from rlt_teacher_server.metrics import TeacherMetrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "teacher.md").read_text()
SOURCES = ROOT / "teacher_server" / "src" / "rlt_teacher_server"
OF_OPENAI = {"sample_restarted", "unsupported_message", "unsupported_parameter"}  # docs/openai.md


def table(heading: str) -> list[str]:
    """Names in the first column of the table with this heading."""
    rows = PAGE.partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]


@pytest.mark.parametrize(
    ("heading", "names"), [("`gen_status`", GenStatus), ("`flags`", ExplanationFlag), ("`state`", PolicyState)], ids=str
)
def test_the_tables_name_everything(heading: str, names: type[StrEnum]) -> None:
    assert table(heading) == [name.value for name in names]


def test_every_event_is_named_in_the_order_of_its_coming() -> None:
    union, _ = get_args(ExplainEvent)
    assert table("event") == [event.model_fields["event"].default for event in get_args(union)]


def test_every_metric_is_named() -> None:
    metrics = Metrics()
    TeacherMetrics(metrics)
    found = {family.name for family in metrics.registry.collect()}
    assert {f"rlt_{name}" for name in table("metric")} <= found
    assert {name for name in found if name.startswith("rlt_teacher_")} == {f"rlt_{name}" for name in table("metric")}


def test_every_type_of_error_is_named() -> None:
    rows = PAGE.partition("\n| status | `type` |")[2].partition("\n\n")[0]
    said = set(re.findall(r"`(\w+)`", rows))
    files = [path for path in SOURCES.rglob("*.py") if "launch" not in path.parts]
    raised = {name for path in files for name in re.findall(r'type="(\w+)"', path.read_text())}
    assert raised - said - OF_OPENAI == set()
    assert {reason.value for reason in Reason} <= said
