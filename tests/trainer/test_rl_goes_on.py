"""`test_rl_resume.py` in this process, a run that breaks off goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from plugins.training import ONE_BY_ONE, rl_settings
from safetensors.torch import load_file

from rlt_reward_server import app as reward_app
from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.testing import running
from rlt_teacher_server import app as teacher_app
from rlt_teacher_server.settings import Settings as TeacherSettings
from rlt_trainer import checkpoints
from rlt_trainer.config import RLConfig
from rlt_trainer.rl.engines import TeacherEngine
from rlt_trainer.rl.run import run

pytestmark = pytest.mark.slow  # half a minute
SAMPLES = 8


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rl")


@pytest.fixture(scope="module")
def teacher_url(root: Path, tiny_warmup: Path) -> Iterator[str]:
    given = TeacherSettings(model=str(tiny_warmup), format="mini", threads=1, allowed_roots=[root])
    with running(lambda: teacher_app.build(given)) as url:
        yield url


@pytest.fixture(scope="module")
def reward_url(root: Path, tiny_warmup: Path) -> Iterator[str]:
    told: dict[str, Any] = {"format": "mini", "threads": 1, "allowed_roots": [root], **ONE_BY_ONE}
    given = RewardSettings(student=f"student={tiny_warmup}", **told)
    with running(lambda: reward_app.build(given)) as url:
        yield url


@pytest.fixture
def config(
    root: Path, tiny_warmup: Path, rl_problems: Path, teacher_url: str, reward_url: str
) -> Callable[..., RLConfig]:
    def make(name: str, **given: Any) -> RLConfig:
        settings = rl_settings(root, name, tiny_warmup, rl_problems, teacher=teacher_url, reward=reward_url)
        settings["data"]["limit"] = 4  # two steps are an epoch
        settings["training"]["steps"] = 4
        settings["rollout"]["max_tokens"] = 14  # half of what it writes else: for speed
        return RLConfig(**settings | given)

    return make


def cut_off_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The engine's `call`-th completion ends everything."""
    generate, calls = TeacherEngine.generate, 0

    async def counted(self: TeacherEngine, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise PowerCut
        return await generate(self, *args)

    monkeypatch.setattr(TeacherEngine, "generate", counted)


def test_goes_on_as_if_nothing_had_been(config: Callable[..., RLConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second epoch, after the reference was synced."""
    whole, broken = config("whole"), config("broken")
    run(whole)
    with monkeypatch.context() as patched:
        cut_off_at(patched, 3 * SAMPLES + 3)
        with pytest.raises(ExceptionGroup):
            run(broken)
    found = checkpoints.newest(broken.output)
    assert found is not None
    assert found.name == "checkpoint-3"
    run(broken)
    pd.testing.assert_frame_equal(completions(broken), completions(whole))
    for path in (
        "model/model.safetensors",
        "checkpoint-4/model.safetensors",
        "checkpoint-4/reference/model.safetensors",
    ):
        left, right = load_file(broken.output / path), load_file(whole.output / path)
        assert all(torch.equal(left[name], right[name]) for name in right), path
    assert len(set(completions(whole)["revision"])) == 4


def completions(config: RLConfig) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for file in sorted(config.output.glob("completions/*.parquet"))])
