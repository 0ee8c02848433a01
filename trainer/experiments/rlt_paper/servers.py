"""The servers of the experiments: a whole local stack, and for each arm in training a teacher server of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from rlt_bench.programs import started
from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.errors import RLTError
from rlt_client.jobs import AsyncJobsClient
from rlt_client.schemas.builds import (
    Build,
    BuildProblem,
    BuildRequest,
    BuildState,
    ExportFormat,
    ExportShape,
    Sampling,
    Selection,
)
from rlt_client.schemas.explain import ExplanationFlag
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import LoadPolicy
from rlt_client.schemas.reward import RewardItem, Score, SpecRequest
from rlt_local.ports import free
from rlt_local.state import StateFolder

__all__ = ["FORMAT", "KEY", "BuildFailed", "Stack", "stack", "teacher"]

FORMAT: Final = "mini"
KEY: Final = "RLT_PAPER_KEY"
"""Environment variable that hands the stack's key to `rlt-trainer`."""
_START_S: Final = 300.0  # minutes on a machine with other things to do
_FIXED: Final = SpecRequest.model_validate({"preset": "rlt", "lambda": 3.0})
"""The scorer of the tables' columns: the paper's λ, whatever a teacher was trained with."""


class BuildFailed(RLTError):
    """A build did not end as it should."""


@dataclass(slots=True)
class Stack:
    """A running stack, its student and its hosted teacher being one warm-up."""

    urls: dict[str, str]
    key: str
    _turn: Lock = field(default_factory=Lock)

    def explain(self, policy: Path, problems: Sequence[BuildProblem], seed: int, max_tokens: int, to: Path) -> Build:
        """Raw explanations by the weights of a folder, one for each problem, as an exported data set version."""
        with self._turn:  # the teacher's engine holds one version of full weights
            return asyncio.run(self._explain(policy, problems, seed, max_tokens, to))

    async def _explain(
        self, policy: Path, problems: Sequence[BuildProblem], seed: int, max_tokens: int, to: Path
    ) -> Build:
        async with AsyncTeacherClient(self.urls["teacher"], key=self.key) as teacher:
            await teacher.load_policy(LoadPolicy(name="arm", source=str(policy), kind=ModelKind.full, activate=True))
        request = BuildRequest(
            dataset="traces",
            problems=list(problems),
            n=1,
            seed=seed,
            sampling=Sampling(max_tokens=max_tokens),
            selection=Selection(without_flags=[ExplanationFlag.empty]),
        )
        async with AsyncJobsClient(self.urls["jobs"], key=self.key) as jobs:
            build = await jobs.create_build(request)
            build = [each async for each in jobs.watch(build.id)][-1]
            if build.state is not BuildState.done or build.version is None:
                raise BuildFailed(f"build {build.id} ended as {build.state}: {build.error}")
            await jobs.export(build.version, to, format=ExportFormat.jsonl, shape=ExportShape.raw)
        return build

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """By the warm-up as student and as teacher, at the paper's λ."""
        return asyncio.run(self._score(items))

    async def _score(self, items: Sequence[RewardItem]) -> list[Score]:
        async with AsyncRewardClient(self.urls["reward"], key=self.key) as rewards:
            return await asyncio.gather(*(rewards.score(item, spec=_FIXED, format=FORMAT) for item in items))


@contextmanager
def stack(state: Path, warmup: Path, roots: Path) -> Iterator[Stack]:
    """`rlt up`, and `rlt down` at the end.

    Args:
        roots: folder that policies may be loaded from.
    """
    words = ["--teacher", str(warmup), "--format", FORMAT, "--ports", "free", "--detach"]
    folder = StateFolder(state)
    _rlt("up", *words, state=state, RLT_TEACHER_ALLOWED_ROOTS=str(roots))
    try:
        record = folder.read()
        assert record is not None
        yield Stack(record.urls, folder.key_file.read_text(encoding="utf-8").strip())
    finally:
        _rlt("down", state=state)


@contextmanager
def teacher(model: Path, weights: Path) -> Iterator[str]:
    """The address of a teacher server that begins with `model`, for an arm in training."""
    weights.mkdir(parents=True, exist_ok=True)
    [port] = free()
    url = f"http://127.0.0.1:{port}"
    words = ["--model", str(model), "--format", FORMAT, "--allowed-roots", str(weights), "--port", str(port)]
    argv = [sys.executable, "-m", "rlt_teacher_server", *words, "--log-level", "warning"]
    with started("teacher server", argv, {"OMP_NUM_THREADS": "1"}, url, "/readyz", _START_S):
        yield url


def _rlt(*words: str, state: Path, **settings: str) -> None:
    """Raises `CalledProcessError`, whose message names the command; what it says goes to standard error."""
    program = Path(sys.executable).with_name("rlt")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120", **settings}
    subprocess.run([program, *words, "--state", str(state)], check=True, stdout=sys.stderr, env=env)
