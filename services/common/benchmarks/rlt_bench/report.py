"""docs/benchmarks.md from the records: tables between markers, the rest is written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from rlt_bench.measure import figure

__all__ = ["update"]

NOT_MEASURED: Final = "Not measured: no machine for it was at hand."


def update(page: Path, records: Path) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` by the record of that name."""
    text = re.sub(
        r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->",
        lambda found: f"<!-- {found[1]} -->\n{_section(records / f'{found[1]}.json')}<!-- /{found[1]} -->",
        page.read_text(),
        flags=re.DOTALL,
    )
    page.write_text(text)


def _section(path: Path) -> str:
    if not path.exists():
        return NOT_MEASURED + "\n"
    record = json.loads(path.read_text())
    where = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    notes = "".join(f"- {note}\n" for note in record["notes"])
    return f"`{record['command']}` on {record['when']}: {where}.\n\n{_table(record['rows'])}\n{notes}"


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    lines = [["case", "way", *names], ["---", "---", *("---:" for _ in names)]]
    for row in rows:
        cells = [figure(row["figures"][name]) if name in row["figures"] else "" for name in names]
        lines.append([row["case"], row["way"], *cells])
    return "".join(f"| {' | '.join(_escaped(line))} |\n" for line in lines)


def _escaped(cells: Iterable[str]) -> Iterable[str]:
    return (cell.replace("|", r"\|") for cell in cells)
