"""`/explain` on an engine that writes what a script says, when it is let, with rewards that are said, too.

Real: the service, its prompts and reading with a real tokenizer, admission, metrics. Scripted: engine, policies and
scores. The engine keeps budgets, seeds, stop texts, what a watch is told and what is inside; it computes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlt_client.errors import APIError, NotFound, RLTError
from rlt_client.formats.model import load_format
from rlt_client.prompts import content, literal
from rlt_client.schemas.common import FieldError, ModelRef
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.schemas.reward import Preset, RewardItem, Score
from rlt_client.testing import make_score
from rlt_service.metrics import Metrics
from rlt_teacher_server.admission import Admission
from rlt_teacher_server.catalog import Catalog
from rlt_teacher_server.engine.base import Limits, Sample, SampleRequest, Watch, check
from rlt_teacher_server.explain import ExplainService
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.model import load_model
from rlt_teacher_server.policies.registry import Use
from rlt_teacher_server.sampler import Sampler
from rlt_teacher_server.scoring import ScoringPlan
from rlt_teacher_server.seeds import derive_seed

__all__ = ["CLOSE", "SEED", "Asked", "Scene", "asked"]

ROOT = Path(__file__).parents[2] / "tests" / "reward_server"
CLOSE = "<|end_of_explanation|>"
SEED = 7
PLACES = {derive_seed(SEED, place): place for place in range(600)}


def asked(**given: object) -> ExplainRequest:
    """A request whose samples are known by their seeds."""
    return ExplainRequest.model_validate({"question": "Two plus two?", "answer": "4", "seed": SEED} | given)


@dataclass(frozen=True)
class Asked:
    """A sample as the script sees it."""

    place: int
    policy: str | None
    request: SampleRequest
    prompt: str


def _place(request: SampleRequest) -> int:
    return PLACES.get(request.seed, -1)


async def _at_once(_sample: Asked, _written: int) -> None:
    await asyncio.sleep(0)


@dataclass
class Scene:
    """Args:
    script: the text of a sample, with its closing tag if it has one; or what the engine raises.
    pace: awaited before each token, with how many are written.
    reward: of what was sent to be scored; None is an error of the score.
    """

    script: Callable[[Asked], str | RLTError] = lambda sample: f"Explanation {sample.place}{CLOSE}"
    pace: Callable[[Asked, int], Awaitable[None]] = _at_once
    reward: Callable[[str], float | None] = lambda text: -float(len(text))
    policies: tuple[str, ...] = ("base", "new")
    max_model_len: int = 400
    capacity: int = 1000
    budget: int = 100
    restarts: dict[int, int] = field(default_factory=dict)
    """Samples whose engine dies under them once, after so many tokens."""
    inside: list[Asked] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    """Policies in use."""
    scoring: Callable[[str], Awaitable[None]] | None = None
    """Awaited before each score."""

    def __post_init__(self) -> None:
        self.model = load_model(str(ROOT / "golden" / "teacher"))
        self.metrics = Metrics()
        self.admission = Admission(self.capacity)
        format = load_format(ROOT / "formats" / "golden.toml")
        catalog = Catalog({"golden": format}, self.model.codec, default="golden", required={"golden"})
        counted = TeacherMetrics(self.metrics)
        sampler = Sampler(self.model, _Policies(self), self, self.admission, counted)  # type: ignore[arg-type]
        self.service = ExplainService(sampler, catalog, budget=self.budget, scorer=_Scorer(self))  # type: ignore[arg-type]

    def ids(self, text: str) -> list[int]:
        body, tag, rest = text.partition(CLOSE)
        return self.model.codec.encode([content(body), literal(tag), content(rest)]).ids

    def counted(self, name: str) -> float:
        lines = [line for line in self.metrics.render().decode().splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def limits(self) -> Limits:
        return Limits(self.max_model_len)

    async def sample(
        self, request: SampleRequest, policy: str, watch: Watch | None, restarted: Callable[[], None] | None
    ) -> Sample:
        check(request, await self.limits())
        sample = Asked(_place(request), policy, request, self.model.codec.decode(request.prompt_token_ids))
        self.asked.append(sample)
        with self._inside(sample):
            if (until := self.restarts.pop(sample.place, None)) is not None:
                await self._write(sample, watch, until)
                assert restarted is not None
                restarted()
            return await self._write(sample, watch, request.max_tokens)

    @contextmanager
    def _inside(self, sample: Asked) -> Iterator[None]:
        self.inside.append(sample)
        try:
            yield
        finally:
            self.inside.remove(sample)

    async def _write(self, sample: Asked, watch: Watch | None, budget: int) -> Sample:
        began = time.perf_counter()
        text = self.script(sample)
        if isinstance(text, RLTError):
            raise text
        ids = self.ids(text)
        for written, token in enumerate(ids[:budget]):
            await self.pace(sample, written)
            if watch is not None:
                watch([token])
        reason = "stop" if len(ids) <= budget else "length"
        ids = ids[:budget]
        return Sample(ids, [-0.5] * len(ids), reason, began, began, time.perf_counter())


@dataclass(frozen=True)
class _Session:
    scene: Scene
    policy: str

    def group(self) -> _Session:
        return self

    async def sample(
        self, request: SampleRequest, watch: Watch | None = None, restarted: Callable[[], None] | None = None
    ) -> Sample:
        return await self.scene.sample(request, self.policy, watch, restarted)


@dataclass(frozen=True)
class _Policies:
    scene: Scene

    @asynccontextmanager
    async def using(self, name: str | None, beside: Use | None = None) -> AsyncIterator[Use]:
        name = name or self.scene.policies[0]
        if beside is not None:
            assert beside.policy.name in self.scene.held, "it is held while the next is opened"
        if name not in self.scene.policies:
            error = FieldError(pointer="/policy", detail="no such policy")
            raise NotFound("no such policy", type="policy_not_found", errors=[error])
        self.scene.held.append(name)
        try:
            yield Use(ModelRef(name=name, revision=f"sha256:{name}"), _Session(self.scene, name))  # type: ignore[arg-type]
        finally:
            self.scene.held.remove(name)


@dataclass(frozen=True)
class _Scorer:
    scene: Scene

    async def plan(self, _options: object) -> ScoringPlan:
        return ScoringPlan(Preset.rlt)

    async def score(self, item: RewardItem, **_: object) -> Score:
        assert item.teacher is not None
        text = self.scene.model.codec.decode(item.teacher.token_ids).removesuffix(CLOSE)
        if self.scene.scoring is not None:
            await self.scene.scoring(text)
        self.scene.scored.append(text)
        reward = self.scene.reward(text)
        if isinstance(reward, APIError):
            raise reward
        return make_score(error="kl_unavailable") if reward is None else make_score(reward)
