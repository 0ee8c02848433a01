"""docs/openai.md runs: every cell, in order, with curl and OpenAI's own client, against a stack of tiny models."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from plugins.pages import Cell, check

from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.openai.reading import NEUTRAL
from rlt_teacher_server.openai.requests import ExplainExtras
from rlt_teacher_server.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "openai.md"
PYTHON = ROOT / ".clients" / "bin" / "python"
RUNNER = """
import contextlib, io, json, sys
names, printed = {}, []
for code in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "docs/openai.md", "exec"), names)
    printed.append(output.getvalue())
print(json.dumps(printed))
"""


@pytest.fixture
def environment(settings: Callable[..., Settings], reward_url: str) -> Iterator[dict[str, str]]:
    assert PYTHON.exists(), "run `make clients`"
    with running(lambda: build(settings(reward_url=reward_url))) as url:
        yield {**os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none"}


def run(command: list[str], given: str, environment: dict[str, str]) -> str:
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def outputs(cells: Sequence[Cell], environment: dict[str, str]) -> Iterator[str]:
    """Python's share one process, as the page's reader has one."""
    codes = [cell.code for cell in cells if cell.kind == "python"]
    printed = iter(json.loads(run([str(PYTHON), "-c", RUNNER], json.dumps(codes), environment)))
    for cell in cells:
        yield next(printed) if cell.kind == "python" else run(["bash", "-s"], cell.code, environment)


def test_every_cell_prints_what_the_page_shows(environment: dict[str, str]) -> None:
    check(PAGE, lambda cells: outputs(cells, environment))


def test_every_extra_is_named() -> None:
    page = PAGE.read_text()
    assert all(f"`{name}`" in page for name in ExplainExtras.model_fields)


def test_what_is_said_to_be_refused_is() -> None:
    [paragraph] = re.findall(r"is refused by name, .*?: (.*?) and their like", PAGE.read_text())
    assert set(re.findall(r"`(\w+)`", paragraph)) <= set(NEUTRAL)
