"""One whole sample: its text, how it ended, and what a reader should know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, read_completion
from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import ExplanationFlag, Leak
from rlt_teacher_server.reading.leaks import find_leaks
from rlt_teacher_server.reading.loops import find_loop
from rlt_teacher_server.reading.tags import breaking_tags, spells_any

__all__ = ["Reading", "read_sample"]


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
    """Decodes: some milliseconds for 16,000 tokens."""
    read = read_completion(codec, format, token_ids)
    completion = codec.decode(token_ids) if read.closed else read.text.removeprefix(format.teacher.held)
    stray = spells_any(read.text, breaking_tags(codec, format))
    status = _status(read.closed, stray, finish_reason)
    text = read.text if status is GenStatus.complete else None
    leaks = find_leaks(format, completion if text is None else text)
    found = {
        ExplanationFlag.refers_to_given_solution: bool(leaks),
        ExplanationFlag.repetition: find_loop(token_ids[: read.n_inside]) is not None,
        ExplanationFlag.stray_tags: stray or spells_any(read.text, (*format.delimiters, *codec.specials)),
        ExplanationFlag.empty: not read.text.strip(),
    }
    return Reading(text, completion, read.closed, status, [flag for flag, true in found.items() if true], leaks)


def _status(closed: bool, stray: bool, finish_reason: str) -> GenStatus:
    if closed:
        return GenStatus.malformed if stray else GenStatus.complete
    return GenStatus.truncated if finish_reason == "length" else GenStatus.malformed
