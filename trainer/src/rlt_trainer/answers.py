"""Whether a student's text gives the right answer."""

from __future__ import annotations

from collections.abc import Sequence

from rlt_client.formats import Format, FormatError
from rlt_client.prompts import TextCodec
from rlt_trainer.config.evaluate import Match

__all__ = ["check_right_answer", "given_answer", "text_of", "verdict"]


def text_of(codec: TextCodec, format: Format, ids: Sequence[int]) -> str:
    """The text of sampled ids, without the special tokens at its end that the format does not itself write."""
    body, end = list(ids), format.student.after_answer
    specials = set(codec.tokenizer.all_special_ids)
    while body and body[-1] in specials and codec.decode(body[-1:]).strip() not in end:
        body.pop()
    return codec.decode(body)


def given_answer(format: Format, completion: str) -> str | None:
    """The answer in what a student wrote after its prompt; None where it gave none, or not in the format."""
    try:
        _, answer = format.parse(f"{format.student.open}{completion}")
    except FormatError:
        return None
    return answer


def check_right_answer(match: Match, right: str) -> None:
    """Raises `BadData` for one that nothing can be compared with."""
    if match is Match.countdown:
        verdict(match, "", right)


def verdict(match: Match, given: str | None, right: str) -> float | None:
    """1 for a right answer, 0 for a wrong or missing one, the share with `parts`; None: comparing took too long.

    Raises:
        BadData: a right answer that is none of countdown.
    """
    if given is None:
        return 0.0
    match match:
        case Match.exact:
            return float(given.split() == right.split())
        case Match.parts:
            return _share_in_place(given.split(), right.split())
        case Match.countdown:
            from rlt_trainer.evaluate.countdown import solves

            return float(solves(given, right))
        case Match.math:
            from rlt_trainer.evaluate.mathematics import equal

            same = equal(given, right)
            return None if same is None else float(same)


def _share_in_place(given: Sequence[str], right: Sequence[str]) -> float:
    """Of as many words as the longer one has: what is written besides counts as wrong."""
    pairs = zip(given, right, strict=False)
    return sum(one == other for one, other in pairs) / max(len(given), len(right), 1)
