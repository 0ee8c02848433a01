"""Reinforcement learning on tiny models: servers and trainers are processes of their own, which can be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from rlt_client import RewardClient
from rlt_local.databases import Program, Running, start
from rlt_local.ports import free
from rlt_trainer.tiny import problems

if TYPE_CHECKING:
    from pandas import DataFrame

START_S = 120.0  # importing torch on a busy machine
RUN_S = 240.0
TURNED_STEPS = 5
TRACES = 6
ONE_BY_ONE = {"max_batch_tokens": 1}  # of a reward server: else the moment at which an item comes decides its last bits
PROCESSES = multiprocessing.get_context("forkserver")  # which imports torch once
PROCESSES.set_forkserver_preload(["rlt_trainer.rl.run", "rlt_trainer.distill"])
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Service:
    """A server on one port."""

    def __init__(self, module: str, folder: Path, **flags: object) -> None:
        self._module = module
        self._folder = folder
        self.port = free()[0]
        self._flags = {"port": self.port, "format": "mini", "threads": 1} | flags
        self.url = f"http://127.0.0.1:{self.port}"
        self._running: Running | None = None

    def start(self, **changed: object) -> None:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in (self._flags | changed).items()]
        env = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        argv = ["env", *env, sys.executable, "-m", self._module, *flags]
        program = Program(self._module, argv, self._folder, self.url, self._ready, signal.SIGTERM)
        self._running = start(program, self._folder / f"{self._module}.log", die_with_caller=True)

    def wait_ready(self, within: float = START_S) -> None:
        assert self._running is not None
        self._running.wait_ready(within)

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.process.pid

    def wait_killed(self) -> None:
        assert self._running is not None
        assert self._running.process.wait(RUN_S) == -signal.SIGKILL

    def kill(self) -> None:
        if self._running is not None:
            with suppress(ProcessLookupError):  # it is dead already
                os.killpg(self._running.process.pid, signal.SIGKILL)
            self._running.process.wait()

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=60).is_success
        except httpx.HTTPError:
            return False


@dataclass
class Servers:
    """A teacher and a reward server with the tiny warm-up, both allowed to load what lies under `root`."""

    root: Path
    teacher: Service
    reward: Service

    def rewarding(self) -> str:
        """Revision of the reward server's student."""
        with RewardClient(self.reward.url) as client:
            return client.models().student.revision


def rl_settings(root: Path, name: str, model: Path, problems: Path, *, teacher: str, reward: str) -> dict[str, Any]:
    """Six steps of a run whose samples are made one by one, for a server that scores `ONE_BY_ONE`: equal runs are then
    equal to the last bit."""
    return {
        "output": root / name,
        "model": {"name": str(model), "dtype": "float32", "gradient_checkpointing": False},
        "data": {"path": str(problems)},
        "texts": {"format": "mini", "max_tokens": 64},
        "rollout": {
            "url": teacher,
            "weights": root / f"{name}-weights",
            "max_tokens": 27,
            "concurrency": 1,
            "patience_s": RUN_S,
        },
        "reward": {"url": reward, "overlap": False, "patience_s": RUN_S},
        "grpo": {"generations": 4, "reference": {"sync_every": 2}},
        "training": {
            "steps": 6,
            "batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 1e-3,
            "schedule": "linear",
            "cpu": True,
        },
        "logging": {"to": [], "completions_every": 1},
        "checkpoints": {"every": 1, "keep": 3},
    }


@dataclass
class Training:
    """`rlt-trainer rl` as a process, which can be killed and started again."""

    config: dict[str, Any]

    @property
    def output(self) -> Path:
        return Path(self.config["output"])

    def start(
        self, at: tuple[str, int] | None = None, *, kill: int = 0, by: signal.Signals = signal.SIGKILL
    ) -> BaseProcess:
        """Args:
        at: a point (`plugins.killed`) and the updates that are done, when a signal is sent
        kill: to this process; 0: to itself.
        by: the signal.
        """
        from plugins import killed  # torch, which other tests do without

        file = self.output.with_suffix(".toml")
        file.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in self.config.items()))
        self._log.unlink(missing_ok=True)
        argv = ["rl", "--config", str(file)]
        process = PROCESSES.Process(target=killed.train, args=(argv, str(self._log), at, kill, by))
        process.start()
        return process

    def run(
        self,
        at: tuple[str, int] | None = None,
        *,
        kill: int = 0,
        by: signal.Signals = signal.SIGKILL,
        status: int = 0,
    ) -> str:
        """As `start`, to the end; what it printed. Its exit status must be `status`."""
        return self.ended(self.start(at, kill=kill, by=by), status)

    def ended(self, process: BaseProcess, status: int = 0, *, within: float = RUN_S) -> str:
        process.join(within)
        process.kill()
        process.join()
        told = self._log.read_text()
        assert process.exitcode == status, told[-4000:]
        return told

    def until(self, condition: Callable[[], object], process: BaseProcess) -> None:
        """Wait while it runs."""
        limit = time.monotonic() + RUN_S
        while not condition():
            assert process.is_alive(), self._log.read_text()[-4000:]
            assert time.monotonic() < limit
            time.sleep(0.01)

    @property
    def _log(self) -> Path:
        return self.output.with_suffix(".log")

    def completions(self) -> DataFrame:
        """All steps' samples, in the order they were asked for."""
        import pandas as pd

        return pd.concat([pd.read_parquet(file) for file in sorted(self.output.glob("completions/step-*.parquet"))])


TurnsOf = Callable[..., Training]


@contextmanager
def serving(root: Path, model: Path) -> Iterator[Servers]:
    """Both servers, each with the model; killed at the end."""
    root.mkdir(parents=True, exist_ok=True)
    common = {"allowed_roots": root}
    servers = Servers(
        root,
        Service("rlt_teacher_server", root, model=model, engine="transformers", **common),
        Service("rlt_reward_server", root, student=f"student={model}", **ONE_BY_ONE, **common),
    )
    with ExitStack() as stack:
        for each in (servers.teacher, servers.reward):
            each.start()
            stack.callback(each.kill)
        for each in (servers.teacher, servers.reward):
            each.wait_ready()
        yield servers


@pytest.fixture(scope="module")
def servers(tiny_warmup: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with serving(tmp_path_factory.mktemp("rl"), tiny_warmup) as started:
        yield started


@pytest.fixture(scope="session")
def rl_problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six problems: three steps of two are an epoch."""
    file = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    rows = [{"question": each.question, "answer": each.answer} for each in problems(6, held_out=False)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def training(servers: Servers, tiny_warmup: Path, rl_problems: Path) -> Callable[..., Training]:
    """A run of its own output and weights folder, by name."""

    def make(name: str, **given: Any) -> Training:
        urls = {"teacher": servers.teacher.url, "reward": servers.reward.url}
        return Training(merged(rl_settings(servers.root, name, tiny_warmup, rl_problems, **urls), given))

    return make


@pytest.fixture(scope="module")
def turns_distill(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """How a turn's student is distilled: three updates."""
    file = tmp_path_factory.mktemp("distill") / "student.toml"
    file.write_text(
        f"""
        output = "set by the run"
        data = {{ path = "set by the run" }}
        model = {{ name = "{tiny_base}", dtype = "float32", gradient_checkpointing = false }}
        packing = false
        training = {{ steps = 3, batch_size = 4, micro_batch_size = 4, learning_rate = 1e-3, cpu = true }}
        logging = {{ to = [] }}
        checkpoints = {{ every = 1 }}
        """
    )
    return file


@pytest.fixture(scope="module")
def co_training(training: Callable[..., Training], turns_distill: Path) -> TurnsOf:
    """A run of two turns and a step, by name."""

    def make(name: str, **given: Any) -> Training:
        turns = {"steps": 2, "traces": TRACES, "distill": turns_distill}
        settings = {"reward": {"student": "student"}, "training": {"steps": TURNED_STEPS}, "checkpoints": {"every": 0}}
        return training(name, turns=turns, **merged(settings, given))

    return make


def turn(run: Training, number: int) -> Path:
    return run.output / "turns" / f"turn-{number:06d}"


def turned(run: Training, number: int) -> dict[str, Any]:
    """What the run wrote of a turn that is over."""
    return dict(json.loads((turn(run, number) / "turn.json").read_text()))


def merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings with others in their places, table by table."""
    whole = dict(base)
    for key, value in given.items():
        mine = whole.get(key)
        whole[key] = merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return whole


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, default=str)
