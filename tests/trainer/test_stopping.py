"""Signals that end a run after its step."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from rlt_trainer import stages
from rlt_trainer.errors import Interrupted, TrainingError
from rlt_trainer.stopping import Stop, Stopping


@pytest.fixture
def arguments() -> TrainingArguments:
    return TrainingArguments(use_cpu=True, report_to="none")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_asks_and_the_second_ends(number: signal.Signals) -> None:
    class Ended(Exception):
        pass

    def end(*_: object) -> None:
        raise Ended

    before = signal.signal(number, end)
    try:
        with Stop() as stop:
            stop.check()
            os.kill(os.getpid(), number)
            with pytest.raises(Interrupted, match=f"ended by {number.name}; the same command goes on"):
                stop.check()
            with pytest.raises(Ended):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_are_not_asked() -> None:
    def inside() -> None:
        with Stop() as stop:
            stop.check()
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize(("step", "saves"), [(3, False), (4, True), (8, False)])
def test_a_run_stops_where_it_can_go_on(arguments: TrainingArguments, step: int, saves: bool) -> None:
    """With two updates on the same completions, after the second; not where it ends anyway."""
    stop, control = Stop(), TrainerControl()
    state = TrainerState(global_step=step, max_steps=8)
    callback = Stopping(stop, every=2)
    callback.on_step_end(arguments, state, control)
    assert not control.should_save
    stop.signal = signal.SIGTERM
    callback.on_step_end(arguments, state, control)
    assert (control.should_save, control.should_training_stop) == (saves, saves)


def test_a_run_that_had_no_more_batches_is_not_done() -> None:
    state = TrainerState(global_step=3, max_steps=8)
    with pytest.raises(TrainingError, match="no more batches after 3 of 8 updates"):
        Stop().check_done(state)
    stop = Stop()
    stop.signal = signal.SIGTERM
    with pytest.raises(Interrupted):
        stop.check_done(state)
    Stop().check_done(TrainerState(global_step=8, max_steps=8))


def test_the_exit_status_says_which_signal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rlt_trainer import sft

    def interrupted(_: object) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(sft, "run", interrupted)
    flags = ["--output=x", "--model.name=x", "--data.path=x", "--training.learning-rate=1", "--training.steps=1"]
    assert stages.run("sft", flags, prog="rlt-trainer sft") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "rlt-trainer sft: ended by SIGTERM; the same command goes on from here\n"
