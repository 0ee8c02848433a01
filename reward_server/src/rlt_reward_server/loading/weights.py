"""Full models from folders, without touching what other threads compute meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from transformers import modeling_utils

from rlt_service.checkpoint import UnusableModel, first_line
from rlt_service.torch_models import read_weights, sharing_copy

__all__ = ["UnusableModel", "first_line", "read_weights", "resolve_devices", "sharing_copy", "stored_bytes"]


class _DefaultDtype(TorchFunctionMode):
    """What `torch.set_default_dtype` does, for one thread."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _device_constructors() and not (kwargs or {}).get("dtype") and made.dtype is torch.float32:
            return made.to(self._dtype)
        return made


@contextmanager
def _thread_dtype(dtype: torch.dtype, model_class_name: str | None = None) -> Iterator[Any]:  # noqa: ARG001
    with _DefaultDtype(dtype):
        yield


# transformers sets the default dtype of the whole process while it builds a model: passes that run at that moment in
# other threads would make their masks and constants in it. A test fails if this name goes away.
modeling_utils.local_torch_dtype = _thread_dtype


def resolve_devices(names: Sequence[str]) -> tuple[torch.device, ...]:
    """`auto` is the first GPU, or the CPU.

    Raises:
        UnusableModel: there is no such device.
    """
    return tuple(map(_device, names))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda:0" if name == "cuda" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; no such GPU; a torch without CUDA
        raise UnusableModel(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


def stored_bytes(parameter: torch.Tensor) -> int:
    """What a parameter takes; one that is made of others says so."""
    flatten = getattr(parameter, "__tensor_flatten__", None)
    if flatten is None:
        return parameter.nbytes
    names, _ = flatten()
    return sum(stored_bytes(getattr(parameter, name)) for name in names)
