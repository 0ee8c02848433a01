"""The coloured strip of token scores, and what is shown of a build."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from rlt_client.cli.strip import ANSWER, KL, Scale, Strip, TokenStrips, legend
from rlt_client.schemas.reward import AnswerTokens, ThinkTokens, TokenScores


def rendered(thing, *, width: int = 80, colour: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=colour, color_system="truecolor" if colour else None).print(thing)
    return file.getvalue()


@pytest.mark.parametrize("scale", [KL, ANSWER])
def test_a_scale_has_a_colour_and_a_label_for_every_value(scale: Scale) -> None:
    assert list(scale.bounds) == sorted(scale.bounds)
    assert len(scale.colours) == len(scale.labels) == len(scale.bounds) + 1


@pytest.mark.parametrize(
    ("scale", "value", "place"),
    [(KL, -3.0, 0), (KL, 0.0, 1), (KL, 0.1, 2), (KL, 9.0, 5), (ANSWER, -9.0, 0), (ANSWER, 0.0, 4)],
)
def test_a_value_takes_the_colour_of_its_range(scale: Scale, value: float, place: int) -> None:
    assert scale.style(value).endswith(scale.colours[place])


def test_each_token_stands_over_its_value() -> None:
    shown = rendered(Strip(["36", "A", "explanation"], [0.0, -0.5, 2.25], KL))
    first, second = shown.splitlines()
    assert first.split() == ["36", "A", "explanation"]
    assert second.split() == ["0.00", "-0.50", "+2.25"]
    assert second.index("+2.25") >= first.index("explanation")


def test_a_long_strip_wraps_to_the_width() -> None:
    shown = rendered(Strip([f"t{i}" for i in range(60)], [0.5] * 60, KL), width=40)
    assert max(map(len, shown.splitlines())) <= 40
    assert re.findall(r"t\d+", shown) == [f"t{i}" for i in range(60)]


def test_very_many_tokens_are_shown_without_numbers() -> None:
    assert "+0.50" not in rendered(Strip(["t"] * 500, [0.5] * 500, KL))


def test_white_space_is_made_visible() -> None:
    assert rendered(Strip(["\n\n", " ", " a"], [0.0, 0.0, 0.0], KL)).splitlines()[0].split() == ["⏎⏎", "·", "a"]


def test_colours_follow_the_values() -> None:
    shown = rendered(Strip(["a", "b"], [0.0, 5.0], KL), colour=True)
    assert "48;2;199;233;192" in shown  # #c7e9c0, about 0
    assert "48;2;226;86;47" in shown  # #e2562f, above 2


def test_without_a_kl_term_think_tokens_are_shown_by_the_student() -> None:
    scores = TokenScores(
        answer=AnswerTokens(token_ids=[1], texts=["17"], logprobs=[-0.01]),
        think=ThinkTokens(token_ids=[2], texts=["36"], student_logprobs=[-2.0]),
    )
    assert rendered(TokenStrips(scores)).splitlines()[0].rstrip() == "think  1 token, log-prob under the student"
    with_kl = scores.model_copy(update={"think": scores.think.model_copy(update={"kl": [0.4]})})
    assert "KL" in rendered(TokenStrips(with_kl)).splitlines()[0]


def test_markup_in_a_token_is_shown_as_it_is() -> None:
    assert "[red]x" in rendered(Strip(["[red]x"], [0.0], KL))


def test_the_legend_names_both_scales() -> None:
    first, second = rendered(legend(), width=200).splitlines()
    assert first.startswith("think")
    assert second.startswith("answer")
