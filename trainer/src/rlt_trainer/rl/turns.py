"""Co-training in turns: the newest teacher explains, a fresh student learns from that and rewards the teacher from then
on.

    <output>/turns/turn-000001/
        traces.jsonl   what the newest teacher explained; explained.json: how many, once it is whole
        student/       the run of `rlt-trainer distill`
        turn.json      who rewards in this turn, and how it came about: written last

Turn 0 is rewarded by the student that the server began with. Everything here may be cut off at any place: what is
there is not made again.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from pydantic import ValidationError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlt_client.aio import AsyncRewardClient
from rlt_trainer.config import DistillConfig, RLConfig
from rlt_trainer.config.base import read
from rlt_trainer.config.distill import TraceShape
from rlt_trainer.disk import write_whole
from rlt_trainer.errors import BadConfig
from rlt_trainer.keys import key_of
from rlt_trainer.rl.engines.base import Published
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.students import Student, publish
from rlt_trainer.rl.traces import Explainer, Outcome
from rlt_trainer.stopping import Stop

__all__ = ["Turn", "TurnEnds", "TurnOver", "Turns"]

log = logging.getLogger(__name__)

TRACES: Final = "traces.jsonl"
EXPLAINED: Final = "explained.json"
_LOOK_S: Final = 0.5  # between looks for a file of the first process


class TurnEnds(TrainerCallback):
    """A checkpoint at the end of each turn: the next one goes on from there."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        if state.global_step % self._steps == 0 and state.global_step < state.max_steps:
            control.should_save = True


class TurnOver(Exception):  # no error: how a training loop is left at the end of a turn
    """The weights of `step` are published, and the student of the next turn has to be made before it goes on."""

    def __init__(self, step: int, weights: Published) -> None:
        super().__init__(f"the turn that ends at step {step}")
        self.step = step
        self.weights = weights


@dataclass(frozen=True, slots=True)
class Turn:
    """`turn.json`."""

    turn: int
    step: int
    """Updates that the teacher had had when it explained."""
    teacher: str
    """Revision of the policy that explained."""
    traces: int
    left_out: dict[str, int]
    student: str
    """Revision of the student that rewards in this turn."""
    folder: str

    @property
    def rewarding(self) -> Student:
        return Student(self.student, Path(self.folder))


class Turns:
    """Raises `BadConfig` for a configuration of `distill` that cannot be read or does not fit."""

    def __init__(self, config: RLConfig) -> None:
        assert config.turns is not None
        self._turns = config.turns
        self._reward = config.reward
        self._folder = config.output.resolve() / "turns"
        self._given = _read(config)
        self._distil_config(0)

    def student(self, step: int) -> Student | None:
        """Who rewards after `step` updates; None in turn 0, which the server's own student rewards."""
        turn = step // self._turns.steps
        if turn == 0:
            return None
        if (made := self._made(turn)) is None:
            raise BadConfig(f"{self._file(turn)} is missing: its checkpoints were trained with that student")
        return made.rewarding

    def check(self, step: int, weights: Published) -> None:
        """Raises `TurnOver` where a turn begins whose student has not been made."""
        turn = step // self._turns.steps
        if turn and step % self._turns.steps == 0 and self._made(turn) is None:
            raise TurnOver(step, weights)

    async def explain(self, over: TurnOver, problems: Sequence[Problem], explainer: Explainer, stop: Stop) -> None:
        """In every process; the first one writes traces of the first problems, unless they are there.

        Raises what `Explainer.write` raises.
        """
        folder = self._file(self._turn(over)).parent
        told = folder / EXPLAINED
        if not PartialState().is_main_process:
            await _appears(told, stop)
        elif not told.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            outcome = await explainer.write(problems[: self._turns.traces], folder / TRACES, stop)
            write_whole(told, json.dumps(asdict(outcome)))
            log.info("turn %d: %d traces; left out: %s", self._turn(over), outcome.written, outcome.left_out)

    def distil(self, over: TurnOver) -> Path:
        """In every process: the student of the next turn, from its own base. Returns its folder."""
        from rlt_trainer import distill

        config = self._distil_config(self._turn(over))
        made = config.output / "model"  # there whole or not at all
        gc.collect()  # the teacher's trainer refers to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return made if made.is_dir() else distill.run(config)

    async def exchange(self, over: TurnOver, folder: Path, stop: Stop) -> None:
        """In every process; the first one gives the student to the reward server, and records the turn."""
        file = self._file(self._turn(over))
        if not PartialState().is_main_process:
            await _appears(file, stop)
            return
        reward = self._reward
        assert reward.student is not None
        async with AsyncRewardClient(
            reward.url, key=key_of(reward.key_env), deadline=reward.deadline_s, patience=reward.patience_s
        ) as client:
            student = await publish(client, reward.student, folder)
        self._record(over, Outcome(**json.loads((file.parent / EXPLAINED).read_text(encoding="utf-8"))), student)

    def _record(self, over: TurnOver, outcome: Outcome, student: Student) -> None:
        made = Turn(
            turn=self._turn(over),
            step=over.step,
            teacher=over.weights.revision,
            traces=outcome.written,
            left_out=outcome.left_out,
            student=student.revision,
            folder=str(student.folder),
        )
        write_whole(self._file(made.turn), f"{json.dumps(asdict(made), indent=2)}\n")
        log.info("turn %d: student %s rewards", made.turn, made.student)

    def _turn(self, over: TurnOver) -> int:
        return over.step // self._turns.steps

    def _file(self, turn: int) -> Path:
        return self._folder / f"turn-{turn:06d}" / "turn.json"

    def _made(self, turn: int) -> Turn | None:
        file = self._file(turn)
        return Turn(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def _distil_config(self, turn: int) -> DistillConfig:
        folder = self._file(turn).parent
        own = {
            "output": folder / "student",
            "data": {"path": str(folder / TRACES)},
            "shape": TraceShape.raw,
            "checkpoints": self._given.get("checkpoints", {}) | {"resume": True},
        }
        try:
            return DistillConfig(**self._given | own)
        except ValidationError as error:
            raise BadConfig(f"{self._turns.distill}: {error}") from error


def _read(config: RLConfig) -> dict[str, Any]:
    """The configuration of `distill`, which must write texts as the reward server's student reads them."""
    assert config.turns is not None
    path = config.turns.distill
    try:
        given = read(path)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"turns.distill: {error}") from error
    texts = given.setdefault("texts", {})
    told = texts.setdefault("format", config.texts.format)
    if told != config.texts.format:
        raise BadConfig(f"{path}: texts.format {told} is not {config.texts.format}, in which the student is asked")
    if config.texts.formats is not None:
        texts.setdefault("formats", config.texts.formats)
    return given


async def _appears(file: Path, stop: Stop) -> None:
    """No barrier: those give up after half an hour, and a teacher may explain for longer."""
    while not await asyncio.to_thread(file.is_file):
        stop.check()
        await asyncio.sleep(_LOOK_S)
