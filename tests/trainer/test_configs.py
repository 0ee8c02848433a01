"""Every configuration of the repository is read by the command that its first lines give, and by those of the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from rlt_trainer import config as configs
from rlt_trainer.config import DistillConfig, EvaluateConfig, RLConfig, SFTConfig, Stage
from rlt_trainer.planning import as_toml
from rlt_trainer.stages import STAGES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "trainer" / "configs"
FILES = sorted(FOLDER.rglob("*.toml"))
PAGE = ROOT / "docs" / "trainer.md"
START = re.compile(r"(?:-m rlt_trainer|\brlt-trainer|\brun --rm trainer) (?=(?:sft|rl|distill|evaluate) --config)")
PROCESSES = re.compile(r"--nproc-per-node (\d+)")
NODES = re.compile(r"--nnodes (\d+)")


class Command(NamedTuple):
    """As it stands in a file's comments."""

    file: str
    line: str

    @property
    def stage(self) -> str:
        return self._words[0]

    @property
    def argv(self) -> Sequence[str]:
        return self._words[1:]

    @property
    def processes(self) -> int:
        return int(_number(PROCESSES, self.line)) * int(_number(NODES, self.line))

    @property
    def _words(self) -> list[str]:
        return shlex.split(START.split(self.line, maxsplit=1)[1], comments=True)

    def load(self) -> Stage:
        return configs.load(getattr(configs, STAGES[self.stage].config), self.argv, prog="test")[0]


def _number(pattern: re.Pattern[str], line: str) -> str:
    return found[1] if (found := pattern.search(line)) else "1"


def _commands(file: Path, begin: str) -> list[Command]:
    lines = [line.removeprefix(begin) for line in file.read_text().splitlines() if line.startswith(begin)]
    return [
        Command(file.stem if file == PAGE else str(file.relative_to(FOLDER)), line)
        for line in lines
        if START.search(line)
    ]


COMMANDS = [command for file in FILES for command in _commands(file, "#     ")] + _commands(PAGE, "    ")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_are_files_for_each_size() -> None:
    assert {file.parent.name for file in FILES} >= {"paper", "gpu1", "gpu4", "mini"}


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(FOLDER)) for file in FILES])
def test_each_file_is_part_of_the_command_that_it_gives(file: Path) -> None:
    commands = _commands(file, "#     ")
    assert commands
    for command in commands:
        assert str(file.relative_to(ROOT)) in command.argv


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.file} {command.stage}")
def test_each_command_is_read_and_its_batch_divides(command: Command) -> None:
    config = command.load()
    if isinstance(config, SFTConfig | RLConfig | DistillConfig):
        assert config.training.accumulation(command.processes) >= 1
        assert config.texts.max_tokens >= 128
    else:
        assert isinstance(config, EvaluateConfig)
    if isinstance(config, RLConfig):
        assert config.texts.max_tokens > config.rollout.max_tokens
        assert config.checkpoints.every % config.grpo.iterations == 0


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.file} {command.stage}")
def test_what_a_dry_run_prints_is_the_same_configuration(command: Command, tmp_path: Path) -> None:
    config = command.load()
    printed = tmp_path / "printed.toml"
    printed.write_text(as_toml(config))
    again, dry = configs.load(type(config), ["--config", str(printed)], prog="test")
    assert (again, dry) == (config, None)


def _of(name: str) -> Stage:
    return next(command for command in COMMANDS if command.file == name).load()


def test_the_paper_s_numbers_of_reinforcement_learning() -> None:
    config = _of("paper/teacher_rl.toml")
    assert isinstance(config, RLConfig)
    training, grpo = config.training, config.grpo
    assert (training.steps, training.batch_size, training.learning_rate) == (125, 1024, 1e-6)
    assert (grpo.generations, grpo.beta, config.rollout.temperature) == (64, 0.04, 0.7)
    assert (grpo.reference.mixup, grpo.reference.sync_every) == (0.9, 32)
    assert config.rollout.max_tokens == config.texts.max_tokens - config.rollout.max_tokens == 16_384
    assert (config.reward.spec["lambda"], config.reward.spec["kl"]) == (3.0, "k1")


def test_the_authors_numbers_of_the_warm_up() -> None:
    config = _of("paper/teacher_sft.toml")
    assert isinstance(config, SFTConfig)
    training = config.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (10, 16, 1e-5)
    assert (training.weight_decay, training.beta2, training.warmup_share) == (1e-4, 0.95, 0.05)
    assert not config.packing


def test_the_distillation_of_turns_is_a_file_that_distils() -> None:
    config = _of("gpu1/turns.toml")
    assert isinstance(config, RLConfig)
    assert config.turns is not None
    distill, _ = configs.load(DistillConfig, ["--config", str(config.turns.distill)], prog="test")
    assert distill.texts.format == config.texts.format
