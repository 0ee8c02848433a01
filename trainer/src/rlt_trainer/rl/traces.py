"""What the newest teacher explains between turns, as rows that a student is distilled on.

Explanations are kept as they come, so that a killed run goes on where it was; the finished file is written whole.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from rlt_client.errors import RLTError
from rlt_client.prompts import read_completion
from rlt_client.tags import breaking_tags, spells_any
from rlt_trainer.disk import write_whole
from rlt_trainer.errors import StalePolicy, TrainingError
from rlt_trainer.rl.engines.base import Ask, Completion, Engine, Failed, Published
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rollout import sample_seed
from rlt_trainer.stopping import Stop
from rlt_trainer.texts import Writer

__all__ = ["Explainer", "Outcome"]

_LOOK_S: Final = 0.5  # between looks for a signal: nobody waits longer, and it costs nothing


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many explanations were written, and why the others were not."""

    written: int
    left_out: dict[str, int]


class Explainer:
    """One explanation of each problem.

    Args:
        weights: published; they must write.
        seed, step: with the problem's place they make the seed of each explanation.
    """

    def __init__(self, engine: Engine, writer: Writer, *, weights: Published, seed: int, step: int) -> None:
        self._engine = engine
        self._writer = writer
        self._breaking = breaking_tags(writer.codec, writer.format)
        self._weights = weights
        self._seed = seed
        self._step = step

    async def write(self, problems: Sequence[Problem], file: Path, stop: Stop) -> Outcome:
        """Write the explanations that a student can be distilled on to a JSONL file, in the problems' order.

        Raises:
            Interrupted: `stop` was asked for; what was explained is kept beside the file.
            StalePolicy: other weights wrote.
            TrainingError: there is none.
            RLTError: the engine refuses such requests, or its patience is over.
        """
        kept = file.with_suffix(".part.jsonl")
        found = _found(kept, self._weights.revision)
        with kept.open("w", encoding="utf-8") as part:
            for entry in found.values():
                _append(part, entry)
            try:
                await self._explain_rest(problems, found, part, stop)
            except ExceptionGroup as failures:
                raise next((each for each in failures.exceptions if isinstance(each, RLTError)), failures) from None
        outcome = _finish([found[place] for place in range(len(problems))], file)
        kept.unlink()
        return outcome

    async def _explain_rest(
        self, problems: Sequence[Problem], found: dict[int, dict[str, Any]], part: IO[str], stop: Stop
    ) -> None:
        async def explain(place: int, problem: Problem) -> None:
            found[place] = await self._explain(place, problem)
            _append(part, found[place])

        rest = [(place, each) for place, each in enumerate(problems) if place not in found]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(explain(*each)) for each in rest]
            group.create_task(_watch(stop, tasks))

    async def _explain(self, place: int, problem: Problem) -> dict[str, Any]:
        ask = Ask(problem.prompt_ids, sample_seed(self._seed, self._step, place))
        [made] = await self._engine.generate([ask], self._weights)
        wanted = self._weights.revision
        entry: dict[str, Any] = {"place": place, "revision": wanted}
        if isinstance(made, Failed):
            return entry | {"left_out": made.type}
        if made.revision != wanted:
            raise StalePolicy(f"the engine explained with weights {made.revision}, not with {wanted} of this turn")
        return entry | self._row(problem, made)

    def _row(self, problem: Problem, made: Completion) -> dict[str, Any]:
        read = read_completion(self._writer.codec, self._writer.format, made.token_ids)
        if not read.closed:
            return {"left_out": "incomplete"}
        if spells_any(read.text, self._breaking):
            return {"left_out": "malformed"}
        if not read.text.strip():
            return {"left_out": "empty"}
        row = {"question": problem.question, "answer": problem.answer, "explanation": read.text}
        return {"row": row if problem.system is None else row | {"system": problem.system}}


async def _watch(stop: Stop, tasks: Sequence[asyncio.Task[None]]) -> None:
    while not all(task.done() for task in tasks):
        stop.check()
        await asyncio.wait(tasks, timeout=_LOOK_S)


def _found(kept: Path, revision: str) -> dict[int, dict[str, Any]]:
    """By place, what these weights wrote before; a line that was cut off is not counted."""
    entries = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else ():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if entry["revision"] == revision:
            entries[int(entry["place"])] = entry
    return entries


def _append(part: IO[str], entry: dict[str, Any]) -> None:
    part.write(f"{json.dumps(entry)}\n")
    part.flush()


def _finish(entries: Iterable[dict[str, Any]], file: Path) -> Outcome:
    rows, left_out = [], Counter[str]()
    for entry in entries:
        if "row" in entry:
            rows.append(entry["row"])
        else:
            left_out[entry["left_out"]] += 1
    if not rows:
        raise TrainingError(f"a student can be distilled on none of {left_out.total()} explanations: {dict(left_out)}")
    write_whole(file, "".join(f"{json.dumps(row)}\n" for row in rows))
    return Outcome(len(rows), dict(left_out))
