"""The demo from end to end: a stack on free ports, five chapters, and the stack stopped again."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.jobs import AsyncJobsClient
from rlt_local.demo import building, explaining
from rlt_local.demo.narrator import Narrator
from rlt_local.demo.problems import TracedProblem, draw
from rlt_local.demo.scene import Scene
from rlt_local.options import StackOptions
from rlt_local.state import StackRecord, StateFolder
from rlt_local.stop import is_alive, stop
from rlt_local.up import detached

__all__ = ["demo"]

PROBLEMS = 200
PAIRS = 100
SHORT = 0.5  # seconds: chapters below are not worth a word
INTRODUCTION = (
    "A teacher is shown a question and its answer, and explains how one follows from the other. "
    "It is rewarded for what a student then makes of the explanation (arXiv 2506.08388). "
    "Everything below is computed now, on this machine, by models of 148 thousand parameters."
)


def demo(state: Path, options: StackOptions, console: Console, *, keep: bool) -> bool:
    """Run the demo. Returns whether every number that it shows is as good as promised."""
    tell, begun = Narrator(console), time.monotonic()
    folder = StateFolder(state)
    tell.say(INTRODUCTION)
    try:
        record = _start(tell, folder, state, options)
        good = asyncio.run(_chapters(tell, record, folder, str(state)))
        tell.chapter("The end")
    finally:
        if not keep:
            stop(folder)
    _close(tell, state, time.monotonic() - begun, keep=keep, good=good)
    return good


def _start(tell: Narrator, folder: StateFolder, state: Path, options: StackOptions) -> StackRecord:
    tell.chapter("The whole platform, on this machine")
    tell.say(
        "Postgres, Valkey, a teacher server, a reward server and the jobs service with its relay and worker. "
        "The first time, the tiny models are trained from scratch: about a minute."
    )
    running = folder.read()
    if running is not None and is_alive(running):
        tell.result(f"already running in {state}")
        return running
    tell.command(f"rlt up --detach --ports free --state {state}")
    begun = time.monotonic()
    record = detached(options, folder, tell.console)
    tell.result(f"everything is ready after {time.monotonic() - begun:.0f} s")
    return record


async def _chapters(tell: Narrator, record: StackRecord, folder: StateFolder, state: str) -> bool:
    key = folder.key_file.read_text(encoding="utf-8").strip()
    async with AsyncExitStack() as stack:
        scene = _scene(tell, record, folder, state, key)
        for client in (scene.teacher, scene.reward, scene.jobs):
            await stack.enter_async_context(client)
        tell.chapter("A question and its answer, explained")
        response = await explaining.explain(scene)
        tell.chapter("The reward, token by token")
        agree = await explaining.score(scene, response)
        tell.chapter("Does the reward tell good from bad?")
        ranks = await explaining.judge(scene)
        tell.chapter("A data set")
        built = await building.build(scene)
        tell.chapter("What is in it")
        exported = await building.export(scene, built)
    return agree and ranks and exported


def _scene(tell: Narrator, record: StackRecord, folder: StateFolder, state: str, key: str) -> Scene:
    out = folder.root / "out"
    out.mkdir(exist_ok=True)
    problems_file = out / "problems.jsonl"
    traced = [TracedProblem(**each) for each in draw(out / "traces.jsonl", PAIRS, traces=True)]
    return Scene(
        tell=tell,
        teacher=AsyncTeacherClient(record.urls["teacher"], key=key),
        reward=AsyncRewardClient(record.urls["reward"], key=key),
        jobs=AsyncJobsClient(record.urls["jobs"], key=key),
        urls=record.urls,
        state=state,
        out=Path(state) / "out",
        problems=draw(problems_file, PROBLEMS),
        problems_file=Path(state) / "out" / "problems.jsonl",
        traced=traced,
    )


def _close(tell: Narrator, state: Path, seconds: float, *, keep: bool, good: bool) -> None:
    tell.result(f"data set and problems: {state}/out; logs: {state}/logs")
    if keep:
        tell.result(f"the stack still runs: rlt status --state {state}; rlt down --state {state}")
    else:
        tell.result("the stack is stopped, and nothing is left running")
    tell.end_chapter()
    times = ", ".join(f"{name} {took:.0f} s" for name, took in tell.took.items() if took >= SHORT)
    tell.say(f"Where the time went: {times}.")
    tell.verdict(f"done in {seconds:.0f} s" if good else "a number above is not as good as promised", good=good)
