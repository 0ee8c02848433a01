"""What starts from a finished arm: RL of its student, and its teacher before questions of another length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from rlt_paper import curves
from rlt_paper.arms import ARMS, SOLVER
from rlt_paper.grading import averages
from rlt_paper.servers import Stack
from rlt_paper.study import Study, write_rows

__all__ = ["cold_start", "transfer"]

_COLD_STEPS: Final = 40  # the trial's: a student that has no success by then has none in twice as many


def cold_start(study: Study, name: str, stack: Stack) -> dict[str, Any]:
    """GRPO for right answers on the student that an arm's traces made."""

    def make() -> dict[str, Any]:
        study.run_arm(ARMS[name], stack)
        log, test = study.log(stack), study.folder / "test.jsonl"
        study.lessons(ARMS[name], stack, log)  # a record may be another machine's
        student = study.student(name, study.folder / name / "traces.jsonl", log)
        before = study.examined(f"{name}/test", student, test, log)
        arm = replace(SOLVER, name=f"cold-{name}", steps=_COLD_STEPS)
        trained = study.policy(arm, stack, log, student)
        figures = study.examined(f"{arm.name}/test", trained, test, log)
        earlier = {f"{key} before": value for key, value in before.items()}
        return {
            "title": f"RL with 0/1 after {ARMS[name].title}",
            "steps": study.steps(arm),
            "figures": figures | earlier,
            "curve": curves.read(study.folder / arm.name / "rl"),
            "commands": log.commands,
            "seconds": log.seconds,
        }

    return study.records.made_once(f"{study.name}/cold-{name}", make)


def transfer(study: Study, name: str, stack: Stack) -> dict[str, Any]:
    """Students of questions that an arm's teacher was never trained on, taught by its traces of them."""

    def make() -> dict[str, Any]:
        study.run_arm(ARMS[name], stack)
        log = study.log(stack)
        figures: dict[str, float] = {}
        policy = study.policy(ARMS[name], stack, log)
        tests = study.task.transfer(study.sizes.test, study.seed, test=True)
        lessons = study.task.transfer(study.sizes.traces, study.seed, test=False)
        for kind, examples in lessons.items():
            piece = f"transfer-{name}/{kind.replace(' ', '-')}"
            folder = study.folder / piece
            traces = study.traces(ARMS[name], policy, stack, log, examples, folder / "traces.jsonl")
            write_rows(folder / "test.jsonl", [{"question": e.question, "answer": e.answer} for e in tests[kind]])
            student = study.student(piece, folder / "traces.jsonl", log)
            right = study.examined(f"{piece}/test", student, folder / "test.jsonl", log)
            figures |= {f"{kind}: {key}": value for key, value in {**right, **averages(study.task, traces)}.items()}
        title = f"zero-shot: {ARMS[name].title}"
        return {"title": title, "figures": figures, "commands": log.commands, "seconds": log.seconds}

    return study.records.made_once(f"{study.name}/transfer-{name}", make)
