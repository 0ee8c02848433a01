"""One task, one corpus, one seed: a warm-up, and what each arm makes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rlt_client.schemas.builds import BuildProblem
from rlt_paper import curves, servers
from rlt_paper.arms import Arm, Source
from rlt_paper.commands import Log
from rlt_paper.grading import Traces, averages, graded, scored
from rlt_paper.records import Records
from rlt_paper.servers import Stack
from rlt_paper.solving import solved
from rlt_paper.tasks import TASKS, Example, Task
from rlt_trainer.tiny.folders import locked

__all__ = ["Sizes", "Study", "write_rows"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each is made."""

    questions: int = 4_000
    """Of RL; the traces are of the first ones."""
    traces: int = 1_000
    test: int = 1_000
    steps: int | None = None
    """Updates of every arm, in place of its own."""


@dataclass(frozen=True, slots=True)
class Study:
    """Everything below `work/<task>-<corpus>/seed-<seed>`; records go by the same names."""

    task_name: str
    corpus: str
    seed: int
    work: Path
    records: Records
    sizes: Sizes = Sizes()

    @property
    def name(self) -> str:
        return f"{self.task_name}-{self.corpus}/seed-{self.seed}"

    @property
    def task(self) -> Task:
        return TASKS[self.task_name]

    @property
    def folder(self) -> Path:
        return self.work / self.name

    @property
    def warmup(self) -> Path:
        return self.folder / "warmup" / "model"

    def prepare(self) -> None:
        """The rows of every use, and the warm-up: one model in the role of teacher and of solver."""
        for use, rows in self._rows().items():
            write_rows(self.folder / f"{use}.jsonl", rows)

        def make() -> dict[str, Any]:
            log = self.log()
            self._warm_up(log)
            return {"commands": log.commands, "seconds": log.seconds}

        self.records.made_once(f"{self.name}/warmup", make)
        self._warm_up(self.log())  # a record without the model: another machine's

    def _warm_up(self, log: Log) -> None:
        table = {
            "seed": self.seed,
            "model": {"name": str(self.task.base())},
            "data": {"path": str(self.folder / "corpus.jsonl")},
            "training": {"steps": self.task.warmup_steps},
        }
        log.train("sft", "warmup", self.folder / "warmup", table)

    def run_arm(self, arm: Arm, stack: Stack) -> dict[str, Any]:
        """The record of one arm: its training, its traces and the student that they made."""

        def make() -> dict[str, Any]:
            log = self.log(stack)
            traces = self.lessons(arm, stack, log)
            return {
                "title": arm.title,
                "steps": self.steps(arm) if arm.trained else 0,
                "reward": arm.reward,
                **self._taught(f"{arm.name}", traces, stack, log),
                "curve": curves.read(self.folder / arm.name / "rl") if arm.trained else [],
                "commands": log.commands,
                "seconds": log.seconds,
            }

        return self.records.made_once(f"{self.name}/{arm.name}", make)

    def lessons(self, arm: Arm, stack: Stack, log: Log) -> Traces:
        """What the arm's model writes for its student; made where it is not there yet."""
        policy, to = self.policy(arm, stack, log), self.folder / arm.name / "traces.jsonl"
        return self.traces(arm, policy, stack, log, self.examples(), to)

    def run_source(self, source: Source, stack: Stack) -> dict[str, Any]:
        """The record of traces that a program wrote."""

        def make() -> dict[str, Any]:
            log, examples = self.log(stack), self.examples()
            texts = [FILLER] * len(examples)
            if source.shares is not None:
                texts = self.task.mixed(examples, source.shares, self.seed)
            traces = Traces(examples, texts, [each.answer for each in examples])
            write_rows(self.folder / source.name / "traces.jsonl", traces.rows)
            taught = self._taught(source.name, traces, stack, log)
            found = {"title": source.title, "shares": source.shares, **taught}
            return found | {"commands": log.commands, "seconds": log.seconds}

        return self.records.made_once(f"{self.name}/{source.name}", make)

    def examples(self) -> Sequence[Example]:
        """The questions that traces are made for."""
        return self.task.questions(self.sizes.questions, self.seed, test=False)[: self.sizes.traces]

    def steps(self, arm: Arm) -> int:
        return self.sizes.steps or arm.steps

    def policy(self, arm: Arm, stack: Stack, log: Log, start: Path | None = None) -> Path:
        """The folder of the arm's trained model, which begins as `start` or the warm-up."""
        begin = start or self.warmup
        if not arm.trained:
            return begin
        folder = self.folder / arm.name / "rl"
        with locked(folder.with_suffix(".lock")):  # two pieces of what follows an arm may want its model at once
            done = (folder / "done").exists()
            with nullcontext("http://its-own") if done else servers.teacher(begin, folder / "weights") as url:
                log.train("rl", "rl", folder, self._training(arm, begin, url, stack))
        return folder / "model"

    def _training(self, arm: Arm, begin: Path, url: str, stack: Stack) -> dict[str, Any]:
        task, solves = self.task, arm.role == "student"
        longest = task.thoughts + 1 + (task.answer_words + 1 if solves else 0)  # with closing tag, answer and end
        scorer = {} if solves else {"url": stack.urls["reward"], "key_env": servers.KEY}
        return {
            "seed": self.seed,
            "role": arm.role,
            "model": {"name": str(begin)},
            "data": {"path": str(self.folder / "questions.jsonl")},
            "rollout": {
                "url": url,
                "weights": str(self.folder / arm.name / "rl" / "weights"),
                "max_tokens": longest,
            },
            "reward": {**arm.reward, **scorer},
            "training": {"steps": self.steps(arm)},
        }

    def traces(self, arm: Arm, policy: Path, stack: Stack, log: Log, examples: Sequence[Example], to: Path) -> Traces:
        """One raw trace of each example: a teacher's by a build, a solver's with its own answer."""
        if arm.role == "student":
            return solved(self.task, policy, examples, to, log, self.seed)
        if not to.exists():
            problems = [BuildProblem(question=each.question, answer=each.answer) for each in examples]
            to.parent.mkdir(parents=True, exist_ok=True)
            build = stack.explain(policy, problems, self.seed, self.task.thoughts + 1, to)
            log.add(f"POST /policies {policy}, then POST /builds {json.dumps(build.request)}")
        return Traces.of_rows(examples, to)

    def _taught(self, name: str, traces: Traces, stack: Stack, log: Log) -> dict[str, Any]:
        """A fresh student, its answers to the test, and what its lessons were like."""
        student = self.student(name, self.folder / name / "traces.jsonl", log)
        figures = self.examined(f"{name}/test", student, self.folder / "test.jsonl", log)
        figures |= averages(self.task, traces) | scored(traces, stack)
        example = {"question": traces.examples[0].question, "trace": traces.texts[0].strip()}
        return {"sizes": asdict(self.sizes), "figures": figures, "example": example}

    def student(self, name: str, traces: Path, log: Log) -> Path:
        """The folder of a fresh student, distilled on a file of traces."""
        folder = self.folder / name / "student"
        table = {"seed": self.seed, "model": {"name": str(self.task.base())}, "data": {"path": str(traces)}}
        log.train("distill", "distill", folder, table)
        return folder / "model"

    def examined(self, name: str, student: Path, test: Path, log: Log) -> dict[str, float]:
        """Shares of right answers and of right parts, greedy and at the temperature of the traces."""
        figures: dict[str, float] = {}
        for label, temperature in _TEMPERATURES.items():
            folder = self.folder / f"{name}-{label}"
            table = {
                "seed": self.seed,
                "temperature": temperature,
                "model": {"name": str(student)},
                "data": {"path": str(test)},
            }
            log.train("evaluate", "evaluate", folder, table)
            figures |= {f"{key} {label}": value for key, value in graded(folder, self.task.answer_words).items()}
        return figures

    def _rows(self) -> dict[str, list[dict[str, str]]]:
        def plain(examples: Sequence[Example]) -> list[dict[str, str]]:
            return [{"question": each.question, "answer": each.answer} for each in examples]

        return {
            "corpus": self.task.corpus(self.corpus, self.seed),
            "questions": plain(self.task.questions(self.sizes.questions, self.seed, test=False)),
            "test": plain(self.task.questions(self.sizes.test, self.seed, test=True)),
        }

    def log(self, stack: Stack | None = None) -> Log:
        """Of one piece, whose commands are let into `stack`."""
        return Log(self.work, {servers.KEY: stack.key} if stack else {})


FILLER: Final = "~"  # a trace without any thought is refused as one that was lost
_TEMPERATURES: Final = {"greedy": 0.0, "T=.7": 0.7}


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    fresh.rename(path)
