"""`rlt-trainer`: quick to answer, exact about what it refuses."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_trainer.__main__ import main
from rlt_trainer.tiny.__main__ import main as tiny_main
from rlt_trainer.tiny.parts import PartsMixture, parts_corpus

HEAVY = "import sys; sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("module", ["rlt_trainer", "rlt_trainer.tiny"])
def test_help_answers_in_under_a_second(module: str) -> None:
    run("-m", module, "--help")  # the first run compiles
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-m", module, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "usage:" in done.stdout
    assert after.ru_utime - before.ru_utime < 1  # of the processor: other tests share the cores


def test_arguments_are_read_without_torch() -> None:
    code = f"import rlt_trainer.__main__, rlt_trainer.tiny; rlt_trainer.tiny.problems(3); {HEAVY}"
    assert run("-c", code).returncode == 0


def test_a_cached_warmup_is_found_without_torch(tiny_warmup: Path) -> None:
    code = f"from rlt_trainer.tiny import ensure_warmup; assert str(ensure_warmup()) == {str(tiny_warmup)!r}; {HEAVY}"
    assert run("-c", code).returncode == 0


def test_problems_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "problems", "--count", "5", "--seed", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert all(set(row) == {"question", "answer"} for row in rows)
    assert all(row["question"].startswith("Q ") and 0 <= int(row["answer"]) < 61 for row in rows)


def test_problems_with_traces_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "problems.jsonl"
    assert tiny_main(["problems", "--count", "3", "--traces", "--training", "--out", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row["good"].split()[-1] == row["leak"].split()[-1] == row["answer"] for row in rows)
    assert capsys.readouterr().out == ""


def test_problems_of_the_parts_task_are_of_one_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: dict[str, list[dict[str, str]]] = {}
    for use in ("test", "training", "corpus"):
        file = tmp_path / f"{use}.jsonl"
        assert main(["tiny", "parts-problems", "--count", "20", "--use", use, "--out", str(file)]) == 0
        rows[use] = [json.loads(line) for line in file.read_text().splitlines()]
    assert capsys.readouterr().out == ""
    assert len({row["question"] for given in rows.values() for row in given}) == 60
    assert {tuple(row) for row in rows["test"] + rows["training"]} == {("question", "answer")}
    assert [row["explanation"] for row in rows["corpus"]] == [trace for _, trace in parts_corpus(20, PartsMixture())]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["problems", "--count", "-1"], "count must be between"),
        (["parts-problems", "--count", "0"], "count must be 1 or more, not 0"),
        (["parts-problems", "--out", "/nowhere/at/all.jsonl"], "No such file"),
        (["problems", "--out", "/nowhere/at/all.jsonl"], "No such file"),
        (["base", "--out", "{full}"], "not an empty folder"),
        (["warmup", "--out", "{full}"], "not an empty folder"),
        (["warmup", "--base", "{full}", "--out", "{full}/new"], "no model in"),
        (["warmup", "--base", "{full}"], "--base needs --out"),
    ],
)
def test_refusals_say_why(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "something").touch()
    assert main(["tiny", *(argument.format(full=tmp_path) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [[], ["tiny"], ["tiny", "base"], ["tiny", "unknown"]])
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_cached_warmup_is_the_last_line(tiny_warmup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "warmup"]) == 0
    assert capsys.readouterr().out == f"{tiny_warmup}\n"
