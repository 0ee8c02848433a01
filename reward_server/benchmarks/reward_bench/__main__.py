"""`python -m reward_bench …`"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final

from rlt_bench.measure import Record

ROOT: Final = Path(__file__).resolve().parents[3]
RECORDS: Final = ROOT / "docs" / "benchmarks"
KINDS: Final = ("cpu", "http", "memory", "vllm", "gpu")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reward_bench", description=import_module("reward_bench").__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kinds", nargs="+", choices=[*KINDS, "report"])
    parser.add_argument("--records", type=Path, default=RECORDS, help="where the measured figures are kept, as JSON")
    asked = parser.parse_args()
    for kind in asked.kinds:
        if kind == "report":
            _report(asked.records)
            continue
        run: Callable[[str], Record] = import_module(f"reward_bench.{kind}").run
        print(run(f"python -m reward_bench {kind}").save(asked.records))


def _report(records: Path) -> None:
    from reward_bench import plot
    from rlt_bench import report

    report.update(ROOT / "docs" / "benchmarks.md", records)
    plot.draw(records, ROOT / "docs" / "images" / "bench-reward.png")


if __name__ == "__main__":
    main()
