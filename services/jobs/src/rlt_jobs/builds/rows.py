"""What a worker made as rows of the tables: the columns that are copied, with their types, and their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from rlt_jobs.builds.outcomes import Outcome, Scored, Texts

__all__ = ["OUTCOME", "SAMPLE", "SCORE", "SCORED", "SPOOL", "Columns", "sample", "score", "spooled", "whole"]

Columns = dict[str, str]
"""Name and type, in order. Values of an enum travel as their text."""
Compress = Callable[[Texts], bytes]

_KEY: Columns = {"build_id": "int8", "problem": "int4", "sample_idx": "int2"}
OUTCOME: Columns = {
    "try": "int2",
    "gen_status": "text",
    "gen_reason": "text",
    "finish_reason": "text",
    "policy_revision": "text",
    "prompt_tokens": "int4",
    "completion_tokens": "int4",
    "request_key": "bytea",
    "flags": "text[]",
}
SCORED: Columns = {
    "status": "text",
    "reason": "text",
    **dict.fromkeys(("reward", "ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max", "format"), "float8"),
    **dict.fromkeys(("n_answer", "n_think", "student_tokens"), "int4"),
    **dict.fromkeys(("baseline", "unmapped"), "float8"),
    "flags": "text[]",
}
SAMPLE: Columns = {**_KEY, **OUTCOME}
SCORE: Columns = {**_KEY, "scorer_id": "int8", "gen_status": "text", **SCORED}
SPOOL: Columns = {"build_id": "int8", "problem": "int4", "sample_idx": "int4", "shard_id": "int8", "texts": "bytea"}

_scored = attrgetter(*SCORED)


def sample(build_id: int, outcome: Outcome) -> Sequence[Any]:
    return (build_id, outcome.problem, outcome.sample_idx, *_outcome(outcome))


def score(build_id: int, outcome: Outcome, scorer_id: int) -> Sequence[Any]:
    """`outcome` has a score."""
    assert outcome.score is not None
    return (build_id, outcome.problem, outcome.sample_idx, scorer_id, outcome.gen_status, *_score(outcome.score))


def spooled(build_id: int, outcome: Outcome, shard_id: int, compress: Compress) -> Sequence[Any]:
    """`outcome` has texts."""
    assert outcome.texts is not None
    return (build_id, outcome.problem, outcome.sample_idx, shard_id, compress(outcome.texts))


def whole(outcome: Outcome, compress: Compress) -> Sequence[Any]:
    """All of it in one row: the key without the build, the outcome, the score, the texts."""
    scores = (None,) * len(SCORED) if outcome.score is None else _score(outcome.score)
    texts = None if outcome.texts is None else compress(outcome.texts)
    return (outcome.problem, outcome.sample_idx, *_outcome(outcome), *scores, texts)


def _outcome(outcome: Outcome) -> Sequence[Any]:
    return (
        outcome.try_,
        outcome.gen_status,
        _plain(outcome.gen_reason),
        _plain(outcome.finish_reason),
        _plain(outcome.policy_revision),
        outcome.prompt_tokens,
        outcome.completion_tokens,
        outcome.request_key,
        outcome.flags,
    )


def _score(scored: Scored) -> Sequence[Any]:
    status, reason, *rest = _scored(scored)
    return (status, _plain(reason), *rest)


def _plain(text: str | None) -> str | None:
    """A server's words without the one character that Postgres cannot keep."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if text else text
