"""`rlt-trainer rl` that says at its end what its steps took."""

from __future__ import annotations

import sys

from rlt_trainer import checkpoints
from rlt_trainer.config import RLConfig, load
from trainer_bench.runs import Ran, tell


def main() -> None:
    config, _ = load(RLConfig, sys.argv[1:], prog="trainer_bench.ours")
    from rlt_trainer.rl.run import run

    run(config)
    last = checkpoints.newest(config.output)
    assert last is not None, "a run of the benchmark ends with a checkpoint"
    tell(Ran.read(last))


if __name__ == "__main__":
    main()
