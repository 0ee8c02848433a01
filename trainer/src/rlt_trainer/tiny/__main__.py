"""`python -m rlt_trainer.tiny`: the same commands as `rlt-trainer tiny`."""

from __future__ import annotations

import argparse
import sys

from rlt_trainer.tiny.cli import add_commands


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlt_trainer.tiny", description="The tiny models and their task.")
    add_commands(parser)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
