"""docs/teacher_tour.md runs: every cell, in order, against a real stack of tiny models.

Cells are the fenced `python` blocks; the fenced `text` block after one is what it printed. Models that are trained
here differ in their last digits from machine to machine, so lines with numbers are not compared, the others are.
`RLT_WRITE_PAGES=1` writes what was printed into the page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "teacher_tour.md"
CELL = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


@pytest.fixture
def toured(
    settings: Callable[..., Settings],
    reward_url: str,
    tiny_adapter: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    adapter = tiny_adapter(seed=40)
    monkeypatch.setenv("RLT_ADAPTER", str(adapter))
    with running(lambda: build(settings(reward_url=reward_url, allowed_roots=[adapter.parent]))) as url:
        monkeypatch.setenv("RLT_TEACHER_URL", url)
        yield


def shape(output: str) -> list[str | None]:
    """Lines without numbers as they are; None for a line with some."""
    return [None if re.search(r"\d", line) else line for line in output.splitlines()]


@pytest.mark.usefixtures("toured")
def test_every_cell_prints_what_the_page_shows() -> None:
    names: dict[str, Any] = {}
    page = PAGE.read_text()
    written, differing = page, []
    for cell in CELL.finditer(page):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(cell["code"], str(PAGE), "exec"), names)
        output = printed.getvalue()
        shown = f"```python\n{cell['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")
        written = written.replace(cell[0], shown)
        if shape(output) != shape(cell["output"] or ""):
            differing.append((cell["output"], output))
    if os.environ.get("RLT_WRITE_PAGES"):
        PAGE.write_text(written)
    else:
        assert not differing
