"""`rlt-trainer`: parses its arguments first and imports torch only when a command needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rlt_trainer import provide, stages
from rlt_trainer.tiny.cli import add_commands

PROG = "rlt-trainer"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status; usage errors exit with 2 by themselves."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in stages.STAGES:
        return stages.run(words[0], words[1:], prog=f"{PROG} {words[0]}")
    if words and words[0] == "models":
        return provide.main(words[1:], prog=f"{PROG} models")
    parser = argparse.ArgumentParser(prog=PROG, description="Trains teachers and the students they teach.")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, stage in stages.STAGES.items():
        groups.add_parser(name, help=stage.help, add_help=False)
    groups.add_parser("models", help="have the models of a stack in a volume: tiny ones, or the hub's", add_help=False)
    help_ = "the tiny models that need no pre-trained weights"
    add_commands(groups.add_parser("tiny", help=help_, description=help_))
    arguments = parser.parse_args(words)
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
