"""The command line of a server's benchmarks: `python -m PACKAGE KIND …`, each kind a module with `run`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from rlt_bench import report
from rlt_bench.measure import Record

__all__ = ["ROOT", "main"]

ROOT: Final = Path(__file__).resolve().parents[4]
RECORDS: Final = ROOT / "docs" / "benchmarks"


def main(package: str, kinds: Sequence[str], *, draw: Callable[[Path], None] | None = None) -> None:
    """Runs the kinds that are asked for; `report` writes the page, and what `draw` makes of the records' folder."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=import_module(package).__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kinds", nargs="+", choices=[*kinds, "report"])
    parser.add_argument("--records", type=Path, default=RECORDS, help="where the measured figures are kept, as JSON")
    asked = parser.parse_args()
    for kind in asked.kinds:
        if kind == "report":
            report.update(ROOT / "docs" / "benchmarks.md", asked.records)
            if draw is not None:
                draw(asked.records)
            continue
        run: Callable[[str], Record] = import_module(f"{package}.{kind}").run
        print(run(f"python -m {package} {kind}").save(asked.records))
