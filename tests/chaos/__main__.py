"""`make chaos [SEED=…] [RUNS=…]`: runs of full size, each seed printed and repeatable."""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from chaos.rolling import rolling
from chaos.run import Report, run
from chaos.schedule import FULL, SHORT, schedule

PROBLEMS = 300  # a round of a rolling restart: it lasts as long as the round does


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first run; the next have the numbers behind it")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="the run of the fast tests")
    parser.add_argument("--rolling", type=int, default=0, metavar="ROUNDS", help="replace everything so often instead")
    parser.add_argument("--plan", action="store_true", help="print the schedule and do nothing")
    parser.add_argument("--record", type=Path, help="append one JSON line a run to this file")
    args = parser.parse_args()
    if args.rolling:
        return _roll(args.rolling)
    first = secrets.randbelow(10**6) if args.seed is None else args.seed
    size = SHORT if args.short else FULL
    failed = 0
    for seed in range(first, first + args.runs):
        if args.plan:
            print(*(f"{act.at:6.2f} s  {act}" for act in schedule(seed, size)), sep="\n")
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"rlt-chaos-{seed}-"))
        print(f"seed {seed}: again with `make chaos SEED={seed}`", flush=True)
        report = run(seed, size, folder, say=lambda line: print(line, flush=True))
        failed += _tell(report, folder, args.record)
    return 1 if failed else 0


def _roll(rounds: int) -> int:
    folder = Path(tempfile.mkdtemp(prefix="rlt-rolling-"))
    say = partial(print, flush=True)
    rolled = rolling(folder / "world", problems=PROBLEMS * rounds, rounds=rounds, say=say)
    print(*rolled.lines(), *(f"wrong: {line}" for line in rolled.wrong), sep="\n", flush=True)
    if rolled.wrong:
        print(f"logs and files: {folder}")
    return 1 if rolled.wrong else 0


def _tell(report: Report, folder: Path, record: Path | None) -> bool:
    struck = ", ".join(f"{count}× {kind}" for kind, count in sorted(report.strikes.items()))
    verdict = "kept its promises" if not report.wrong else "BROKE ITS PROMISES"
    print(f"seed {report.seed} {verdict}: {report.samples} samples in {report.seconds:g} s; {struck}", flush=True)
    for line in report.wrong:
        print(f"  wrong: {line}")
    if report.wrong:
        print(f"  logs and files: {folder}", flush=True)
    if record is not None:
        with record.open("a") as file:
            file.write(json.dumps({**report.row(), "code": _commit()}) + "\n")
    return bool(report.wrong)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
