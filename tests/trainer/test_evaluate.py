"""`rlt-trainer evaluate` on tiny models, in-process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rlt_trainer.__main__ import main
from rlt_trainer.config import EvaluateConfig
from rlt_trainer.errors import BadConfig
from rlt_trainer.evaluate.run import run
from rlt_trainer.evaluate.sampling import Finished, Sample
from rlt_trainer.tiny import problems

Make = Callable[..., EvaluateConfig]
COUNT, SAMPLES = 12, 3
KILLED = """
import json, os, signal, sys
from rlt_trainer.config import EvaluateConfig
from rlt_trainer.evaluate.run import run
from rlt_trainer.evaluate.sampling import Finished

keep = Finished.keep

def dies(self, place, sample):
    if len(self.samples) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    keep(self, place, sample)

Finished.keep = dies
run(EvaluateConfig(**json.load(open(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [{"question": each.question, "answer": each.answer} for each in problems(COUNT, seed=5)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.fixture
def make(tmp_path: Path, tiny_warmup: Path, questions: Path) -> Make:
    def config(name: str = "found", **changed: Any) -> EvaluateConfig:
        told: dict[str, Any] = {
            "output": tmp_path / name,
            "model": {"name": str(tiny_warmup), "dtype": "float32"},
            "data": {"path": str(questions)},
            "texts": {"format": "mini"},
            "match": "exact",
            "samples": SAMPLES,
            "ks": [1, SAMPLES],
            "temperature": 0.7,
            "max_new_tokens": 40,
            "cpu": True,
        }
        return EvaluateConfig(**(told | changed))

    return config


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def samples(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "samples.parquet")


def test_figures_follow_from_the_samples(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(make())
    rows, found = samples(folder), results(folder)
    assert list(rows.problem) == [number for number in range(COUNT) for _ in range(SAMPLES)]
    assert set(rows.question) == {each.question for each in problems(COUNT, seed=5)}
    told = rows.completion.str.extract(r"# (\d+) \$$")[0]
    assert (rows.given.fillna("") == told.fillna("")).all()
    assert (rows.right == (rows.given == rows.answer)).all()
    counts = found["data"]["counts"]
    assert counts["samples"] == COUNT * SAMPLES == counts["right"] + counts["wrong"] + counts["no_answer"]
    assert counts["right"] == rows.right.sum() > 0
    assert counts["truncated"] == rows.truncated.sum()
    assert (rows.tokens == rows.completion.str.split().str.len()).all()  # a word a token
    of_problem = rows.groupby("problem").right.agg(["mean", "max"])
    passes = found["data"]["pass_at"]
    assert passes["1"]["value"] == pytest.approx(of_problem["mean"].mean())
    assert passes["1"]["stderr"] == pytest.approx(of_problem["mean"].sem())
    assert passes[str(SAMPLES)]["value"] == pytest.approx(of_problem["max"].mean())
    assert f"pass@1       {passes['1']['value']:.4f} ± " in capsys.readouterr().out


def test_a_record_says_what_was_evaluated_and_how(make: Make, tiny_warmup: Path) -> None:
    found = results(run(make(samples=1, ks=[1], temperature=0, seed=3)))
    assert found["model"]["name"] == str(tiny_warmup)
    assert found["model"]["revision"].startswith("sha256:")
    assert found["format"]["name"] == "mini"
    assert len(found["format"]["hash"]) == 16
    wanted = {"temperature": 0, "top_p": 1, "max_new_tokens": 40, "samples": 1, "seed": 3}
    assert found["sampling"] == wanted
    assert set(found["versions"]) == {"rlt-trainer", "torch", "transformers", "math-verify"}


def test_a_revision_is_the_one_that_servers_give(tiny_warmup: Path) -> None:
    from rlt_service.revision import model_revision
    from rlt_trainer.revision import folder_revision

    assert folder_revision(tiny_warmup) == model_revision(tiny_warmup)


def test_samples_depend_on_their_seeds_and_not_on_their_batch(make: Make, questions: Path) -> None:
    columns = ["completion", "tokens", "truncated"]
    few = {"path": str(questions), "limit": 4}
    alone = samples(run(make("alone", data=few, batch_size=1)))
    together = samples(run(make("together", data=few, batch_size=64)))
    odd = samples(run(make("odd", data=few, batch_size=7)))
    other = samples(run(make("other", data=few, seed=1)))
    assert alone[columns].equals(together[columns])
    assert alone[columns].equals(odd[columns])
    assert (alone.completion != other.completion).mean() > 0.5
    assert alone.groupby("problem").completion.nunique().mean() > 2


def test_top_p_cuts_the_unlikely(make: Make) -> None:
    greedy = samples(run(make("greedy", temperature=0, samples=1, ks=[1])))
    cut = samples(run(make("cut", top_p=1e-6, samples=1, ks=[1])))
    assert list(greedy.completion) == list(cut.completion)


def test_a_budget_and_the_context_truncate(make: Make, questions: Path) -> None:
    rows = samples(run(make(max_new_tokens=3)))
    assert (rows.tokens == 3).all()
    assert rows.truncated.all()
    assert rows.given.isna().all()
    assert results(make().output)["data"]["counts"]["no_answer"] == COUNT * SAMPLES
    long = questions.with_name("long.jsonl")
    long.write_text(json.dumps({"question": "Q 1 " + "A +1 " * 125, "answer": "1"}) + "\n")  # 253 of 256 tokens
    rows = samples(run(make("long", data={"path": str(long)})))
    assert (rows.tokens <= 3).all()


def test_parts_are_shares_and_only_whole_answers_pass(make: Make, tmp_path: Path) -> None:
    exact = samples(run(make("exact")))
    doubled = tmp_path / "doubled.jsonl"
    rows = [{"question": each.question, "answer": f"{each.answer} 1"} for each in problems(COUNT, seed=5)]
    doubled.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    folder = run(make("parts", data={"path": str(doubled)}, match="parts"))
    found = results(folder)["data"]
    assert found["pass_at"]["1"]["value"] == 0
    assert found["share_right"]["value"] == pytest.approx(exact.right.mean() / 2)
    assert (samples(folder).share == exact.right / 2).all()


class Killed(BaseException):
    pass


def test_a_killed_evaluation_goes_on_to_the_same_result(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(make("whole", batch_size=8))
    config = make("killed", batch_size=8)
    keep = Finished.keep

    def dies(self: Finished, place: int, sample: Sample) -> None:
        if len(self.samples) == 20:
            raise Killed
        keep(self, place, sample)

    with monkeypatch.context() as patched:
        patched.setattr(Finished, "keep", dies)
        with pytest.raises(Killed):
            run(config)
    file = config.output / "finished.jsonl"
    assert not (config.output / "results.json").exists()
    file.write_bytes(file.read_bytes() + b'{"place": 30, "te')  # a line that was cut off
    drawn: list[int] = []
    monkeypatch.setattr(Finished, "keep", lambda self, place, sample: (drawn.append(place), keep(self, place, sample)))
    run(config)
    assert len(drawn) == COUNT * SAMPLES - 20
    assert samples(config.output).equals(samples(whole))
    assert results(config.output) == results(whole)
    drawn.clear()
    run(config)  # once more: nothing is left to do
    assert drawn == []
    assert results(config.output) == results(whole)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"temperature": 0.8}, {"data": {"limit": 3}}, {"model": {}}])
def test_samples_of_another_evaluation_are_not_mixed_in(
    make: Make, changed: dict[str, Any], questions: Path, tiny_base: Path
) -> None:
    run(make())
    if "data" in changed:
        changed = {"data": {"path": str(questions), "limit": 3}}
    if "model" in changed:
        changed = {"model": {"name": str(tiny_base), "dtype": "float32"}}
    with pytest.raises(BadConfig, match="another evaluation"):
        run(make(**changed))


def test_another_match_judges_the_same_samples(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = results(run(make()))
    monkeypatch.setattr(Finished, "keep", lambda *_: pytest.fail("it is there"))
    mathematical = results(run(make(match="math")))
    assert mathematical["data"]["match"] == "math"
    assert mathematical["data"]["pass_at"] == exact["data"]["pass_at"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.path", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--data.path", "EMPTY"], "EMPTY.jsonl"),
        (["--data.path", "WORDS"], "row 1"),
        (["--data.columns", '{"question": "title"}'], "title"),
        (["--texts.format", "minimal"], "minimal"),
        (["--match", "countdown"], "44 19 35 = 98"),
        (["--model.name", "/nowhere"], "/nowhere"),
        (["--benchmarks", '["aime24"]'], "rlt-trainer[benchmarks]"),
        (["--data.path", "LONG"], "no room"),
    ],
)
def test_what_cannot_be_evaluated_ends_in_one_line(
    flags: list[str],
    said: str,
    questions: Path,
    tiny_warmup: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = {"EMPTY": "", "WORDS": '{"question": "Who?", "answer": "1"}\n'}
    bad["LONG"] = json.dumps({"question": "Q 1 " + "A +1 " * 200, "answer": "1"}) + "\n"
    for name, text in bad.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    flags = [str(tmp_path / f"{flag}.jsonl") if flag in bad else flag for flag in flags]
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    base = ["--output", str(tmp_path / "out"), "--model.name", str(tiny_warmup), "--data.path", str(questions)]
    told = [*base, "--texts.format", "mini", "--match", "exact", "--cpu", *flags]
    assert main(["evaluate", *told]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("rlt-trainer evaluate: ")]
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": None}, "`data` or `benchmarks`"),
        ({"ks": [1, 4]}, "pass@4"),
        ({"ks": [0]}, "greater than 0"),
        ({"temperature": 0}, "greedy"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make: Make, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**changed)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_for_good_goes_on(make: Make, tmp_path: Path) -> None:
    """SIGKILL, once some samples are there, in the middle of a batch."""
    whole = run(make("whole", batch_size=2))
    config = make("killed", batch_size=2)
    file = tmp_path / "evaluate.json"
    file.write_text(config.model_dump_json())
    argv = [sys.executable, "-c", KILLED, str(file)]
    killed = subprocess.run(argv, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (config.output / "finished.jsonl").read_bytes().count(b"\n") == 1 + 5
    assert not (config.output / "results.json").exists()
    run(config)
    assert samples(config.output).equals(samples(whole))
    assert results(config.output) == results(whole)
