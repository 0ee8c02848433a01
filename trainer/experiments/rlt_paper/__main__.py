"""`python -m rlt_paper`: parses its arguments first and imports what is heavy only to run."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Final

import rlt_paper
from rlt_paper.arms import STUDIES

ROOT: Final = Path(__file__).resolve().parents[3]
PAGE: Final = ROOT / "docs" / "paper"
COMMITTED: Final = PAGE / "records"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlt_paper", description=rlt_paper.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=["small", "full", "report"])
    parser.add_argument(
        "--records",
        type=Path,
        help="where finished pieces are kept (default: of `small` records in WORK, else docs/paper/records)",
    )
    parser.add_argument(
        "--work", type=Path, help="models, traces and logs (default: .rlt-paper, of `small` .rlt-paper/small)"
    )
    parser.add_argument("--lanes", type=int, default=2, help="arms side by side, one core each (default: 2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of `full` (default: 1 2 3)")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, help="of `full` (default: all)")
    parser.add_argument("--only", nargs="+", help="these arms alone, by name")
    asked = parser.parse_args()
    small = asked.what == "small"
    work = (asked.work or (ROOT / ".rlt-paper" / "small" if small else ROOT / ".rlt-paper")).resolve()
    records = (asked.records or (work / "records" if small else COMMITTED)).resolve()
    if asked.what == "report":
        from rlt_paper.report import write

        write(records, PAGE)
        return
    from rlt_paper.plan import run_full, run_small

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the stack is taken down all the same
    if small:
        run_small(work, records, lanes=asked.lanes, only=asked.only)
        from rlt_paper.records import Records
        from rlt_paper.report import compared

        sys.stdout.write(f"\n{compared(Records(records), Records(COMMITTED))}\n")
    else:
        run_full(work, records, lanes=asked.lanes, seeds=asked.seeds, studies=asked.studies, only=asked.only)


if __name__ == "__main__":
    main()
