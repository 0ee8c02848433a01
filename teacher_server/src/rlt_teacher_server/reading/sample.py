"""One whole sample: its text, how it ended, and what a reader should know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, text_of_completion
from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import ExplanationFlag, Leak
from rlt_client.tags import breaking_tags, spells_any
from rlt_teacher_server.reading.leaks import find_leaks
from rlt_teacher_server.reading.loops import find_loop

__all__ = ["Reading", "read_sample"]

LONGEST_TAG: Final = 64  # tokens of a closing tag and what engines add after it; shipped tags have 1 to 11


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sample holds."""

    text: str | None
    """The explanation; None unless `gen_status` is complete."""
    completion: str
    """Everything emitted, the closing tag included; without the end-of-turn token where the tag is missing."""
    closed: bool
    gen_status: GenStatus
    """complete, truncated or malformed."""
    flags: list[ExplanationFlag]
    leaks: list[Leak]
    """Places in `text`, or in `completion` where there is no `text`."""


def read_sample(codec: TextCodec, format: Format, token_ids: Sequence[int], finish_reason: str) -> Reading:
    """Takes some 5 ms for 16,000 tokens, most of it decoding."""
    completion = codec.decode(token_ids)
    read = text_of_completion(format, completion)
    inside = _before_the_tag(codec, format, token_ids) if read.closed else _without_end_of_turn(codec, token_ids)
    if not read.closed:
        completion = codec.decode(inside)
        read = text_of_completion(format, completion)
    stray = spells_any(read.text, breaking_tags(codec, format))
    status = _status(read.closed, stray, finish_reason)
    text = read.text if status is GenStatus.complete else None
    leaks = find_leaks(format, completion if text is None else text)
    found = {
        ExplanationFlag.refers_to_given_solution: bool(leaks),
        ExplanationFlag.repetition: find_loop(inside) is not None,
        ExplanationFlag.stray_tags: stray or spells_any(read.text, (*format.delimiters, *codec.specials)),
        ExplanationFlag.empty: not read.text.strip(),
    }
    return Reading(text, completion, read.closed, status, [flag for flag, true in found.items() if true], leaks)


def _without_end_of_turn(codec: TextCodec, ids: Sequence[int]) -> Sequence[int]:
    return ids[:-1] if ids and ids[-1] == codec.eos_token_id else ids


def _before_the_tag(codec: TextCodec, format: Format, ids: Sequence[int]) -> Sequence[int]:
    """The ids of a closed sample, less the last ones, which hold the tag that it was ended by."""
    for size in range(1, min(LONGEST_TAG, len(ids)) + 1):
        if format.teacher.close in codec.decode(ids[-size:]):
            return ids[:-size]
    return ids


def _status(closed: bool, stray: bool, finish_reason: str) -> GenStatus:
    if closed:
        return GenStatus.malformed if stray else GenStatus.complete
    return GenStatus.truncated if finish_reason == "length" else GenStatus.malformed
