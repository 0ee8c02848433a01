"""What a request asks for, checked and encoded before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rlt_client.errors import InvalidRequest
from rlt_client.formats import Format
from rlt_client.prompts import Untokenizable, teacher_prompt
from rlt_client.schemas.explain import ExplainOptions, Incomplete
from rlt_teacher_server.catalog import Catalog, Entry
from rlt_teacher_server.checks import check_options, check_problem, check_samples
from rlt_teacher_server.concurrency import aside
from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.sampler import Sampler
from rlt_teacher_server.scoring import Scorer, ScoringPlan
from rlt_teacher_server.seeds import fresh_seed

__all__ = ["Plan", "Planner", "Wanted"]

BRIEF: Final = 2000  # characters of a problem, encoded in half a millisecond


@dataclass(frozen=True, slots=True)
class Wanted:
    """What all problems of one request have in common."""

    options: ExplainOptions
    entry: Entry
    seed: int
    """Of the request; drawn if it named none."""
    scoring: ScoringPlan | None

    @property
    def format(self) -> Format:
        return self.entry.format

    @property
    def policies(self) -> Sequence[str | None]:
        return self.options.policies or [self.options.policy]

    @property
    def samples(self) -> int:
        """Of one problem."""
        return self.options.n * len(self.policies)


@dataclass(frozen=True, slots=True)
class Plan:
    """One problem, ready to be sampled."""

    wanted: Wanted
    question: str
    answer: str
    sampling: SampleRequest
    """With the problem's seed, which those of its samples are derived from."""
    retry_tokens: int | None
    """Budget of a second try; None where there is none, or no room for one."""

    @property
    def options(self) -> ExplainOptions:
        return self.wanted.options


class Planner:
    """Args:
    budget: tokens of one explanation where the request names none.
    """

    def __init__(self, sampler: Sampler, catalog: Catalog, *, budget: int, scorer: Scorer | None) -> None:
        self._sampler = sampler
        self._catalog = catalog
        self._budget = budget
        self._scorer = scorer

    async def wanted(self, options: ExplainOptions, problems: int = 1) -> Wanted:
        """Raises:
        NotFound: unknown_format.
        InvalidRequest: format_unavailable, scoring_not_configured, sampling_unusable_for_kl, temperature_too_low,
            retry_too_small.
        PayloadTooLarge: too_many_samples.
        """
        check_options(options, can_score=self._scorer is not None, budget=self._budget)
        samples = options.n * len(options.policies or [options.policy])
        check_samples(samples * problems, self._sampler.admission.capacity)
        entry = self._catalog.get(options.format)
        scoring = await self._scorer.plan(options) if options.score and self._scorer else None
        return Wanted(options, entry, fresh_seed() if options.seed is None else options.seed, scoring)

    async def plan(self, wanted: Wanted, question: str, answer: str, seed: int, *, at: str = "") -> Plan:
        """Args:
            at: JSON pointer of the problem in its request.

        Raises:
            InvalidRequest: empty_question, empty_answer, untokenizable.
            Unavailable: no engine has ever been up.
        """
        check_problem(question, answer, at)
        brief = len(question) + len(answer) <= BRIEF
        prompt = await aside(self._encode, wanted.format, question, answer, brief=brief)
        options = wanted.options
        sampling = SampleRequest(
            prompt_token_ids=prompt,
            max_tokens=options.max_tokens or await self._sampler.room(len(prompt), self._budget),
            seed=seed,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=max(options.top_k, 0),
            stop_token_ids=wanted.entry.stop_token_ids,
            stop=(wanted.format.teacher.close,),
        )
        return Plan(wanted, question, answer, sampling, await self._retry_tokens(options, sampling))

    async def _retry_tokens(self, options: ExplainOptions, sampling: SampleRequest) -> int | None:
        if options.incomplete is not Incomplete.retry:
            return None
        asked = options.retry_max_tokens or 2 * sampling.max_tokens
        budget = await self._sampler.room(len(sampling.prompt_token_ids), asked)
        return budget if budget > sampling.max_tokens else None

    def _encode(self, format: Format, question: str, answer: str) -> list[int]:
        codec = self._sampler.model.codec
        try:
            return codec.encode(teacher_prompt(codec, format, question, answer)).ids
        except Untokenizable as error:
            raise InvalidRequest(str(error), type="untokenizable") from error
