"""The page as one file: the questions between a head that explains them and the style and script that they need."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template

from rlt_client.aio import ScoredItem
from rlt_client.report.cards import label, question_block
from rlt_client.report.head import controls, head, several_sources
from rlt_client.report.markup import Markup, el, join
from rlt_client.report.model import Question, questions
from rlt_client.report.parts import amount
from rlt_client.report.scale import style
from rlt_client.schemas.reward import RewardItem, RewardResponse

__all__ = ["page"]


def page(
    items: Sequence[RewardItem], scores: RewardResponse | Sequence[ScoredItem], *, title: str = "Scored explanations"
) -> str:
    """One HTML page on scored items: it needs no other file, no network and no server.

    Items with the same question, answer and system message stand side by side, best first. Tokens are coloured where
    the scores carry token detail (`detail="tokens"`). The same arguments give the same page, byte for byte.

    Args:
        items: what was sent.
        scores: what came back: a whole reply, or results of `AsyncRewardClient.score_item`, in the order of `items`.
        title: the page's.

    Raises:
        ValueError: not one score for each item.
    """
    scored = _results(scores) if isinstance(scores, RewardResponse) else scores
    script = _asset("page.js")
    return Template(_asset("page.html")).substitute(
        title=join([title]),
        style=_asset("page.css") + style(),
        body=_body(questions(items, scored), title),
        script=script,
        digest=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _results(reply: RewardResponse) -> list[ScoredItem]:
    source = (reply.student, reply.teacher, reply.format, reply.spec, reply.dtype, reply.engine)
    return [ScoredItem(score, *source) for score in reply.items]


@cache
def _asset(name: str) -> str:
    return files("rlt_client.report").joinpath(name).read_text(encoding="utf-8")


def _body(asked: list[Question], title: str) -> Markup:
    candidates = sorted((each for question in asked for each in question.candidates), key=lambda each: each.number)
    sources = several_sources(candidates)
    sections = [question_block(each, of=len(asked), sources=sources) for each in asked]
    index = _index(asked) if len(asked) > 1 else None
    return join([head(candidates, asked, title), controls(candidates), index, el("main", *sections)])


def _index(asked: list[Question]) -> Markup:
    links = [el("li", el("a", _first_line(each), href=f"#q{each.number}"), " ", _outcome(each)) for each in asked]
    return el("nav", el("ol", *links), aria_label="questions")


def _first_line(question: Question) -> str:
    return question.item.question.strip().partition("\n")[0] or "(empty question)"


def _outcome(question: Question) -> Markup:
    top = question.candidates[0]
    choice = f"best {label(top)}, " if question.best is not None else ""
    return el("span", f"{choice}{amount(top.score.reward)}", class_="quiet")
