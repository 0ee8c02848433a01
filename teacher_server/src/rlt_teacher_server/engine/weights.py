"""Models for the embedded engine: the first one, full weights in its place, and adapters on either."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from rlt_client.errors import InvalidRequest
from rlt_service.checkpoint import UnusableModel, check_adapter
from rlt_service.torch_models import PeftMissing, attach, read_weights
from rlt_teacher_server.engine.base import Adapter, FullWeights
from rlt_teacher_server.engine.decoding import Decoder

__all__ = ["Loader"]

log = logging.getLogger(__name__)

EXTRA: Final = "rlt-teacher-server[lora]"


class Loader:
    """Args:
    decode: the text of ids.
    dtype: of the weights; `auto` takes the checkpoint's.
    device: `auto` is the first GPU, or the CPU.
    threads: of one forward pass on the CPU; torch's own choice if None.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, dtype: str, device: str, threads: int | None = None
    ) -> None:
        self._decode = decode
        self._dtype = dtype
        self._device = device
        self._threads = threads

    def first(self, folder: Path) -> Decoder:
        """What the engine starts with. Raises `UnusableModel`."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        return self._read(folder, pickles=True)

    def full(self, weights: FullWeights, current: Decoder) -> Decoder:
        """Other weights of the current model's shape, from safetensors only.

        Raises:
            InvalidRequest: unusable_policy.
        """
        with _refused(weights.folder):
            decoder = self._read(weights.folder, pickles=False)
            _same_shape(decoder.model, current.model)
            _prove(decoder)
        return decoder

    def adapted(self, base: Decoder, adapter: Adapter) -> Decoder:
        """The base with an adapter; both hold the same tensors.

        Raises:
            InvalidRequest: unusable_policy, adapters_unavailable.
        """
        with _refused(adapter.folder):
            check_adapter(adapter.folder)
            model, _ = attach(base.model, adapter.folder, _module_name(adapter.name), extra=EXTRA)
            decoder = Decoder(model, self._decode)
            _prove(decoder)
        return decoder

    def _read(self, folder: Path, *, pickles: bool) -> Decoder:
        return Decoder(read_weights(folder, self._dtype, _resolved(self._device), pickles=pickles), self._decode)


def _resolved(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _module_name(name: str) -> str:
    """An adapter's name inside the model: PyTorch takes no dots there."""
    return name.replace(".", "_")


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """Tell what a folder cannot be used for, by its name: where it lies is nobody's business."""
    try:
        yield
    except UnusableModel as error:
        log.warning("a policy cannot be used: %s", error)
        detail = str(error).replace(f"{folder}/", "").replace(str(folder), folder.name)
        kind = "adapters_unavailable" if isinstance(error, PeftMissing) else "unusable_policy"
        raise InvalidRequest(detail, type=kind) from error


def _same_shape(model: Any, current: Any) -> None:
    if type(model) is not type(current):
        raise UnusableModel(f"another architecture: {type(model).__name__}, served is {type(current).__name__}")
    shapes, served = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (model, current))
    different = sorted(dict(shapes.items() ^ served.items()))
    if different:
        raise UnusableModel(f"tensors of another shape than the served model's: {', '.join(different[:5])}")


@torch.inference_mode()
def _prove(decoder: Decoder) -> None:
    """One forward pass: weights may be of the right shapes and still be no numbers, or be on two devices."""
    try:
        logits = decoder.model(input_ids=torch.tensor([[0]], device=decoder.model.device)).logits
    except RuntimeError as error:
        raise UnusableModel(f"it does not run: {type(error).__name__}") from error
    if not logits.isfinite().all():
        raise UnusableModel("its log-probs are not finite")
