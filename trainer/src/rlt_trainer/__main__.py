"""`rlt-trainer`: parses its arguments first and imports torch only when a command needs it."""

from __future__ import annotations

import argparse
import sys

from rlt_trainer.tiny.cli import add_commands


def main(argv: list[str] | None = None) -> int:
    """The exit status; usage errors exit with 2 by themselves."""
    parser = argparse.ArgumentParser(prog="rlt-trainer", description="Trains teachers and the students they teach.")
    groups = parser.add_subparsers(required=True, metavar="GROUP")
    help_ = "the tiny models that need no pre-trained weights"
    add_commands(groups.add_parser("tiny", help=help_, description=help_))
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
