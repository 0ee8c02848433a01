"""Every container replaced, one after the other, while builds run and callers call: nobody sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Self

from compose.calls import problems
from compose.faults import ended, exactly, submit
from compose.stack import Failed, Stack

from rlt_client import ExplainRequest, JobsClient, RewardClient, RewardItem, RLTError, TeacherClient

__all__ = ["rolled"]

REPLACED = (
    "jobs-worker",
    "jobs-relay",
    "jobs-api",
    "reward",
    "teacher",
    "engine",
    "redis",
    "postgres",
    "proxy",
)
PATIENCE = 900.0
"""Seconds that a caller goes on asking: a new engine imports and proves itself on processors that are all in use."""
PAUSE = 0.2


def rolled(stack: Stack) -> Iterator[str]:
    """What was seen, line by line.

    Raises:
        Failed: a caller got an error, or a sample is missing, failed or there twice.
    """
    builds: list[int] = []
    with JobsClient(stack.url, key=stack.key, deadline=PATIENCE) as jobs, Caller(stack) as caller:
        for service in REPLACED:
            if not builds or ended(jobs, builds[-1]):
                builds.append(submit(stack, jobs, f"rolled-{len(builds)}"))
            stack.replace(service)
            caller.answered()
            yield f"replaced {service}; {caller.calls} calls so far"
        for build in builds:
            yield f"build {build}: {exactly(stack, jobs, build)}"
    if caller.wrong:
        raise Failed("\n".join(caller.wrong))
    yield f"{caller.calls} calls of POST /explain and POST /reward, none failed"


class Caller:
    """Asks for an explanation and for its reward, again and again."""

    def __init__(self, stack: Stack) -> None:
        self.calls = 0
        self.wrong: list[str] = []
        self._stack = stack
        row = problems(stack)[0]
        self._problem = {"question": row["question"], "answer": row["answer"]}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def answered(self) -> None:
        """Wait for an answer to what was asked from now on."""
        calls = self.calls
        self._stack.until(lambda: self.wrong or self.calls > calls + 2, "a caller's next answer", PATIENCE)

    def _call(self) -> None:
        url, key = self._stack.url, self._stack.key
        with (
            TeacherClient(url, key=key, deadline=PATIENCE) as teacher,
            RewardClient(url, key=key, deadline=PATIENCE) as reward,
        ):
            while not self._over.wait(PAUSE):
                try:
                    [told] = teacher.explain(ExplainRequest(**self._problem, n=1)).explanations
                    reward.score(RewardItem(**self._problem, completion=told.completion))
                except RLTError as error:
                    self.wrong.append(repr(error))
                self.calls += 2
