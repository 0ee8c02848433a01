"""Co-training in turns on tiny models: teacher, traces, a fresh student, and the student rewards the teacher."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from plugins.training import TRACES, TURNED_STEPS, Servers, Training, TurnsOf, turn, turned
from safetensors.torch import load_file

from rlt_local.ports import free

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a run of 5 steps with two distillations, several times

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(co_training: TurnsOf, begin: Callable[[], str]) -> Training:
    begin()
    run = co_training("whole-turns")
    run.run()
    return run


@pytest.fixture(scope="module")
def begin(servers: Servers) -> Callable[[], str]:
    """A reward server with its first student again; that student's revision."""

    def again() -> str:
        servers.reward.kill()
        servers.reward.start()
        servers.reward.wait_ready()
        return servers.rewarding()

    return again


def test_two_turns_train_teacher_and_students(whole: Training, servers: Servers, begin: Callable[[], str]) -> None:
    first, second = turned(whole, 1), turned(whole, 2)
    assert [each["step"] for each in (first, second)] == [2, 4]
    assert servers.rewarding() == second["student"] != first["student"]

    table = whole.completions()
    students = table.groupby("step")["student"].unique().map(list).to_dict()
    assert students == {
        0: [begin()],
        1: students[0],
        2: [first["student"]],
        3: [first["student"]],
        4: [second["student"]],
    }
    assert table[table["step"] == 2]["revision"].unique().tolist() == [first["teacher"]]


def test_traces_are_complete_explanations_of_the_first_problems(whole: Training, rl_problems: Path) -> None:
    rows = [json.loads(line) for line in (turn(whole, 1) / "traces.jsonl").read_text().splitlines()]
    told = turned(whole, 1)
    assert told["traces"] == len(rows)
    assert told["traces"] + sum(told["left_out"].values()) == TRACES
    problems = [json.loads(line)["question"] for line in rl_problems.read_text().splitlines()]
    asked = [row["question"] for row in rows]
    assert asked == [question for question in problems if question in asked]
    assert not any("#" in row["explanation"] for row in rows)


@pytest.mark.parametrize(
    ("point", "step"),
    [("explaining", 2), ("distilling", 1), ("exchanging", 3), ("roll-out", 3)],
)
def test_a_killed_run_goes_on_in_every_phase(
    whole: Training, co_training: TurnsOf, begin: Callable[[], str], point: str, step: int
) -> None:
    begin()
    run = co_training(f"turns-{point}")
    run.run((point, step), status=KILLED)
    if point != "exchanging":
        begin()  # who has lost the student, if it was there yet
    run.run()
    for number in (1, 2):
        told, expected = turned(run, number), turned(whole, number)
        assert told | {"folder": ""} == expected | {"folder": ""}
    pd.testing.assert_frame_equal(run.completions(), whole.completions())
    assert same(finished(run), finished(whole))


def test_a_restarted_reward_server_is_given_the_student_again(
    whole: Training, co_training: TurnsOf, servers: Servers, begin: Callable[[], str]
) -> None:
    begin()
    run = co_training("turns-restart")
    process = run.start(("scoring", 3), kill=servers.reward.pid)
    servers.reward.wait_killed()
    servers.reward.start()
    run.ended(process)
    assert same(finished(run), finished(whole))


def test_an_adapter_goes_on_after_its_turn(co_training: TurnsOf, servers: Servers, begin: Callable[[], str]) -> None:
    """Its base stays the reference and the teacher's weights, through two students."""
    first = begin()
    servers.teacher.kill()
    servers.teacher.start()
    servers.teacher.wait_ready()
    run = co_training("turns-lora", model={"lora": {"rank": 4, "alpha": 8}}, grpo={"reference": {"sync_every": 0}})
    run.run()
    assert [turned(run, number)["step"] for number in (1, 2)] == [2, 4]
    table = run.completions()
    assert table.groupby("step")["student"].nunique().tolist() == [1] * TURNED_STEPS
    assert table["student"].unique().tolist() == [first, turned(run, 1)["student"], turned(run, 2)["student"]]
    assert table[table["step"] == 2]["revision"].unique().tolist() == [turned(run, 1)["teacher"]]
    assert (run.output / "adapter" / "adapter_model.safetensors").is_file()


def test_two_processes_take_turns_as_one_does(
    whole: Training, co_training: TurnsOf, begin: Callable[[], str], launch: Callable[..., Any]
) -> None:
    begin()
    both = co_training("turns-both")
    by = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free()[0]}", "-m", "rlt_trainer"]
    settings = {name: value for name, value in both.config.items() if name != "turns"}
    turns = {**both.config["turns"], "distill": halved(both.config["turns"]["distill"])}
    done = launch("rl", json.loads(json.dumps(settings | {"turns": turns}, default=str)), by=by)
    assert done.returncode == 0, done.stderr[-4000:]
    for number in (1, 2):
        mine, theirs = turned(both, number), turned(whole, number)
        assert (mine["step"], mine["traces"]) == (theirs["step"], theirs["traces"])
    table = both.completions()
    assert table.groupby("step")["student"].nunique().tolist() == [1] * TURNED_STEPS  # both processes have one judge
    assert table[table["step"] == 2]["student"].unique().tolist() == [turned(both, 1)["student"]]
    assert table[table["step"] == 2]["revision"].unique().tolist() == [turned(both, 1)["teacher"]]
    same = ["question", "completion"]  # until students differ by a rounding
    pd.testing.assert_frame_equal(
        table[table["step"] < 2][same].reset_index(drop=True),
        whole.completions().query("step < 2")[same].reset_index(drop=True),
    )


def halved(distill: Path) -> Path:
    """The same batch, of two processes."""
    file = distill.with_name("halved.toml")
    file.write_text(distill.read_text().replace("micro_batch_size = 4", "micro_batch_size = 2"))
    return file


def test_what_does_not_fit_is_told_before_anything_is_trained(
    co_training: TurnsOf, turns_distill: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(turns_distill.read_text().replace("steps = 3", "steps = 0"))
    run = co_training("turns-bad")
    run.config["turns"]["distill"] = bad
    told = run.run(status=1)
    assert str(bad) in told
    assert "training.steps" in told
    run.config["turns"]["distill"] = tmp_path / "none.toml"
    assert "none.toml" in run.run(status=1)
    assert not list(run.output.glob("checkpoint-*"))


def finished(run: Training) -> dict[str, torch.Tensor]:
    return load_file(run.output / "model" / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """To the last bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
