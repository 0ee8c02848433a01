"""Some steps of reinforcement learning inside the stack: policies go to the engine by the volume that both have."""

from __future__ import annotations

import re
from collections.abc import Iterator

from compose.stack import Failed, Stack

from rlt_client import ExplainRequest, TeacherClient

__all__ = ["trained"]

STEPS = 3
SMALL = {"training.steps": STEPS, "training.batch-size": 32, "training.micro-batch-size": 32, "checkpoints.every": 0}
CONFIGS = ("teacher_rl", "compose")


def trained(stack: Stack) -> Iterator[str]:
    """What was seen, line by line.

    Raises:
        Failed: the run failed, or the teacher does not explain with what it published last.
    """
    stack.tool("trainer", "tiny", "problems", "--count", "200", "--seed", "9", "--out", "runs/problems.jsonl")
    configs = [word for name in CONFIGS for word in ("--config", f"trainer/configs/mini/{name}.toml")]
    said = stack.tool(
        "trainer", "rl", *configs, *(word for name, value in SMALL.items() for word in (f"--{name}", str(value)))
    )
    steps = re.findall(rf"^step (\d+)/{STEPS} .*rewards/reward/mean", said, re.MULTILINE)
    if steps != [str(step + 1) for step in range(STEPS)]:
        raise Failed(f"{STEPS} steps were asked for:\n{said[-4000:]}")
    with TeacherClient(stack.url, key=stack.key) as teacher:
        [active] = [policy for policy in teacher.policies().policies if policy.active]
        told = teacher.explain(ExplainRequest(question="Q 36 A +5 B *3 C +11 D +5", answer="17"))
    if active.name == "base" or told.policy.revision != active.revision:
        raise Failed(f"{active} is active, and {told.policy} explains")
    yield f"rlt-trainer rl: {STEPS} steps in a container of its own; {active.name} {active.revision[:12]} explains now"
