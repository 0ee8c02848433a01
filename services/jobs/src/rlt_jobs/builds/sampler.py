"""One sample: an explanation from the teacher, straight on to the reward server, into one record.

What goes wrong is sorted here, once: a refusal for now is waited out, a server that is not well stops the lease, a
request that no server will take fails the build, and everything else is this sample's own outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient, ScoredItem
from rlt_client.errors import (
    APIError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProtocolError,
    RLTError,
    TransportError,
    Unauthorized,
    Unavailable,
)
from rlt_client.schemas.builds import BuildKind, Truncated
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse, Explanation, Incomplete
from rlt_client.schemas.reward import Preset, ResolvedSpec, RewardItem, Score, needs_distributions
from rlt_jobs.builds.models import Problem
from rlt_jobs.builds.outcomes import Outcome, Scored, Texts
from rlt_jobs.builds.repository import ScorerKey
from rlt_jobs.builds.servers import Server
from rlt_jobs.builds.spec import Spec, request_key, sample_seed

__all__ = ["Made", "Misconfigured", "RewardUnhealthy", "Sampler", "TeacherUnhealthy", "Unhealthy"]

T = TypeVar("T")

STORED: Final = {"ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max", "format", "baseline", "unmapped"}
"""Components with columns: with a build's spec they give the others."""


class Unhealthy(RLTError):
    """Teacher or reward server is not there or not well: nobody's samples are to blame."""

    refused: bool = False
    """The key of this service is not accepted: whatever is asked ends so."""


class TeacherUnhealthy(Unhealthy):
    """Nothing new can be asked for; what is under way may still come, and be scored."""


class RewardUnhealthy(Unhealthy):
    """Whatever comes now cannot be scored."""


class Misconfigured(RLTError):
    """A server refuses what this build asks for, whatever the sample: an unknown format, policy, student, …"""

    def __init__(self, error: APIError) -> None:
        super().__init__(f"the servers do not take what this build asks for: {error}")
        self.problem = error.problem()
        self.problem.detail = str(self)


@dataclass(frozen=True, slots=True)
class Made:
    """A sample's outcome, and what scored it."""

    outcome: Outcome
    scorer: ScorerKey | None


class Sampler:
    """Makes samples of one build. Safe to be used by many tasks at once.

    Args:
        teaching, scoring: what this process knows of the teacher and the reward server.
    """

    def __init__(
        self, spec: Spec, teacher: AsyncTeacherClient, reward: AsyncRewardClient, teaching: Server, scoring: Server
    ) -> None:
        self._spec = spec
        self._teacher = teacher
        self._reward = reward
        self._teaching = teaching
        self._scoring = scoring

    async def make(self, problem: Problem, sample_idx: int, try_: int) -> Made:
        """Raises `Unhealthy` and `Misconfigured`; every other failure is in the outcome."""
        if self._spec.kind is BuildKind.score:
            return await self._score_given(problem, sample_idx, try_)
        seed = sample_seed(self._spec.seed, problem.idx, sample_idx, try_)
        try:
            request = self._request(problem, seed)
            reply = await self._ask(TeacherUnhealthy, self._teaching, lambda: self._teacher.explain(request))
        except _Refused as refusal:
            return Made(self._failed(problem, sample_idx, try_, seed, refusal.error), None)
        explanation = reply.explanations[0]
        score, scorer = await self._scored(problem, explanation)
        return Made(self._outcome(problem, sample_idx, try_, seed, reply, explanation, score), scorer)

    def _request(self, problem: Problem, seed: int) -> ExplainRequest:
        sampling = self._spec.sampling.model_dump()
        return ExplainRequest(
            question=problem.question,
            answer=problem.answer,
            n=1,
            seed=seed,
            format=self._spec.format,
            policy=self._spec.policy,
            return_tokens=True,
            incomplete=Incomplete.retry if self._spec.truncated is Truncated.retry else Incomplete.keep,
            **sampling,
        )

    async def _scored(self, problem: Problem, explanation: Explanation) -> tuple[Scored | None, ScorerKey | None]:
        if explanation.completion is None:
            return None, None
        return await self.score(
            RewardItem(
                question=problem.question,
                answer=problem.answer,
                system=problem.system,
                completion=explanation.completion,
                teacher=None if needs_distributions(self._spec.spec) else explanation.teacher,
            )
        )

    async def _score_given(self, problem: Problem, sample_idx: int, try_: int) -> Made:
        item = RewardItem(
            question=problem.question, answer=problem.answer, system=problem.system, explanation=problem.explanation
        )
        score, scorer = await self.score(item)
        key = self._key(problem, seed=0)
        texts = Texts(explanation=problem.explanation)
        outcome = Outcome(problem.idx, sample_idx, try_, GenStatus.complete, key, texts=texts, score=score)
        return Made(outcome, scorer)

    async def score(self, item: RewardItem) -> tuple[Scored, ScorerKey | None]:
        """Raises `Unhealthy` and `Misconfigured`; what is wrong with the item is in the score."""
        spec = self._spec
        try:
            scored = await self._ask(
                RewardUnhealthy,
                self._scoring,
                lambda: self._reward.score_item(item, spec=spec.spec, format=spec.format, student=spec.student),
            )
        except _Refused as refusal:
            return Scored(ScoreStatus.score_error, reason=refusal.error.type), None
        return _scored(scored.score), _scorer_key(scored, sent=item.teacher is not None)

    async def _ask(self, unhealthy: type[Unhealthy], server: Server, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            async with server.flow.turn() as turn:
                try:
                    reply = await call()
                except Overloaded as error:
                    turn.refused(error.retry_after)
                    continue
                except (Unavailable, Unauthorized, Forbidden, TransportError, ProtocolError) as error:
                    ill = unhealthy(str(error))
                    ill.refused = isinstance(error, Unauthorized | Forbidden)
                    server.fell_ill(ill)
                    raise ill from error
                except (InvalidRequest, NotFound, Conflict) as error:
                    if _is_about_texts(error):
                        raise _Refused(error) from error
                    raise Misconfigured(error) from error
                except APIError as error:
                    raise _Refused(error) from error
                turn.accepted()
                return reply

    def _outcome(
        self,
        problem: Problem,
        sample_idx: int,
        try_: int,
        seed: int,
        reply: ExplainResponse,
        explanation: Explanation,
        score: Scored | None,
    ) -> Outcome:
        return Outcome(
            problem=problem.idx,
            sample_idx=sample_idx,
            try_=try_,
            gen_status=explanation.gen_status,
            request_key=self._key(problem, seed=seed, reply=reply),
            gen_reason=explanation.error.type if explanation.error else None,
            finish_reason=explanation.finish_reason,
            policy_revision=reply.policy.revision,
            engine=reply.engine,
            prompt_tokens=explanation.usage.prompt_tokens,
            completion_tokens=explanation.usage.completion_tokens,
            flags=list(map(str, explanation.flags)),
            texts=self._texts(explanation),
            score=score,
        )

    def _texts(self, explanation: Explanation) -> Texts | None:
        if explanation.completion is None and explanation.text is None:
            return None
        if explanation.gen_status is GenStatus.truncated and self._spec.truncated is Truncated.drop:
            return None
        tokens = explanation.teacher if self._spec.keep_tokens else None
        return Texts(
            explanation=explanation.text,
            completion=explanation.completion,
            token_ids=tokens.token_ids if tokens else None,
            logprobs=tokens.logprobs if tokens else None,
        )

    def _failed(self, problem: Problem, sample_idx: int, try_: int, seed: int, error: APIError) -> Outcome:
        key = self._key(problem, seed=seed)
        return Outcome(problem.idx, sample_idx, try_, GenStatus.engine_error, key, gen_reason=error.type)

    def _key(self, problem: Problem, *, seed: int, reply: ExplainResponse | None = None) -> bytes:
        return request_key(
            policy_revision=reply.policy.revision if reply else None,
            engine=reply.engine if reply else None,
            format_hash=reply.format.hash if reply else None,
            problem=(problem.question, problem.answer),
            sampling=self._spec.sampling,
            seed=seed,
        )


class _Refused(Exception):
    """This one request was refused for what it holds."""

    def __init__(self, error: APIError) -> None:
        self.error = error


def _is_about_texts(error: APIError) -> bool:
    """Whether a refusal points at the problem's own texts, so that other problems may well be taken."""
    about = ("/question", "/answer", "/items/")
    return bool(error.errors) and all(field.pointer.startswith(about) for field in error.errors)


def _scored(score: Score) -> Scored:
    if score.status is not ScoreStatus.scored:
        return Scored(score.status, reason=score.error.type if score.error else None, flags=score.flags)
    components = score.components.model_dump(include=STORED) if score.components else {}
    counts = score.counts.model_dump(include={"n_answer", "n_think", "student_tokens"}) if score.counts else {}
    return Scored(score.status, reward=score.reward, flags=score.flags, **components, **counts)


def _kl(spec: ResolvedSpec) -> str | None:
    """Divergences of segments are not comparable with those of tokens."""
    if spec.kl is None:
        return None
    return f"{spec.kl}_segments" if spec.preset is Preset.rlt_segments else spec.kl.value


def _scorer_key(scored: ScoredItem, *, sent: bool) -> ScorerKey:
    spec, hosted = scored.spec, scored.teacher
    source = None if spec.kl is None else ("sent" if sent else "hosted")
    return ScorerKey(
        student=scored.student.name,
        student_revision=scored.student.revision,
        teacher_source=source,
        teacher_revision=hosted.revision if source == "hosted" and hosted else None,
        format_name=scored.format.name,
        format_hash=scored.format.hash,
        kl=_kl(spec),
        student_temperature=spec.student_temperature,
        teacher_temperature=spec.teacher_temperature,
        dtype=scored.dtype,
        engine=scored.engine,
        spec=spec.model_dump_json(),
    )
