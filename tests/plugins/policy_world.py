"""Policies in engines without a model: real folders with a few bytes of weights, the real registry, host and pool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from plugins.fake_engine import PROBE, QUICK, FakeEngine, asked
from safetensors.numpy import save_file

from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import LoadPolicy
from rlt_service.paths import AllowedRoots
from rlt_service.revision import model_revision
from rlt_teacher_server.engine.base import FullWeights
from rlt_teacher_server.model import TeacherModel
from rlt_teacher_server.policies.hosting import Loaded
from rlt_teacher_server.policies.starting import Serving, serving
from rlt_teacher_server.policies.versions import Version

__all__ = ["World", "held_by", "name_of", "publish", "told"]


class World:
    """Folders under one root, and servers over them."""

    def __init__(self, root: Path, *, name: str = "base", base: int = 0, width: int = 4) -> None:
        self.root = root
        self.width = width
        self.base = self.full(name, base)
        self.model = TeacherModel(
            ref=ModelRef(name=name, revision=model_revision(self.base)),
            codec=None,  # type: ignore[arg-type]  # these folders have no tokenizer
            eos_token_ids=(),
            folder=self.base,
            max_positions=None,
        )

    def full(self, name: str, content: int) -> Path:
        folder = self._folder(name, "config.json", {"model_type": "fake", "hidden_size": self.width})
        save_file({"layer.weight": np.full((2, self.width), content, dtype=np.float32)}, folder / "model.safetensors")
        return folder

    def lora(self, name: str, content: int) -> Path:
        folder = self._folder(name, "adapter_config.json", {"peft_type": "LORA", "r": 2})
        save_file(
            {"lora.weight": np.full((2, self.width), content, dtype=np.float32)}, folder / "adapter_model.safetensors"
        )
        return folder

    def _folder(self, name: str, config: str, content: dict[str, Any]) -> Path:
        folder = self.root / name
        folder.mkdir(exist_ok=True, parents=True)
        (folder / config).write_text(json.dumps(content))
        return folder

    def engine(self, **given: Any) -> FakeEngine:
        return FakeEngine(FullWeights(self.model.ref.revision, self.base), **given)

    @asynccontextmanager
    async def serving(self, *engines: FakeEngine, state: Path | None = None, **options: Any) -> AsyncIterator[Serving]:
        named = dict(zip("abcdefgh", engines or (self.engine(),), strict=False))
        started = serving(
            named,
            self.model,
            PROBE,
            roots=AllowedRoots([self.root]),
            state=state,
            options=replace(QUICK, **options),
        )
        async with started as served:
            yield served


async def publish(served: Serving, folder: Path, name: str = "run", **given: Any) -> Loaded:
    kind = ModelKind.lora if (folder / "adapter_config.json").exists() else ModelKind.full
    return await served.host.load(LoadPolicy(name=name, source=str(folder), kind=kind, **given))


async def held_by(served: Serving, name: str | None = None) -> str:
    """What a request gets: the revision that it is told, which must be the one that the engine held."""
    async with served.policies.using(name) as use:
        sample = await use.group().sample(asked())
    assert told(use.session.held, sample.finish_reason) == use.policy.revision
    return use.policy.revision


def told(held: Any, finish_reason: str) -> str:
    """The revision of what a fake engine held while it made a sample."""
    full, _, adapter = finish_reason.partition("/")
    assert full == held.weights.revision
    assert adapter == (held.adapter.name if held.adapter else "")
    if held.adapter is None:
        return full
    assert held.adapter.revision.startswith(f"{full}+")
    own = held.adapter.revision.rpartition(":")[2]
    assert f"@{own}-" in adapter
    return str(held.adapter.revision)


def name_of(version: Version) -> str | None:
    adapter = version.stay.held.adapter if version.stay else None
    return adapter.name if adapter else None
