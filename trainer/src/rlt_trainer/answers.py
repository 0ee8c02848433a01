"""Whether a student's text gives the right answer."""

from __future__ import annotations

from rlt_client.formats import Format, FormatError
from rlt_trainer.config.evaluate import Match

__all__ = ["given_answer", "share_right"]


def given_answer(format: Format, completion: str) -> str | None:
    """The answer in what a student wrote after its prompt; None where it gave none, or not in the format."""
    try:
        _, answer = format.parse(f"{format.student.open}{completion}")
    except FormatError:
        return None
    return answer


def share_right(match: Match, given: str | None, right: str) -> float:
    """1 for a right answer, 0 for a wrong or missing one; with `parts`, the share of words that are right."""
    if given is None:
        return 0.0
    match match:
        case Match.exact:
            return float(given.split() == right.split())
        case Match.parts:
            wanted = right.split()
            pairs = zip(given.split(), wanted, strict=False)
            return sum(one == other for one, other in pairs) / len(wanted)
        case Match.math:
            return float(_equal_as_mathematics(given, right))


def _equal_as_mathematics(given: str, right: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(right), parse(given)))
