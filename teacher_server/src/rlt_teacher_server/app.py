"""The teacher server as an ASGI app. Building it reads the formats; the model is loaded in its lifespan."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI

from rlt_client.aio import AsyncRewardClient
from rlt_client.errors import ItemError, Unavailable
from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, teacher_prompt
from rlt_service.app import create_app
from rlt_service.formats import read_formats
from rlt_service.health import Check
from rlt_service.metrics import Metrics
from rlt_teacher_server.admission import Admission
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.settings import Settings

if TYPE_CHECKING:
    from rlt_teacher_server.engine.base import Engine
    from rlt_teacher_server.scoring import Scorer

__all__ = ["build"]

log = logging.getLogger(__name__)

PROOF_S: Final = 30.0  # how long one token proves that the engine works: orchestrators ask every few seconds


def build(settings: Settings) -> FastAPI:
    """The app.

    Raises:
        FormatError: a format cannot be read.
    """
    from rlt_teacher_server.endpoints import router

    formats, own = read_formats(settings.formats, settings.format)
    metrics = Metrics()
    counted = TeacherMetrics(metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.readiness = await _start(app, stack, settings, formats, own, counted)
            yield

    async def ready() -> Mapping[str, Check]:
        readiness: _Readiness = app.state.readiness
        return await readiness.checks()

    app = create_app(
        title="rlt-teacher-server",
        version=version("rlt-teacher-server"),
        settings=settings,
        routers=[router],
        lifespan=lifespan,
        ready=ready,
        metrics=metrics,
        description="Explains how an answer follows from its question (arXiv 2506.08388).",
    )
    return app


async def _start(
    app: FastAPI,
    stack: AsyncExitStack,
    settings: Settings,
    formats: Mapping[str, Format],
    own: set[str],
    metrics: TeacherMetrics,
) -> _Readiness:
    """Load and prove what this process itself has. An engine elsewhere may come later: `/readyz` waits for it."""
    from rlt_teacher_server.catalog import Catalog
    from rlt_teacher_server.engine.loading import make_engine
    from rlt_teacher_server.explain import ExplainService
    from rlt_teacher_server.generate import GenerateService
    from rlt_teacher_server.policy import load_policy
    from rlt_teacher_server.sampler import Sampler

    began = time.perf_counter()
    policy = await asyncio.to_thread(load_policy, settings.model)
    catalog = Catalog(formats, policy.codec, default=settings.format, required=own)
    probe = _probe(policy.codec, formats[settings.format])
    engine = await stack.enter_async_context(make_engine(settings, policy, probe))
    log.info("model loaded", extra={"model": policy.ref.name, "seconds": round(time.perf_counter() - began, 2)})
    admission = Admission(settings.max_samples)
    metrics.watch(lambda: admission.inside)
    sampler = Sampler(policy, engine, admission, metrics)
    scorer = await _scorer(settings, stack)
    app.state.explainer = ExplainService(sampler, catalog, budget=settings.max_tokens, scorer=scorer)
    app.state.generator = GenerateService(sampler, max_items=settings.max_samples)
    return _Readiness(engine, admission, probe)


def _probe(codec: TextCodec, format: Format) -> list[int]:
    """A prompt of the default format, with the format's own probe texts."""
    return codec.encode(teacher_prompt(codec, format, format.probe.question, format.probe.answer)).ids


async def _scorer(settings: Settings, stack: AsyncExitStack) -> Scorer | None:
    from rlt_teacher_server.scoring import Scorer

    if settings.reward_url is None:
        return None
    key = settings.reward_key.get_secret_value() if settings.reward_key else None
    client = AsyncRewardClient(settings.reward_url, key=key, deadline=settings.reward_timeout_s)
    return Scorer(await stack.enter_async_context(client))


class _Readiness:
    """Ready is an engine that produces a token with its log-prob; while it is busy with requests it has to get on."""

    def __init__(self, engine: Engine, admission: Admission, probe: list[int]) -> None:
        self._engine = engine
        self._admission = admission
        self._probe = probe
        self._proved = float("-inf")

    async def checks(self) -> Mapping[str, Check]:
        try:
            await self._check()
        except (Unavailable, ItemError) as error:
            self._proved = float("-inf")
            return {"engine": Check(ok=False, detail=str(error))}
        return {"engine": Check(ok=True)}

    async def _check(self) -> None:
        from rlt_teacher_server.engine.base import SampleRequest

        await self._engine.alive()
        if time.monotonic() - self._proved < PROOF_S or self._admission.inside:
            return
        await self._engine.sample(SampleRequest(self._probe, max_tokens=1, seed=0))
        self._proved = time.monotonic()
