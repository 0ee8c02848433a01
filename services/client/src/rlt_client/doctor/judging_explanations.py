"""What one explanation with its score tells: the engine, its log-probs, and the link from teacher to reward server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rlt_client.doctor.facts import Facts
from rlt_client.doctor.findings import Finding, ok, warning, wrong
from rlt_client.errors import APIError, Overloaded, RLTError
from rlt_client.schemas.common import Problem
from rlt_client.schemas.explain import ExplainResponse, Explanation

__all__ = ["explanation"]

KEY: Final = ("unauthorized", "unknown_key", "missing_scope", "local_only")
SCORING: Final = {
    "format_mismatch": (
        "teacher and reward server have different prompt formats of one name",
        "give both the same RLT_TEACHER_FORMATS and RLT_REWARD_FORMATS",
    ),
    "teacher_logprobs_unusable": (
        "the reward server cannot use the teacher's tokens: their tokenizers differ",
        "give the reward server a student with the teacher's tokenizer, or a hosted teacher (RLT_REWARD_TEACHER)",
    ),
    "kl_unavailable": (
        "the reward server got no log-probs of the teacher and hosts no teacher",
        "let the engine give log-probs, or host a teacher (RLT_REWARD_TEACHER)",
    ),
    "untokenizable": (
        "the student's tokenizer cannot represent the teacher's texts",
        "give the reward server a student whose tokenizer covers them",
    ),
    "out_of_memory": ("the reward server's device ran out of memory", "lower RLT_REWARD_MAX_BATCH_TOKENS"),
}


def explanation(facts: Facts) -> Iterator[Finding]:
    found = facts.explained
    if isinstance(found, RLTError):
        yield _not_made(found)
    elif found is not None:
        yield from _made(found, facts)


def _not_made(error: RLTError) -> Finding:
    if isinstance(error, APIError) and error.type == "scoring_not_configured":
        return wrong("stack", "the teacher server knows no reward server", "set RLT_TEACHER_REWARD_URL")
    if isinstance(error, Overloaded):
        return warning("teacher", f"too busy to try an explanation: {error}", "try again later, or add engines")
    return wrong("teacher", f"an explanation cannot be made: {error}", "look at the logs of the teacher and its engine")


def _made(reply: ExplainResponse, facts: Facts) -> Iterator[Finding]:
    if not reply.explanations or reply.explanations[0].completion is None:
        error = reply.explanations[0].error if reply.explanations else None
        yield wrong("teacher", f"the engine makes no explanation: {_said(error)}", "look at the engine's log")
        return
    one = reply.explanations[0]
    yield from _logprobs(one, reply.engine)
    if facts.with_score:
        yield from _score(one)
    yield from _formats(reply, facts)


def _logprobs(one: Explanation, engine: str | None) -> Iterator[Finding]:
    if one.teacher is None or not one.teacher.logprobs:
        todo = "start vLLM without options that turn log-probs off; the KL term of the reward needs them"
        yield wrong("teacher", f"the engine ({engine or 'unknown'}) gives no log-probs", todo)
    else:
        yield ok("teacher", f"{engine or 'the engine'} explains, with log-probs")


def _score(one: Explanation) -> Iterator[Finding]:
    score = one.score
    if score is None:
        yield wrong("stack", "the explanation was not scored", "set RLT_TEACHER_REWARD_URL to the reward server")
    elif score.error is None:
        yield ok("stack", "the teacher server has its explanations scored")
    elif score.error.type == "scorer_unavailable":
        yield _link(score.error)
    else:
        says, todo = SCORING.get(score.error.type, ("the explanation cannot be scored", "look at the reward's log"))
        yield wrong("stack", f"{says} ({_said(score.error)})", todo)


def _link(error: Problem) -> Finding:
    """The reward server does not do what the teacher asks of it; a caller's own key has no part in that."""
    if any(kind in (error.detail or "") for kind in KEY):
        todo = "RLT_TEACHER_REWARD_KEY must be a key of the reward server's with the scope reward"
        return wrong("stack", f"the reward server refuses the teacher's key ({error.detail})", todo)
    todo = "see that RLT_TEACHER_REWARD_URL is right, and reachable from where the teacher server runs"
    return wrong("stack", f"the teacher server does not get scores ({error.title}: {error.detail})", todo)


def _formats(reply: ExplainResponse, facts: Facts) -> Iterator[Finding]:
    """The teacher's format, as the reward server has it."""
    if facts.formats is None:
        return
    ours = next((each for each in facts.formats.formats if each.name == reply.format.name), None)
    if ours is None:
        says = f"the reward server does not know the teacher's prompt format {reply.format.name}"
        yield wrong("stack", says, "give it the file: RLT_REWARD_FORMATS")
    elif ours.hash != reply.format.hash:
        says, todo = SCORING["format_mismatch"]
        yield wrong("stack", f"{says}: {reply.format.name}", todo)
    elif not ours.available:
        says = f"the reward server's models cannot take the prompt format {reply.format.name}: {ours.reason}"
        yield wrong("stack", says, "choose another format on both sides, or another student")
    elif facts.formats.default != reply.format.name:
        says = f"the defaults differ: teacher {reply.format.name}, reward server {facts.formats.default}"
        todo = "set RLT_TEACHER_FORMAT and RLT_REWARD_FORMAT alike: requests that name none get different ones"
        yield warning("stack", says, todo)


def _said(problem: Problem | None) -> str:
    return "no reason given" if problem is None else f"{problem.type}: {problem.detail or problem.title}"
