"""Full weights in a vLLM server: which it has, and others in their place.

vLLM reads new weights into its own; a reset of its prefix cache is a call of its own, and refused while requests run.
Weights are believed to be in place only after one prompt gives the same log-probs with what its cache has and without.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Final

from rlt_client import vllm_worker
from rlt_client.errors import InvalidRequest, ItemError, Unavailable
from rlt_teacher_server.engine import wire
from rlt_teacher_server.engine.base import FullWeights, SampleRequest
from rlt_teacher_server.engine.vllm.adapters import FAULT, failed, said_of
from rlt_teacher_server.engine.vllm.fitting import fit_weights, unusable
from rlt_teacher_server.engine.vllm.server import Reply, Server

__all__ = ["Weights"]

FLAGS: Final = "start vLLM (0.31 or later) with VLLM_SERVER_DEV_MODE=1"
FIRST: Final = "default"  # vLLM's own word for the weights that it was started with
UNFINISHED: Final = "unfinished"
LOST: Final = "it was started anew, with its first weights"
LOAD_S: Final = 1800.0  # the largest models from a slow disk
RESETS: Final = 50
RESET_PAUSE_S: Final = 0.1  # a request that was aborted holds its blocks until the next step
PROBE_TOKENS: Final = 600  # more than two blocks of its cache, whose blocks have 16 tokens on a GPU and 128 on a CPU
LIKELIEST: Final = 5
SAME_NATS: Final = {"torch.float32": 1e-3, "torch.float16": 0.01, "torch.bfloat16": 0.05}
"""How far apart log-probs of the same weights are at most, by the numbers that vLLM computes with."""


class Weights:
    """Args:
    first: what the server was started with, if it is known.
    probe: a prompt of the model's.
    """

    def __init__(self, server: Server, first: FullWeights | None, probe: list[int]) -> None:
        self._server = server
        self._first = first
        self._probe = probe
        self._known = {first.revision: first} if first else {}
        self._named = False
        self.info: wire.Info | None = None
        """Of a server in dev mode."""
        self.silent: str | None = None
        """Why a server in dev mode does not tell its settings."""
        self.unusable: str | None = None
        """Why nothing may be sampled until others are put in its place; vLLM may die of it."""
        self.replaced = False
        """Whether it has others than it was started with, put there from here."""

    @property
    def sound(self) -> bool:
        """Whether it would give tokens, be they of other weights than somebody wants."""
        return self.unusable in (None, LOST)

    def lose(self) -> None:
        """The server was started anew. Who relied on others than its first weights must hear of it first."""
        self.unusable = LOST if self.replaced else None
        self.replaced = False

    def accept(self) -> None:
        """Whoever uses it knows that it may have been started anew, and looks at what it holds."""
        if self.unusable == LOST:
            self.unusable = None

    async def version(self) -> str | None:
        """What the server calls its weights; None if it does not."""
        reply = await self._server.call("GET", "/weight_info")
        return None if reply.status == 404 else reply.read(wire.WeightInfo).weight_version

    async def holds(self) -> FullWeights | None:
        if self.unusable is not None:
            return None
        version = await self.version()
        return self._first if version in (None, FIRST) else self._known.get(version)

    def note(self, version: str | None) -> None:
        """What it is found with; another process may have broken off in the middle of a change."""
        self._named = version is not None
        if version == UNFINISHED and self.unusable is None:
            self.unusable = "its weights were not replaced to the end"

    async def check(self, weights: FullWeights) -> None:
        """Raises `InvalidRequest` before anything is changed."""
        if self.info is None or not self._named:
            raise InvalidRequest(f"this engine keeps its weights: {self.silent or FLAGS}", type="weights_unavailable")
        self.info.packs()
        if self._first is not None:
            await asyncio.to_thread(fit_weights, self._first.folder, weights.folder)

    async def replace(self, model: wire.Model, weights: FullWeights) -> None:
        if self.unusable is None:
            await self._likeliest(model)  # now its cache has something that must go
        self.unusable = "its weights are being replaced"
        try:
            await self._name(UNFINISHED)
            await self._load(weights.folder)
            await self._empty_cache()
            await self._prove(model, weights)
            await self._name(weights.revision)
        except BaseException as error:
            self.unusable = f"its weights could not be replaced: {error}"
            raise
        self._known[weights.revision] = weights
        self.unusable = None
        self.replaced = self._first is None or weights.revision != self._first.revision

    async def _name(self, version: str) -> None:
        _must(await self._server.call("POST", "/update_weight_version", {"new_version": version}))

    async def _load(self, folder: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        reply = await self._server.call("POST", "/collective_rpc", body, limit=LOAD_S)
        if not reply.ok and FAULT in reply.message:
            raise unusable(said_of(folder, reply.message))
        _must(reply)
        if self.info and self.info.packs():
            _must(await self._server.call("POST", "/collective_rpc", {"method": vllm_worker.PACK}, limit=LOAD_S))

    async def _empty_cache(self) -> None:
        for _ in range(RESETS):
            reply = await self._server.call("POST", "/reset_prefix_cache?reset_external=true")
            if reply.read(wire.Reset).success:
                return
            await asyncio.sleep(RESET_PAUSE_S)
        raise Unavailable("its cache could not be emptied: requests still run", type="engine_down", retry_after=1.0)

    async def _prove(self, model: wire.Model, weights: FullWeights) -> None:
        try:
            fresh = await self._likeliest(model, salt=secrets.token_hex(16))
            cached = await self._likeliest(model)
        except ItemError as error:
            raise unusable(f"{weights.folder.name}: {error.problem.title}") from error
        dtype = self.info.vllm_config.model_config_.dtype if self.info else ""
        if _apart(fresh, cached) > SAME_NATS.get(dtype, max(SAME_NATS.values())):
            detail = "its cache still has what the old weights computed"
            raise Unavailable(detail, type="engine_misconfigured", retry_after=1.0)

    async def _likeliest(self, model: wire.Model, salt: str | None = None) -> dict[str, float]:
        """Log-probs of the likeliest tokens after a long prompt, through the cache; past it with a salt."""
        tokens = min(PROBE_TOKENS, (model.max_model_len or PROBE_TOKENS) - 1)
        prompt = (self._probe * (tokens // len(self._probe) + 1))[:tokens]
        request = SampleRequest(prompt, max_tokens=1, seed=0, temperature=0.0)
        body = wire.completion_request(model.id, request, logprobs=LIKELIEST)
        salted = body if salt is None else body | {"cache_salt": salt}
        reply = await self._server.call("POST", "/v1/completions", salted, limit=LOAD_S)
        return wire.top(wire.only(reply.read(wire.Completion)))


def _apart(left: dict[str, float], right: dict[str, float]) -> float:
    """Nats; of two equally likely tokens either may be among the likeliest."""
    shared = left.keys() & right.keys()
    return max((abs(left[token] - right[token]) for token in shared), default=float("inf"))


def _must(reply: Reply) -> None:
    if not reply.ok:
        raise failed(reply)
