"""`rlt-trainer tiny …`: the arguments are parsed before torch is imported."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlt_trainer.tiny.parts import PartsProblem
    from rlt_trainer.tiny.task import Problem

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the sub-commands; each sets `run`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    base = _command(commands, "base", "pre-train a base from scratch (about a minute on one core)")
    base.add_argument("--out", type=Path, required=True, help="folder to make; absent or empty, or see --replace")
    base.add_argument(
        "--replace", action="store_true", help="replace the model that is there, once the new one is whole"
    )
    base.set_defaults(run=run_base)

    parts = _command(commands, "parts-base", "pre-train the base of the parts task (about three minutes on one core)")
    parts.add_argument("--out", type=Path, required=True, help="folder to make; absent or empty, or see --replace")
    parts.add_argument(
        "--replace", action="store_true", help="replace the model that is there, once the new one is whole"
    )
    parts.set_defaults(run=run_parts_base)

    warmup = _command(commands, "warmup", "fine-tune a base on both formats of the mixed corpus (about a minute)")
    warmup.add_argument("--base", type=Path, help="the base's folder (default: the one in this package)")
    warmup.add_argument("--out", type=Path, help="folder to make (default: the cache, made once)")
    warmup.set_defaults(run=run_warmup)

    problems = _command(commands, "problems", "write different problems as JSON lines with question and answer")
    problems.add_argument("--out", type=Path, help="file to write (default: standard output)")
    problems.add_argument("--count", type=int, default=200, help="how many (default: 200, the demo's build)")
    problems.add_argument("--training", action="store_true", help="draw from the training part, not the held-out one")
    traces = "add to each a hand-written good trace (`good`) and one that leaks the answer (`leak`)"
    problems.add_argument("--traces", action="store_true", help=traces)
    problems.set_defaults(run=run_problems)

    parts_problems = _command(commands, "parts-problems", "write different problems of the parts task as JSON lines")
    parts_problems.add_argument("--out", type=Path, help="file to write (default: standard output)")
    parts_problems.add_argument("--count", type=int, default=200, help="how many (default: 200)")
    use = "which of three parts that share no question; those of the corpus have an explanation each (default: test)"
    parts_problems.add_argument("--use", choices=("test", "training", "corpus"), default="test", help=use)
    parts_problems.set_defaults(run=run_parts_problems)


def run_base(arguments: argparse.Namespace) -> int:
    from rlt_trainer.tiny.make import GateFailed, make_base

    try:
        made = make_base(arguments.out, arguments.seed, replace=arguments.replace)
    except (FileExistsError, GateFailed) as error:
        return _refuse(error)
    _say(f"seed {made.seed}  steps {made.steps}  loss {made.loss:.4f}  {made.seconds:.0f} s")
    _say(f"gate passed: {made.gate}")
    _say(str(made.folder))
    return 0


def run_parts_base(arguments: argparse.Namespace) -> int:
    from rlt_trainer.tiny.make import GateFailed
    from rlt_trainer.tiny.parts.make import make_parts_base

    try:
        _say(str(make_parts_base(arguments.out, arguments.seed, replace=arguments.replace)))
    except (FileExistsError, GateFailed) as error:
        return _refuse(error)
    return 0


def run_warmup(arguments: argparse.Namespace) -> int:
    from rlt_trainer.tiny.cache import ensure_base, ensure_warmup

    if arguments.out is None and arguments.base is None:
        _say(str(ensure_warmup(seed=arguments.seed)))
        return 0
    if arguments.out is None:
        return _refuse(ValueError("--base needs --out: only the warm-up of the package's own base is cached"))

    from rlt_trainer.tiny.make import make_warmup

    try:
        made = make_warmup(arguments.base or ensure_base(), arguments.out, arguments.seed)
    except OSError as error:
        return _refuse(error)
    _say(f"seed {made.seed}  steps {made.steps}  loss {made.loss:.4f}  {made.seconds:.0f} s")
    _say(str(made.folder))
    return 0


def run_problems(arguments: argparse.Namespace) -> int:
    from rlt_trainer.tiny.task import problems

    try:
        drawn = problems(arguments.count, arguments.seed, held_out=not arguments.training)
        _write([_row(problem, traces=arguments.traces) for problem in drawn], arguments.out)
    except (OSError, ValueError) as error:
        return _refuse(error)
    return 0


def run_parts_problems(arguments: argparse.Namespace) -> int:
    from rlt_trainer.tiny.parts import PartsMixture, Use, parts_corpus, parts_problems

    count, use, seed = arguments.count, Use[arguments.use], arguments.seed
    if count < 1:
        return _refuse(ValueError(f"count must be 1 or more, not {count}"))
    try:
        if use is Use.corpus:
            drawn = parts_corpus(count, PartsMixture(), seed)
            rows = [{**_parts_row(problem), "explanation": trace} for problem, trace in drawn]
        else:
            rows = [_parts_row(problem) for problem in parts_problems(count, use, seed)]
        _write(rows, arguments.out)
    except OSError as error:
        return _refuse(error)
    return 0


def _write(rows: Sequence[dict[str, str]], out: Path | None) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    if out is None:
        sys.stdout.write(lines)
    else:
        out.write_text(lines, encoding="utf-8")


def _parts_row(problem: PartsProblem) -> dict[str, str]:
    return {"question": problem.question, "answer": problem.answer}


def _row(problem: Problem, *, traces: bool) -> dict[str, str]:
    from rlt_trainer.tiny.traces import good_trace, leaking_trace

    row = {"question": problem.question, "answer": problem.answer}
    return row | {"good": good_trace(problem), "leak": leaking_trace(problem)} if traces else row


def _command(commands: _Commands, name: str, help_: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_, description=help_)
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    return command


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"{error}\n")
    return 1
