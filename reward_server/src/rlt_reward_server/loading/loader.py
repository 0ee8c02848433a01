"""One version of a model on every device."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from rlt_client.prompts import TextCodec
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.models import ModelKind
from rlt_reward_server.engine.scorer import CausalScorer
from rlt_reward_server.loading.fp8 import to_float8
from rlt_reward_server.loading.memory import checkpoint_bytes, ensure_room
from rlt_reward_server.loading.weights import UnusableModel, read_weights, resolve_devices, sharing_copy, stored_bytes
from rlt_reward_server.models import Found, LoadedModel
from rlt_reward_server.settings import Settings
from rlt_service.checkpoint import check_adapter
from rlt_service.revision import model_revision
from rlt_service.torch_models import attach

if TYPE_CHECKING:
    from rlt_reward_server.parallel.team import Team

__all__ = ["Loader"]

log = logging.getLogger(__name__)

EXTRA: Final = "rlt-reward-server[lora]"


class Loader:
    """Reads models from folders. One call at a time.

    Raises:
        UnusableModel: there is no such device.
    """

    def __init__(self, settings: Settings) -> None:
        disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers; the log is lines of JSON
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._devices = resolve_devices(settings.devices)
        self.team = self._team(settings.tensor_parallel)

    def _team(self, size: int) -> Team | None:
        if size == 1:
            return None

        from rlt_reward_server.parallel.team import Team

        team = Team(size, self._devices[0].type, threads=self._settings.threads)
        self._devices = team.devices
        return team

    def close(self) -> None:
        """End the other processes."""
        if self.team is not None:
            self.team.close()

    def revision(self, found: Found, base: LoadedModel | None) -> str:
        """The content hash of a folder; an adapter's names its base's too. Weights that are kept in fewer bits than
        they came in give other scores: the hash says so.

        Raises:
            ModelNotFound
        """
        own = model_revision(found.folder)
        if base is not None:
            return f"{base.ref.revision}+{own}"
        return own if self._settings.weights == "full" else f"{own}+{self._settings.weights}"

    def load(
        self, found: Found, base: LoadedModel | None, served: Iterable[LoadedModel], *, pickles: bool = False
    ) -> LoadedModel:
        """Load it, or give what is loaded already another name.

        Args:
            base: the version that an adapter changes; for adapters only.
            served: every version that is in memory.
            pickles: whether weights other than safetensors may be read.

        Raises:
            ModelNotFound, UnusableModel, UnusableTokenizer, UnsupportedModel: it cannot be served.
            InsufficientMemory: it does not fit.
        """
        served = list(served)
        ref = ModelRef(name=found.name, revision=self.revision(found, base))
        twin = next((model for model in served if model.ref.revision == ref.revision), None)
        if twin is not None:
            return replace(twin, ref=ref, base=base)
        if base is not None:
            if self.team is not None or self._settings.weights != "full":
                why = "tensor parallelism" if self.team else "fp8 weights"
                raise UnusableModel(f"adapters cannot be served with {why}: merge it into a full model")
            check_adapter(found.folder)
        codec = self._codec(found.folder, base)
        self._ensure_room(found.folder, served)
        began = time.perf_counter()
        model = self._adapter(found, ref, codec, base) if base else self._full(found, ref, codec, pickles)
        self._unchanged(found, base, ref)
        _log(model, time.perf_counter() - began)
        return model

    def _codec(self, folder: Path, base: LoadedModel | None) -> TextCodec:
        """An adapter's own tokenizer may lie beside it; its ids must be the base's."""
        if base is None:
            return TextCodec.of_folder(folder)
        if (folder / "tokenizer.json").is_file():
            own = TextCodec.of_folder(folder)
            if own.vocabulary_hash() != base.codec.vocabulary_hash():
                raise UnusableModel(f"{folder}: its tokenizer is not that of its base, {base.ref.name}")
        return base.codec

    def _ensure_room(self, folder: Path, served: list[LoadedModel]) -> None:
        gc.collect()  # modules hold each other in circles: what a load that failed has left would count as in use
        holders = [holder for model in served for holder in (model, model.base) if holder]
        loaded = {id(holder.scorers): holder.weight_bytes for holder in holders}
        ranks = self._settings.tensor_parallel
        needed = checkpoint_bytes(folder, self._settings.dtype, parts=ranks, fp8=self._settings.weights == "fp8")
        ensure_room(
            needed * ranks if self._devices[0].type == "cpu" else needed,  # the ranks share the machine's memory
            self._devices,
            loaded=sum(loaded.values()),
            reserve=self._settings.memory_reserve,
            limit=self._settings.max_model_bytes,
        )

    def _full(self, found: Found, ref: ModelRef, codec: TextCodec, pickles: bool) -> LoadedModel:
        if self.team is not None:
            scorer, part = self.team.load(
                found.folder, self._settings.dtype, pickles=pickles, max_batch_tokens=self._settings.max_batch_tokens
            )
            return LoadedModel(ref, codec, (scorer,), weight_bytes=part)
        read: dict[torch.device, nn.Module] = {}
        for device in dict.fromkeys(self._devices):
            read[device] = self._read(found.folder, device, pickles)
        modules = tuple(read[device] for device in self._devices)
        size = sum(map(stored_bytes, modules[0].parameters()))
        return LoadedModel(ref, codec, self._scorers(map(sharing_copy, modules)), modules=modules, weight_bytes=size)

    def _read(self, folder: Path, device: torch.device, pickles: bool) -> nn.Module:
        if self._settings.weights == "full":
            return read_weights(folder, self._settings.dtype, device, pickles=pickles)
        model = read_weights(folder, self._settings.dtype, torch.device("cpu"), pickles=pickles)
        to_float8(model, folder)  # before it takes room on the device
        return model.to(device)

    def _adapter(self, found: Found, ref: ModelRef, codec: TextCodec, base: LoadedModel) -> LoadedModel:
        name = ref.revision.rpartition(":")[2]
        attached = [attach(module, found.folder, name, extra=EXTRA) for module in base.modules]
        modules, sizes = zip(*attached, strict=True)
        return LoadedModel(ref, codec, self._scorers(modules), weight_bytes=sizes[0], kind=ModelKind.lora, base=base)

    def _scorers(self, modules: Iterable[nn.Module]) -> tuple[CausalScorer, ...]:
        return tuple(CausalScorer(module, max_batch_tokens=self._settings.max_batch_tokens) for module in modules)

    def _unchanged(self, found: Found, base: LoadedModel | None, ref: ModelRef) -> None:
        """A folder that somebody writes into while it is read would be served under the wrong hash."""
        if self.revision(found, base) != ref.revision:
            raise UnusableModel(f"{found.folder}: its files changed while they were read")


def _log(model: LoadedModel, seconds: float) -> None:
    figures = {"seconds": round(seconds, 2), "dtype": model.scorer.dtype, "bytes": model.weight_bytes}
    devices = ",".join(str(scorer.device) for scorer in model.scorers)
    log.info(
        "model loaded", extra={"model": model.ref.name, "revision": model.ref.revision, "device": devices, **figures}
    )
