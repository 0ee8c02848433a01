"""`rlt-trainer sft`, `rl`, `distill`, `evaluate`: what is read, and what is refused, before anything is trained."""

from __future__ import annotations

import resource
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from rlt_trainer import config as configs
from rlt_trainer.__main__ import main
from rlt_trainer.config import RLConfig
from rlt_trainer.stages import STAGES

HEAVY = "import sys; sys.exit(bool({'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules)))"
HELP_S = 1.0  # what a person does not wait for
WHOLE = """
output = "{folder}/run"
[model]
name = "{folder}/model"
[data]
path = "{folder}/problems.jsonl"
[rollout]
weights = "{folder}/weights"
[training]
steps = 5
learning_rate = 1e-6
"""

Refused = Callable[..., str]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A file that says all that `rl` needs."""
    file = tmp_path / "rl.toml"
    file.write_text(WHOLE.format(folder=tmp_path))
    return file


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """What is written on stderr, without the line that names --help; the exit status is 2."""

    def told(*words: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["rl", *map(str, words)])
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert captured.out == ""
        *lines, last = captured.err.splitlines()
        assert last == "rlt-trainer rl --help says what there is"
        assert all(line.startswith("rlt-trainer rl: ") for line in lines)
        return "\n".join(line.removeprefix("rlt-trainer rl: ") for line in lines)

    return told


def load(*words: object) -> RLConfig:
    config, _ = configs.load(RLConfig, list(map(str, words)), prog="rlt-trainer rl")
    return config


def test_all_commands_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert set(STAGES) == {"sft", "rl", "distill", "evaluate"}
    assert all(name in told and stage.help in told for name, stage in STAGES.items())


def test_stdout_has_the_path_alone(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the libraries that a run uses print."""
    runner = ModuleType(STAGES["rl"].runner)
    runner.run = lambda config: print("Tracking run with wandb") or config.output  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, STAGES["rl"].runner, runner)
    assert main(["rl", "--config", str(whole)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{whole.parent}/run\n"
    assert "Tracking run" in told.err


@pytest.mark.parametrize("name", sorted(STAGES))
def test_help_loads_nothing_heavy_and_is_quick(name: str) -> None:
    code = f"from rlt_trainer.__main__ import main\ntry: main([{name!r}, '--help'])\nexcept SystemExit: {HEAVY}"

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert "--dry-run" in done.stdout
        return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)

    assert any(once() < HELP_S for _ in range(3))  # of the processor: other tests share the cores


def _fields(model: type[BaseModel], before: str = "") -> dict[str, tuple[str | None, bool]]:
    """(description, whether it is a table) of every field."""
    found: dict[str, tuple[str | None, bool]] = {}
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        found[before + name] = (field.description, bool(tables))
        for table in tables:
            found |= _fields(table, f"{before}{name}.")
    return found


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_field_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for place, (description, table) in _fields(getattr(configs, STAGES[name].config)).items():
        assert table or description, place
        assert table or f"--{place.replace('_', '-')}" in told, place


def test_later_files_and_then_flags_win(whole: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.toml"
    over.write_text("seed = 7\n[training]\nbatch_size = 128\n")
    config = load("--config", whole, "--config", over, "--training.batch-size", 256, "--no-reward.overlap")
    assert (config.seed, config.training.batch_size, config.training.steps) == (7, 256, 5)
    assert not config.reward.overlap


def test_null_unsets_what_a_file_says(whole: Path) -> None:
    config = load("--config", whole, "--training.steps", "null", "--training.epochs", 2)
    assert (config.training.steps, config.training.epochs) == (None, 2)


def test_null_unsets_a_table(whole: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.toml"
    adapter.write_text("[model.lora]\nrank = 8\n[grpo.reference]\nsync_every = 0\n")
    assert load("--config", whole, "--config", adapter).model.lora is not None
    assert load("--config", whole, "--config", adapter, "--model.lora", "null").model.lora is None


def test_coefficients_of_a_flag_are_numbers_beside_those_of_the_file(whole: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text('[reward.spec]\npreset = "rlt"\nlambda = 8.0\n')
    config = load("--config", whole, "--config", spec, "--reward.spec", "lambda=2.5")
    assert config.reward.spec == {"preset": "rlt", "lambda": 2.5}


def test_environment_variables_are_not_read(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "7")
    assert load("--config", whole).seed == 0


def test_all_that_is_missing_is_named(refused: Refused) -> None:
    told = refused()
    assert "output is needed: in a file, or as --output" in told
    assert "model is needed: a table [model], or --model.…" in told
    assert len(told.splitlines()) == 5


def test_what_is_missing_in_a_table_is_named(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "rl.toml"
    file.write_text(WHOLE.format(folder=tmp_path).replace("learning_rate = 1e-6", ""))
    assert refused("--config", file) == "training.learning_rate is needed: in a file, or as --training.learning-rate"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[trainin]\nsteps = 5\n", "no such key: trainin (did you mean training?)"),
        ("[training]\nbatchsize = 5\n", "no such key: training.batchsize (did you mean training.batch_size?)"),
        ("[grpo.reference]\nzzz = 5\n", "no such key: grpo.reference.zzz"),
        ('[training]\nsteps = "five"\n', "training.steps: Input should be a valid integer"),
        ("[training]\nsteps = 0\n", "training.steps: Input should be greater than or equal to 1"),
        ("[training]\nepochs = 1\n", "training: want `steps` or `epochs`, and not both"),
        ("[training]\nbatch_size = 65\n", "training.batch_size 65 is no multiple of grpo.generations 64"),
        ('[reward.spec]\npreset = "none"\n', "reward.spec.preset: Input should be 'rlt'"),
        ("[reward.spec]\nlamda = 3\n", "no such key: reward.spec.lamda"),
        ('role = "student"\n', "role student writes answers, not explanations"),
        ("[model.lora]\nrank = 8\n", "model.lora needs grpo.reference.sync_every = 0"),
        ("[training]\nsteps == 5\n", "over.toml: "),
    ],
)
def test_wrong_files_say_what_is_wrong_in_one_line(
    text: str, reason: str, whole: Path, tmp_path: Path, refused: Refused
) -> None:
    over = tmp_path / "over.toml"
    over.write_text(text)
    told = refused("--config", whole, "--config", over)
    assert reason in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--trainin.steps", "5"], "no such argument: --trainin.steps (did you mean --training.steps?)"),
        (["--training.step", "5"], "no such argument: --training.step (did you mean --training.steps?)"),
        (["extra"], "no such argument: extra"),
        (["--training.steps", "five"], "training.steps: Input should be a valid integer"),
        (["--training.steps"], "argument --training.steps: expected one argument"),
        (["--role", "judge"], "role: Input should be 'teacher' or 'student'"),
        (["--dry-run", "many"], "argument --dry-run: invalid int value: 'many'"),
        (["--config", "/nowhere/at/all.toml"], "No such file or directory: '/nowhere/at/all.toml'"),
        (["--config", "/"], "Is a directory: '/'"),
    ],
)
def test_wrong_flags_say_what_is_wrong_in_one_line(
    words: list[str], reason: str, whole: Path, refused: Refused
) -> None:
    told = refused("--config", whole, *words)
    assert reason in told
    assert len(told.splitlines()) == 1


def test_a_file_that_is_no_text_is_named(whole: Path, tmp_path: Path, refused: Refused) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"output = '\xff'\n")
    assert f"{bad}: 'utf-8' codec can't decode" in refused("--config", whole, "--config", bad)


def test_a_dry_run_prints_a_file_and_does_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rl", "--config", str(whole), "--model.name", str(tmp_path), "--dry-run"]) == 0
    printed: dict[str, Any] = tomllib.loads(capsys.readouterr().out)
    assert printed["training"]["batch_size"] == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl.toml"]


def test_a_dry_run_for_processes_that_do_not_fit_fails(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rl", "--config", str(whole), "--dry-run", "3"]) == 1
    assert capsys.readouterr().err == ("rlt-trainer rl: training: a batch of 64 is no multiple of 3 processes of 1\n")
