"""`rlt-trainer` with the parameters sharded over CPUs: sharded.py COMMAND …, one process for each rank.

torch shards on CPUs as it does on GPUs, by gloo; accelerate 1.15 takes that way for accelerators only, and is told here
that it has some. The sharding, the collectives and the files are the real ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from rlt_trainer.__main__ import main


@contextmanager
def sharding() -> Iterator[None]:
    with (
        patch.object(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU)),
        patch.object(
            torch.cuda, "is_available", lambda: "rlt_trainer.arguments" in sys._getframe(1).f_globals["__name__"]
        ),
    ):
        yield


if __name__ == "__main__":
    with sharding():
        sys.exit(main(sys.argv[1:]))
