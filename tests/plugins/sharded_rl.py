"""`rlt-trainer rl` without servers: -m plugins.sharded_rl rl …; each of several processes has a share of the weights.

What is sampled follows from the seed that a completion is asked for with, and its reward from what was sampled, so that
both are the same in whichever process they are made.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from plugins.scripted_rl import ScriptedEngine, ScriptedRewards
from plugins.sharded import sharding

from rlt_trainer.__main__ import main
from rlt_trainer.rl import session
from rlt_trainer.rl.engines import Ask, Completion
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards import Rewarded

WORDS = 80  # of the tiny model's 87
LENGTHS = 5


def completed(ask: Ask, _place: int) -> Completion:
    ids = [1 + (ask.seed >> 5 * place) % WORDS for place in range(2 + ask.seed % LENGTHS)]
    return Completion(ids, [-4.0] * len(ids), "stop", "")


def rewarded(_: Problem, completion: Completion) -> Rewarded:
    return Rewarded(float(completion.token_ids[0] % 7))


async def engine(*_: Any) -> ScriptedEngine:
    return ScriptedEngine(completed)


async def rewards(*_: Any) -> ScriptedRewards:
    return ScriptedRewards(rewarded)


if __name__ == "__main__":
    with (
        patch.object(session, "make_engine", engine),
        patch.object(session, "make_rewards", rewards),
        sharding() if "WORLD_SIZE" in os.environ else nullcontext(),
    ):
        sys.exit(main(sys.argv[1:]))
