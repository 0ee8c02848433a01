"""docs/teacher_tour.md runs: every cell, in order, against a real stack of tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from plugins.pages import Cell, check

from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "teacher_tour.md"


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


def outputs(cells: Sequence[Cell]) -> Iterator[str]:
    names: dict[str, Any] = {}
    for cell in cells:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(cell.code, str(PAGE), "exec"), names)
        yield printed.getvalue()


@pytest.mark.usefixtures("toured")
def test_every_cell_prints_what_the_page_shows() -> None:
    check(PAGE, outputs)
