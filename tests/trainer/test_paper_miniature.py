"""The experiments' own logic: questions that do not mix, configurations, records made once, the page and its plots."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

from rlt_trainer.config import DistillConfig, EvaluateConfig, RLConfig, SFTConfig, Stage, load

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = [str(ROOT / part) for part in ("services/common/benchmarks", "trainer/experiments")]
STAGES: Final[dict[str, type[Stage]]] = {
    "warmup": SFTConfig,
    "rl": RLConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
}


@pytest.fixture(autouse=True)
def experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(folder)


def paper(name: str) -> Any:
    return import_module(f"rlt_paper.{name}")


def test_every_configuration_belongs_to_a_stage() -> None:
    assert {path.stem for path in paper("commands").CONFIGS.glob("*.toml")} == set(STAGES)


@pytest.mark.parametrize("arm", ["rlt-2.5", "rlt-8", "ss", "kl", "solver", "solver-parts"])
@pytest.mark.parametrize("task", ["parts", "chain"])
def test_what_an_arm_is_trained_with_is_a_configuration(task: str, arm: str, tmp_path: Path) -> None:
    study, arms = paper("study"), paper("arms")
    one = study.Study(task, "a", 1, tmp_path, paper("records").Records(tmp_path))
    stack = paper("servers").Stack({"reward": "http://127.0.0.1:9"}, "key")
    table = one._training(arms.ARMS[arm], tmp_path / "model", "http://127.0.0.1:8", stack)
    config = loaded("rl", {**table, "output": str(tmp_path / "out")}, tmp_path)
    assert isinstance(config, RLConfig)
    assert config.training.batch_size == paper("report").SAMPLES == 256
    assert (config.training.steps, config.seed) == (80, 1)
    assert config.reward.model_dump(include=set(arms.ARMS[arm].reward)) == arms.ARMS[arm].reward


def test_the_other_stages_are_configured_too(tmp_path: Path) -> None:
    common = {"output": str(tmp_path / "out"), "model": {"name": "m"}, "data": {"path": "rows.jsonl"}, "seed": 3}
    warm = loaded("warmup", {**common, "training": {"steps": 600}}, tmp_path)
    assert isinstance(warm, SFTConfig)
    assert len(warm.roles) == 2
    for stage in ("distill", "evaluate"):
        assert loaded(stage, common, tmp_path).seed == 3


def loaded(stage: str, table: dict[str, Any], folder: Path) -> Stage:
    own = folder / f"{stage}.toml"
    own.write_text(paper("commands").toml(table))
    template = paper("commands").CONFIGS / f"{stage}.toml"
    config, _ = load(STAGES[stage], ["--config", str(template), "--config", str(own)], prog="test")
    return config


def test_tables_are_written_as_toml() -> None:
    import tomllib

    table = {"b": {"c": {"d": 1.5}, "e": 'x "y" é\\'}, "a": [1, 2], "f": True}
    assert tomllib.loads(paper("commands").toml(table)) == table


@pytest.mark.parametrize("name", ["parts", "chain"])
def test_corpus_training_and_test_share_no_question(name: str) -> None:
    task = paper("tasks").TASKS[name]
    uses = [
        {row["question"] for row in task.corpus("a", 1)},
        {each.question for each in task.questions(4_000, 1, test=False)},
        {each.question for each in task.questions(1_000, 1, test=True)},
    ]
    assert [len(use) for use in uses] == [10_000, 4_000, 1_000]
    assert len(set().union(*uses)) == 15_000


@pytest.mark.parametrize("name", ["parts", "chain"])
def test_the_style_of_traces_that_a_program_wrote_is_told(name: str) -> None:
    task = paper("tasks").TASKS[name]
    examples = task.questions(400, 1, test=False)
    for each in examples[:20]:
        assert task.style(each, task.good(each)).good == 1
    for shares, good, leaked in (({"good": 1.0}, 1, 0), ({"leak": 1.0}, 0, 1), ({"good": 0.5, "skip": 0.5}, 0.5, 0)):
        found = [task.style(e, t) for e, t in zip(examples, task.mixed(examples, shares, 0), strict=True)]
        # 1,600 parts: a share's deviation is at most .0125
        assert sum(style.good for style in found) / 400 == pytest.approx(good, abs=0.05)
        assert sum(style.leaked for style in found) / 400 == pytest.approx(leaked, abs=0.05)


@pytest.mark.parametrize("name", ["parts", "chain"])
def test_questions_of_another_length_are_not_those_of_the_test(name: str) -> None:
    task = paper("tasks").TASKS[name]
    tests, lessons = (task.transfer(200, 1, test=test) for test in (True, False))
    assert tests.keys() == lessons.keys()
    for kind in tests:
        assert not {each.question for each in tests[kind]} & {each.question for each in lessons[kind]}
        assert all(task.style(each, task.good(each)).good == 1 for each in lessons[kind])


def test_only_values_count_as_parts() -> None:
    right = ["B", "1", "D", "26", "F", "36", "H", "40"]
    share = paper("grading")._values_right
    assert share(right, right, 8) == 1
    assert share(right, ["B", "1", "D", "2", "F", "3", "H", "4"], 8) == 0.25
    assert share(right, [], 8) == 0
    assert share(["17"], ["17"], 1) == 1


def test_a_piece_is_made_once_and_a_failure_leaves_no_record(tmp_path: Path) -> None:
    records, made = paper("records").Records(tmp_path), []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"figures": {"exact greedy": 0.5}}

    def fail() -> dict[str, Any]:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        records.made_once("parts-a/seed-1/rlt", fail)
    assert records.find("parts-a/seed-1/rlt") is None
    for _ in range(2):
        assert records.made_once("parts-a/seed-1/rlt", make)["figures"] == {"exact greedy": 0.5}
    assert made == [1]
    found = records.find("parts-a/seed-1/rlt")
    assert found["piece"] == "parts-a/seed-1/rlt"
    assert {"torch", "trl", "cpu"} <= set(found["machine"])


def test_two_pieces_that_want_the_same_model_train_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, servers = paper("study"), paper("servers")
    started: list[Path] = []

    @contextmanager
    def teacher(begin: Path, weights: Path) -> Iterator[str]:
        started.append(weights)
        yield "http://127.0.0.1:8"

    def train(self: Any, stage: str, template: str, folder: Path, table: dict[str, Any]) -> None:
        assert self.env == {"RLT_PAPER_KEY": "key"}
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            time.sleep(0.2)  # both are here only where nothing keeps them apart
            (folder / "done").touch()

    monkeypatch.setattr(servers, "teacher", teacher)
    monkeypatch.setattr(paper("commands").Log, "train", train)
    one = study.Study("parts", "a", 1, tmp_path, paper("records").Records(tmp_path))
    stack, arm = servers.Stack({"reward": "http://127.0.0.1:9"}, "key"), paper("arms").ARMS["rlt-2.5"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: one.policy(arm, stack, one.log(stack)), range(2)))
    assert found == [one.folder / "rlt-2.5" / "rl" / "model"] * 2
    assert started == [one.folder / "rlt-2.5" / "rl" / "weights"]


def test_a_command_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    commands = paper("commands")
    log = commands.Log(tmp_path, {"PYTHONPATH": os.pathsep.join(FOLDERS)})
    with pytest.raises(commands.StageFailed, match=r"rlt-trainer evaluate --config .* ended with [12](?s:.*)data"):
        log.train("evaluate", "evaluate", tmp_path / "run", {"model": {"name": str(tmp_path / "absent")}})
    assert not (tmp_path / "run" / "done").exists()


def test_coefficients() -> None:
    correlation = paper("correlation")
    assert correlation.ranks([5.0, 1.0, 5.0, 2.0]) == [3.5, 1, 3.5, 2]
    assert correlation.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation.pearson([1, 1, 1], [1, 2, 3]) is None
    sets = [{"figures": {"exact greedy": x / 9, "r_SS": -9.0 + x, "r_KL": 0.0}} for x in range(6)]
    assert correlation.by_weight(sets)["3"] == ["6", "1.00", "1.00"]
    assert correlation.by_weight(sets[:4]) == {}, "too few sets say nothing"


def test_without_records_the_page_says_so(tmp_path: Path) -> None:
    text = paper("report").page(paper("records").Records(tmp_path))
    assert "{{" not in text
    assert text.count("not run yet") > 20


def test_the_page_and_its_pictures_are_made_of_records(tmp_path: Path) -> None:
    for seed, accuracy in ((1, 0.9), (2, 1.0)):
        for arm, title, score, share in (("rlt-2.5", "RLT, λ 2.5", -0.2, 1.0), ("warm", "warm-up teacher", -2.0, 0.0)):
            write_record(tmp_path, seed, arm, title, accuracy * share, score)
    write_record(tmp_path, 1, "solver", "solver", 0.0, -1.9, reward=3 / 256)
    write_record(tmp_path, 1, "leak", "leak throughout", 0.0, -2.1)
    write_record(tmp_path, 1, "oracle", "good throughout", 1.0, -0.1)
    paper("report").write(tmp_path, tmp_path / "page")
    text = (tmp_path / "page" / "README.md").read_text()
    assert "| RLT, λ 2.5 | 2 | 0.950 ± 0.071 |" in text
    assert "| r_KL only | not run yet |" in text
    assert "| parts-a | seed-1 | 6 of 512 | 1 | 0.012 |" in text  # 2 steps of 3 right answers in 256
    pictures = {path.name for path in (tmp_path / "page").glob("*.png")}
    assert pictures == {"parts-a-students.png", "parts-a-training.png", "parts-a-scores.png"}
    assert all(f"({name})" in text for name in pictures)


def test_what_was_run_twice_is_shown_twice(tmp_path: Path) -> None:
    write_record(tmp_path / "records", 2, "rlt-1", "RLT, λ 1", 0.9, -0.2)
    write_record(tmp_path / "repeated", 2, "rlt-1", "RLT, λ 1", 0.7, -0.3)
    write_record(tmp_path / "repeated", 3, "rlt-1", "RLT, λ 1", 0.5, -0.3)  # not yet again
    text = paper("report").page(paper("records").Records(tmp_path / "records"))
    assert "| parts-a | seed-2 | RLT, λ 1 | 0.700 | 0.900 |" in text
    assert "| parts-a | seed-3 |" not in text


def test_a_small_run_is_shown_beside_what_is_committed(tmp_path: Path) -> None:
    records = paper("records").Records
    write_record(tmp_path / "mine", 1, "rlt-1", "RLT, λ 1", 0.9, -0.2)
    write_record(tmp_path / "committed", 1, "rlt-1", "RLT, λ 1", 0.8, -0.2)
    table = paper("report").compared(records(tmp_path / "mine"), records(tmp_path / "committed")).splitlines()
    assert [line.count("|") for line in table] == [7] * (2 + len(paper("arms").SMALL))
    assert next(line for line in table if "λ 1" in line).split(" | ")[1::4] == ["0.900", "0.800 |"]
    assert "not run yet" in next(line for line in table if "0/1" in line)


def test_coefficients_are_told_of_each_seed_too(tmp_path: Path) -> None:
    for seed, places in ((1, range(5)), (2, (0, 1, 2, 4, 3))):
        for place, score in enumerate(places):
            arm = ("warm", "ss", "kl", "rlt-3", "rlt-1")[place]
            write_record(tmp_path, seed, arm, arm, place / 10, float(score))
    text = paper("report").page(paper("records").Records(tmp_path))
    assert "| parts-a | all | 0 | 10 | 0.95 | 0.95 | 1.00, 0.90 |" in text


def test_a_second_small_run_says_that_all_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arm in paper("arms").SMALL:
        write_record(tmp_path, 1, arm, arm, 0.9, -0.2)
    paper("plan").run_small(tmp_path / "work", tmp_path)
    assert str(tmp_path) in capsys.readouterr().out


def write_record(
    folder: Path, seed: int, arm: str, title: str, accuracy: float, score: float, *, reward: float | None = None
) -> None:
    figures = {"exact greedy": accuracy, "exact T=.7": accuracy, "RLT score": score, "r_SS": score, "r_KL": 0.1}
    figures |= {"parts greedy": accuracy, "all good": accuracy, "good parts": accuracy, "leaked parts": 0.0}
    curve = [{"step": step, "reward": score if reward is None else reward} for step in (1, 2)]
    if reward is None:
        curve = [{**row, "r_SS": score} for row in curve]
    record = {
        "piece": f"parts-a/seed-{seed}/{arm}",
        "title": title,
        "figures": figures,
        "curve": curve if arm != "warm" else [],
        "example": {"question": "Q", "trace": "A 1 +1 2"},
        "machine": {"cpu": "some"},
    }
    path = folder / "parts-a" / f"seed-{seed}" / f"{arm}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
