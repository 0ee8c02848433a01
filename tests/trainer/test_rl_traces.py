"""Traces between turns: complete explanations in the problems' order, kept as they come."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlt_client.prompts import TextCodec, content, literal
from rlt_trainer.config.sections import Model, TextRole
from rlt_trainer.errors import Interrupted, StalePolicy, TrainingError
from rlt_trainer.models import load_codec
from rlt_trainer.rl.engines.base import Ask, Completion, Failed, Published
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rollout import sample_seed
from rlt_trainer.rl.traces import Explainer, Outcome
from rlt_trainer.stopping import Stop
from rlt_trainer.texts import Writer, named_format
from rlt_trainer.tiny import good_trace, make_tokenizer, problems

WEIGHTS = Published(Path("step-000002"), lora=False, revision="mine")


class ScriptedEngine:
    """Explains as it is told, by the seed of each place; keeps what a real engine keeps to: one answer an ask."""

    def __init__(self, writer: Writer, explained: list[Problem], revision: str = "mine") -> None:
        self._writer = writer
        self._explained = explained
        self._revision = revision
        self.asked: list[int] = []
        self.cut_off, self.refused = 1, 3
        self.silent_from = len(explained)
        self.completions: dict[int, list[int]] = {}

    async def generate(self, asks: Sequence[Ask], weights: Published) -> list[Completion | Failed]:
        assert weights == WEIGHTS
        return [await self._answer(ask) for ask in asks]

    async def _answer(self, ask: Ask) -> Completion | Failed:
        place = next(each for each in range(len(self._explained)) if sample_seed(0, 2, each) == ask.seed)
        if place == self.silent_from:
            os.kill(os.getpid(), signal.SIGTERM)
        if place >= self.silent_from:
            await asyncio.Event().wait()
        self.asked.append(place)
        if place == self.refused:
            return Failed("too_long", "no room")
        tokens = self.completions.get(place, self._writer.text(TextRole.teacher, *texts(place)).completion_ids)
        tokens = tokens[:-2] if place == self.cut_off else tokens  # the closing tag, and the end
        return Completion(tokens, [0.0] * len(tokens), "stop", self._revision)

    async def publish(self, folder: Path, *, lora: bool) -> Published:
        raise AssertionError("published already")

    async def aclose(self) -> None: ...


def texts(place: int) -> tuple[str, str, str]:
    drawn = problems(6)[place]
    return drawn.question, drawn.answer, good_trace(drawn)


@pytest.fixture(scope="module")
def writer(tiny_base: Path) -> Writer:
    return Writer(load_codec(Model(name=str(tiny_base))), named_format("mini", None))


def asked(writer: Writer) -> list[Problem]:
    return [
        Problem(each.question, each.answer, None, writer.prompt(TextRole.teacher, each.question, each.answer))
        for each in problems(6)
    ]


@pytest.fixture
def explained(writer: Writer) -> list[Problem]:
    return asked(writer)


@pytest.fixture
def engine(writer: Writer, explained: list[Problem]) -> ScriptedEngine:
    return ScriptedEngine(writer, explained)


@pytest.fixture
def explainer(engine: ScriptedEngine, writer: Writer) -> Explainer:
    return Explainer(engine, writer, weights=WEIGHTS, seed=0, step=2)


async def test_complete_ones_in_order(
    engine: ScriptedEngine, explainer: Explainer, explained: list[Problem], tmp_path: Path
) -> None:
    file = tmp_path / "traces.jsonl"
    outcome = await explainer.write(explained, file, Stop())
    assert outcome == Outcome(4, {"incomplete": 1, "too_long": 1})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    expected = [texts(place) for place in range(6) if place not in (engine.cut_off, engine.refused)]
    assert [(row["question"], row["answer"], row["explanation"]) for row in rows] == expected
    assert not file.with_suffix(".part.jsonl").exists()


async def test_what_no_student_can_be_distilled_on_is_left_out(tmp_path: Path) -> None:
    """`distill` refuses rows without an explanation, and a tag inside one would end the student's thoughts."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<cut>"]})
    codec = TextCodec(tokenizer)
    writer = Writer(codec, named_format("mini", None))
    explained = asked(writer)
    engine = ScriptedEngine(writer, explained)
    for place, inside in {0: [content(" ")], 2: [content("A 1 "), literal("<cut>"), content("B 2 ")]}.items():
        engine.completions[place] = codec.encode([*inside, literal(writer.format.teacher.close)]).ids
    explainer = Explainer(engine, writer, weights=WEIGHTS, seed=0, step=2)
    outcome = await explainer.write(explained, tmp_path / "traces.jsonl", Stop())
    assert outcome == Outcome(2, {"empty": 1, "incomplete": 1, "malformed": 1, "too_long": 1})


async def test_what_was_explained_before_is_kept(
    engine: ScriptedEngine, explainer: Explainer, explained: list[Problem], tmp_path: Path
) -> None:
    """Not what other weights wrote, and not a line that was cut off."""
    row = {"question": "Q", "answer": "1", "explanation": "kept"}
    entries = [{"place": 0, "revision": "mine", "row": row}, {"place": 2, "revision": "theirs", "row": row}]
    lines = [json.dumps(each) for each in entries]
    (tmp_path / "traces.part.jsonl").write_text("\n".join(lines) + '\n{"place": 4, "revis')
    await explainer.write(explained, tmp_path / "traces.jsonl", Stop())
    assert sorted(engine.asked) == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "traces.jsonl").read_text().splitlines()[0]) == row


async def test_a_signal_keeps_what_was_explained(
    engine: ScriptedEngine, explainer: Explainer, explained: list[Problem], tmp_path: Path
) -> None:
    """Though the engine does not answer."""
    file = tmp_path / "traces.jsonl"
    engine.silent_from = 4
    with Stop() as stop, pytest.raises(Interrupted):
        await explainer.write(explained, file, stop)
    assert engine.asked == [0, 1, 2, 3]
    engine.silent_from = 6
    await explainer.write(explained, file, Stop())
    assert engine.asked == [0, 1, 2, 3, 4, 5]
    assert len(file.read_text().splitlines()) == 4


async def test_other_weights_are_refused(writer: Writer, explained: list[Problem], tmp_path: Path) -> None:
    stale = Explainer(ScriptedEngine(writer, explained, "theirs"), writer, weights=WEIGHTS, seed=0, step=2)
    with pytest.raises(StalePolicy, match="with weights theirs, not with mine"):
        await stale.write(explained, tmp_path / "traces.jsonl", Stop())


async def test_none_complete(
    engine: ScriptedEngine, explainer: Explainer, explained: list[Problem], tmp_path: Path
) -> None:
    engine.cut_off, engine.refused = 0, 1
    with pytest.raises(TrainingError, match=r"on none of 2 explanations: \{'incomplete': 1, 'too_long': 1\}"):
        await explainer.write(explained[:2], tmp_path / "traces.jsonl", Stop())
