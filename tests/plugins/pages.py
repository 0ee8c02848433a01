"""Pages whose cells are run: fenced blocks of code, each followed by a fenced `text` block of what it printed.

Models that are trained here differ in their last digits from machine to machine, so lines with digits are counted and
not compared; the others must be as the page shows them. `RLT_WRITE_PAGES=1` writes what was printed into the page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cell", "check"]

CELL = re.compile(r"```(?P<kind>bash|python)\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    kind: str
    """`bash` or `python`."""
    code: str


def check(page: Path, run: Callable[[Sequence[Cell]], Iterable[str]]) -> None:
    """Run all cells; each must print what stands under it.

    Args:
        run: what the cells print, in their order.
    """
    text = page.read_text()
    found = list(CELL.finditer(text))
    written, differing = text, []
    for cell, output in zip(found, run([Cell(each["kind"], each["code"]) for each in found]), strict=True):
        shown = f"```{cell['kind']}\n{cell['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")
        written = written.replace(cell[0], shown)
        if _shape(output) != _shape(cell["output"] or ""):
            differing.append((cell["output"], output))
    if os.environ.get("RLT_WRITE_PAGES"):
        page.write_text(written)
    else:
        assert not differing


def _shape(output: str) -> list[str | None]:
    return [None if re.search(r"\d", line) else line for line in output.splitlines()]
