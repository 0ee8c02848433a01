"""Every configuration of the repository is read by the command that its first lines give, and by those of the page.

Beside each run of the page stand servers whose flags exist, and fit it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.settings import ServerSettings
from rlt_service.settings import load as load_settings
from rlt_teacher_server.settings import Settings as TeacherSettings
from rlt_trainer import config as configs
from rlt_trainer.__main__ import main
from rlt_trainer.config import DistillConfig, EvaluateConfig, RLConfig, SFTConfig, Stage
from rlt_trainer.config.rl import RewardSource
from rlt_trainer.planning import as_toml
from rlt_trainer.stages import STAGES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "trainer" / "configs"
FILES = sorted(FOLDER.rglob("*.toml"))
PAGE = ROOT / "docs" / "trainer.md"
START = re.compile(r"(?:-m rlt_trainer|\brlt-trainer|\brun --rm trainer) (?=(?:sft|rl|distill|evaluate) --config)")
PROCESSES = re.compile(r"--nproc-per-node (\d+)")
NODES = re.compile(r"--nnodes (\d+)")
DEVICES = re.compile(r"CUDA_VISIBLE_DEVICES=([\d,]+)")
TINY = re.compile(r"^ {4}rlt-trainer (tiny .*)$", re.MULTILINE)


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


def _tiny(text: str) -> list[str]:
    return TINY.findall(text.replace("#     ", "    "))


TINY_COMMANDS = sorted({command for file in (*FILES, PAGE) for command in _tiny(file.read_text())})
MADE = re.compile(r"--out (\S+)|--as hf -o (\S+)|folder / \"([\w.]+)\"")
"""What the page's commands write, and the snippet on it, whose folder is data/mini."""


@pytest.mark.parametrize("command", TINY_COMMANDS)
def test_each_command_of_the_tiny_models_makes_its_file(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    file = tmp_path / Path(words[words.index("--out") + 1]).name
    words[words.index("--out") + 1] = str(file)
    words[words.index("--count") + 1] = "3"
    assert main(words) == 0
    assert len(file.read_text().splitlines()) == 3


def test_what_a_miniature_reads_is_made_by_commands_that_are_given() -> None:
    miniature = [
        command.load() for command in COMMANDS if "configs/mini/" in command.line and "compose" not in command.line
    ]
    found = [next(filter(None, names)) for names in MADE.findall(PAGE.read_text())]
    made = {Path(name) if "/" in name else Path("data/mini") / name for name in found}
    made |= {config.output / "model" for config in miniature if not isinstance(config, EvaluateConfig)}
    for config in miniature:
        for read in (Path(config.model.name), *([Path(config.data.path)] if config.data else [])):
            assert read.is_dir() or read in made, f"{read} of {config.output}"


S = TypeVar("S", bound=ServerSettings)


class Run(NamedTuple):
    """Reinforcement learning as the page starts it, with the servers that stand above it."""

    command: Command
    above: list[str]

    def servers(self, program: str, settings: type[S]) -> list[tuple[str, S]]:
        """Each with its line."""
        lines = [line for line in self.above if program in line]
        told = [shlex.split(line.partition(program)[2].replace("$PWD", str(ROOT))) for line in lines]
        return [(line, load_settings(settings, words, prog=program)) for line, words in zip(lines, told, strict=True)]


def _runs() -> Iterator[Run]:
    lines = PAGE.read_text().splitlines()
    for indented, block in groupby(lines, key=lambda line: line.startswith("    ")):
        told = list(block)
        for place, line in enumerate(told):
            if indented and START.search(line) and (command := Command("trainer", line)).stage == "rl":
                yield Run(command, told[:place])


def _devices(line: str) -> list[str]:
    return found[1].split(",") if (found := DEVICES.search(line)) else []


SERVED = [run for run in _runs() if any("-server " in line for line in run.above)]


@pytest.mark.parametrize("run", SERVED, ids=lambda run: run.command.argv[-1])
def test_the_servers_beside_a_run_fit_it(run: Run) -> None:
    config = run.command.load()
    assert isinstance(config, RLConfig)
    rewarding = run.servers("rlt-reward-server", RewardSettings)
    assert len(rewarding) == (config.reward.source is RewardSource.server)
    for _, reward in rewarding:
        assert config.turns is None or (ROOT / "runs" in reward.allowed_roots and "student=" in reward.student)
    sampling = run.servers("rlt-teacher-server", TeacherSettings)
    assert len(sampling) == (config.turns is None)  # turns have the teacher of the run without them
    for line, teacher in sampling:
        assert teacher.model == config.model.name
        assert any((ROOT / config.rollout.weights).is_relative_to(root) for root in teacher.allowed_roots)
        assert (teacher.engine_max_model_len or config.texts.max_tokens) >= config.texts.max_tokens
        rank = config.model.lora.rank if config.model.lora else 0
        assert rank <= (teacher.engine_max_lora_rank if teacher.engine_max_loras else 0)
        assert len(_devices(line)) in (0, teacher.engine_replicas)
    devices = [
        device
        for line in (*(line for line, _ in (*sampling, *rewarding)), run.command.line)
        for device in _devices(line)
    ]
    assert len(devices) == len(set(devices))
    assert len(_devices(run.command.line)) in (0, run.command.processes)


def test_the_page_starts_the_servers_of_every_run_on_gpus() -> None:
    started = {word for run in SERVED for word in run.command.argv if word.endswith(".toml")}
    wanted = {
        str(file.relative_to(ROOT)) for size in ("paper", "gpu4", "gpu1") for file in (FOLDER / size).glob("*_rl.toml")
    }
    assert wanted | {"trainer/configs/gpu1/turns.toml"} == started
