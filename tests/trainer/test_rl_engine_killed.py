"""A real vLLM that dies while a step samples: it is started again, has forgotten the weights, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from plugins.engine import StartEngine
from plugins.training import Service, Training, merged, rl_settings

from rlt_client.client import TeacherClient
from rlt_local.ports import free
from rlt_trainer.revision import folder_revision

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(3600)]  # vLLM is started five times

START_S = 600.0  # vLLM's first start after an installation, with other tests on the same two cores
RUN_S = 900.0  # a run in which vLLM is started again
STEPS = 3
SAMPLES = 8
COMMON: dict[str, Any] = {
    "rollout": {"concurrency": 4, "patience_s": RUN_S, "keep": STEPS},
    "reward": {"patience_s": RUN_S},
    "training": {"steps": STEPS},
}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"model": {"lora": {"rank": 4, "alpha": 8}}, "grpo": {"reference": {"sync_every": 0}}},
}

MakeRun = Callable[..., Training]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rl")


@pytest.fixture(scope="module")
def reward(root: Path, tiny_warmup: Path) -> Iterator[Service]:
    server = Service("rlt_reward_server", root, student=f"student={tiny_warmup}", allowed_roots=root)
    with ExitStack() as stack:
        server.start()
        stack.callback(server.kill)
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def teacher(root: Path, tiny_warmup: Path, engine_python: Path) -> Iterator[Service]:
    """Which starts its vLLM itself."""
    flags = {"engine_python": engine_python, "engine_memory_mib": 256, "engine_max_loras": 2, "engine_max_lora_rank": 8}
    server = Service("rlt_teacher_server", root, model=tiny_warmup, engine="launch", allowed_roots=root, **flags)
    with ExitStack() as stack:
        server.start()
        stack.callback(server.kill)
        server.wait_ready(START_S)
        yield server


@pytest.fixture
def make(root: Path, reward: Service, tiny_warmup: Path, rl_problems: Path) -> MakeRun:
    def run(name: str, url: str, kind: str, **rollout: object) -> Training:
        settings = rl_settings(root, name, tiny_warmup, rl_problems, teacher=url, reward=reward.url)
        return Training(merged(settings, merged(COMMON, {**KINDS[kind], "rollout": rollout})))

    return run


def vllm_server(words: str) -> psutil.Process:
    """The one below this process with these words in its command line, or in that of a process above it."""

    def found(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            line = [" ".join(each.cmdline()) for each in (process, *process.parents())]
            return "vllm.entrypoints.cli.main" in line[0] and any(words in each for each in line)
        return False

    [server] = filter(found, psutil.Process().children(recursive=True))
    return server


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_done(run: Training) -> None:
    """All steps, all samples, each of the weights that were published for its step."""
    made = run.completions()
    assert made.groupby("step").size().to_dict() == dict.fromkeys(range(STEPS), SAMPLES)
    assert made["failure"].isna().all()
    assert made["reward"].notna().all()
    for step, sampled_by in made.groupby("step")["revision"]:
        published = folder_revision(run.config["rollout"]["weights"] / f"step-{step:06d}")
        assert {revision.rpartition("+")[2] for revision in sampled_by} == {
            published
        }  # an adapter's is behind its base's
    assert made["revision"].nunique() == STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_the_teacher_starts_again(kind: str, teacher: Service, make: MakeRun) -> None:
    with TeacherClient(teacher.url) as client:
        client.activate_policy(client.policies().policies[-1].name)  # what it was started with: an adapter's base
    run = make(f"teacher-{kind}", teacher.url, kind)
    engine = vllm_server(f"--port={teacher.port}")
    process = run.start(("sampling", 1), kill=engine.pid)
    run.until(lambda: gone(engine), process)
    run.ended(process, within=RUN_S)
    assert_done(run)


def test_one_that_somebody_starts_again_at_the_same_address(start_vllm: StartEngine, make: MakeRun) -> None:
    port = free()[0]
    with start_vllm(port) as url:
        run = make("vllm", url, "full", engine="vllm")
        engine = vllm_server(f"--port {port}")
        process = run.start(("on-vllm", 1), kill=engine.pid)
        run.until(lambda: gone(engine), process)
        with start_vllm(port):
            run.ended(process, within=RUN_S)
    assert_done(run)
