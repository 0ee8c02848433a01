"""The teacher server as an ASGI app. Building it reads the formats; the model is loaded in its lifespan."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI

from rlt_client.aio import AsyncRewardClient
from rlt_client.errors import Unavailable
from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, teacher_prompt
from rlt_service.app import create_app
from rlt_service.formats import read_formats
from rlt_service.health import Check
from rlt_service.metrics import Metrics
from rlt_service.paths import AllowedRoots
from rlt_service.secret_files import secret
from rlt_teacher_server.admission import Admission
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.settings import Settings

if TYPE_CHECKING:
    from rlt_teacher_server.model import TeacherModel
    from rlt_teacher_server.policies.starting import Serving
    from rlt_teacher_server.sampler import Sampler
    from rlt_teacher_server.scoring import Scorer

__all__ = ["build"]

log = logging.getLogger(__name__)


def build(settings: Settings) -> FastAPI:
    """The app.

    Raises:
        FormatError: a format cannot be read.
    """
    from rlt_teacher_server.endpoints import router
    from rlt_teacher_server.openai.endpoints import router as openai
    from rlt_teacher_server.openai.errors import OpenAIErrors
    from rlt_teacher_server.policy_endpoints import router as policies

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
        routers=[router, policies, openai],
        lifespan=lifespan,
        ready=ready,
        metrics=metrics,
        description="Explains how an answer follows from its question (arXiv 2506.08388).",
    )
    app.add_middleware(OpenAIErrors)
    return app


async def _start(
    app: FastAPI,
    stack: AsyncExitStack,
    settings: Settings,
    formats: Mapping[str, Format],
    own: set[str],
    metrics: TeacherMetrics,
) -> _Readiness:
    """Load and prove what this process itself has, and the engines that it starts. An engine elsewhere may come later:
    `/readyz` waits for it. What was opened last is closed first: the policies, the pool, the engines' processes."""
    from rlt_teacher_server.catalog import Catalog
    from rlt_teacher_server.explain import ExplainService
    from rlt_teacher_server.generate import GenerateService
    from rlt_teacher_server.model import load_model
    from rlt_teacher_server.openai.service import ChatService

    began = time.perf_counter()
    model = await asyncio.to_thread(load_model, settings.model)
    catalog = Catalog(formats, model.codec, default=settings.format, required=own)
    served = await _serving(settings, stack, model, _probe(model.codec, formats[settings.format]), metrics)
    log.info("model loaded", extra={"model": model.ref.name, "seconds": round(time.perf_counter() - began, 2)})
    sampler = _sampler(settings, model, served, metrics)
    scorer = await _scorer(settings, stack)
    app.state.explainer = ExplainService(sampler, catalog, budget=settings.max_tokens, scorer=scorer)
    app.state.chat = ChatService(app.state.explainer, catalog, sampler)
    app.state.generator = GenerateService(sampler, max_items=settings.max_samples)
    app.state.policies = served.host
    return _Readiness(served)


async def _serving(
    settings: Settings, stack: AsyncExitStack, model: TeacherModel, probe: list[int], metrics: TeacherMetrics
) -> Serving:
    """The engines, and the policies in them."""
    from rlt_teacher_server.engine.loading import engine_addresses, make_engines, pool_options
    from rlt_teacher_server.policies.starting import serving

    addresses = await stack.enter_async_context(engine_addresses(settings, model, probe))
    return await stack.enter_async_context(
        serving(
            make_engines(settings, model, probe, addresses),
            model,
            probe,
            roots=AllowedRoots(settings.allowed_roots),
            state=settings.policy_state,
            metrics=metrics,
            options=pool_options(settings),
        )
    )


def _sampler(settings: Settings, model: TeacherModel, served: Serving, metrics: TeacherMetrics) -> Sampler:
    from rlt_teacher_server.sampler import Sampler

    admission = Admission(settings.max_samples)
    metrics.watch(lambda: admission.inside)
    return Sampler(model, served.policies, served.engines, admission, metrics)


def _probe(codec: TextCodec, format: Format) -> list[int]:
    """A prompt of the default format, with the format's own probe texts."""
    return codec.encode(teacher_prompt(codec, format, format.probe.question, format.probe.answer)).ids


async def _scorer(settings: Settings, stack: AsyncExitStack) -> Scorer | None:
    from rlt_teacher_server.scoring import Scorer

    if settings.reward_url is None:
        return None
    key = secret(settings, "reward_key")
    client = AsyncRewardClient(settings.reward_url, key=key, deadline=settings.reward_timeout_s)
    return Scorer(await stack.enter_async_context(client))


class _Readiness:
    """Ready is an engine that produces a token with its log-prob, busy or not, and that holds the active policy."""

    def __init__(self, served: Serving) -> None:
        self._served = served

    async def checks(self) -> Mapping[str, Check]:
        try:
            await self._served.engines.ready()
        except Unavailable as error:
            return {"engine": Check(ok=False, detail=str(error))}
        lacking = self._served.policies.lacking()
        return {"engine": Check(ok=True), "policy": Check(ok=lacking is None, detail=lacking)}
