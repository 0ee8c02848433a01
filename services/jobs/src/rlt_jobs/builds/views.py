"""Rows of the tables as the wire types."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import BuildState, ShardState
from rlt_client.schemas.common import GenStatus, Problem, ScoreStatus
from rlt_jobs.builds.browse import BuildRow
from rlt_jobs.builds.models import Build, Event, Sample, Score, Scorer
from rlt_jobs.builds.repository import Totals

__all__ = ["build_view", "event_view", "sample_view", "scorer_view"]

MEASURED = (
    *("reward", "ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max", "format"),
    *("n_answer", "n_think", "student_tokens"),
)
NONE_YET = Totals(0, {}, 0, 0, 0, 0, 0.0, 0.0, {})


def build_view(row: BuildRow, totals: Totals | None, note: str | None) -> wire.Build:
    build, found = row.build, totals or NONE_YET
    tokens, eta = _pace(build, found)
    source = {"upload": str(build.upload_id)} if build.upload_id else {}
    return wire.Build(
        id=build.id,
        dataset=row.dataset,
        kind=build.kind,
        state=build.state,
        n=build.n,
        priority=build.priority,
        request={**build.spec, **source},
        counts=_counts(build, found),
        tokens_per_second=tokens,
        eta_seconds=eta,
        scorer=scorer_view(row.scorer),
        version=row.version,
        error=Problem.model_validate(build.error) if build.error else None,
        note=(build.stalled or note) if build.state is BuildState.running else None,
        stalled_since=build.stalled_at if build.state is BuildState.running else None,
        of_build=build.of_build_id,
        created_at=build.created_at,
        started_at=build.started_at,
        finished_at=build.finished_at,
    )


def _counts(build: Build, found: Totals) -> wire.BuildCounts:
    made = sum(found.gen.values())
    samples = _asked(build, found)
    return wire.BuildCounts(
        problems=build.problems,
        samples=samples,
        missing=samples - made,
        gen={status: found.gen.get(status.value, 0) for status in GenStatus},
        score={
            ScoreStatus.scored: found.scored,
            ScoreStatus.score_error: found.score_error,
            ScoreStatus.skipped: made - found.scored - found.score_error,
        },
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        bad_rows=build.bad_rows,
        duplicates=build.duplicates,
        shards={state: found.shards.get(state.value, 0) for state in ShardState},
    )


def _asked(build: Build, found: Totals) -> int:
    """Samples that the build makes, or scores again: the complete ones of another build."""
    return build.problems * build.n if build.of_build_id is None else found.total


def _pace(build: Build, found: Totals) -> tuple[float | None, float | None]:
    """(tokens a second, seconds left): of the running leases, else on average since the start."""
    if build.started_at is None:
        return None, None
    made = sum(found.gen.values())
    elapsed = ((build.finished_at or datetime.now(UTC)) - build.started_at).total_seconds()
    if build.state is BuildState.running and found.samples_per_s > 0:
        tokens, samples = found.tokens_per_s, found.samples_per_s
    elif made and elapsed > 0:
        tokens, samples = found.completion_tokens / elapsed, made / elapsed
    else:
        return None, None
    missing = _asked(build, found) - made
    return tokens, missing / samples if build.state is BuildState.running else None


def scorer_view(scorer: Scorer | None) -> wire.ScorerRef | None:
    if scorer is None:
        return None
    return wire.ScorerRef(
        student=scorer.student,
        student_revision=scorer.student_revision,
        teacher_source=scorer.teacher_source,
        teacher_revision=scorer.teacher_revision,
        format_hash=scorer.format_hash,
        dtype=scorer.dtype,
        engine=scorer.engine,
    )


def sample_view(sample: Sample, score: Score | None, texts: dict[str, Any]) -> wire.SampleRow:
    """`texts`: question, answer, explanation and completion, where they were asked for."""
    return wire.SampleRow(
        problem=sample.problem,
        sample=sample.sample_idx,
        try_=sample.try_,
        gen_status=sample.gen_status,
        gen_reason=sample.gen_reason,
        finish_reason=sample.finish_reason,
        policy_revision=sample.policy_revision,
        prompt_tokens=sample.prompt_tokens,
        completion_tokens=sample.completion_tokens,
        score_status=score.status if score else ScoreStatus.skipped,
        score_reason=score.reason if score else None,
        flags=sorted({*sample.flags, *(score.flags if score else [])}),
        **{name: getattr(score, name, None) for name in MEASURED},
        **texts,
    )


def event_view(event: Event) -> wire.BuildEvent:
    return wire.BuildEvent(id=event.id, at=event.at, kind=event.kind, line=event.line, detail=event.detail)
