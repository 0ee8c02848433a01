"""Models of transformers in memory, and adapters of PEFT on them. Imported by servers that compute; torch, transformers
and peft are theirs, and imported at the first call.

Each adapter gets a copy of its base's modules that holds the same tensors: one forward can only ever use one version,
nothing is switched between batches, and the base stays as it is. What an adapter might write into those shared tensors
(biases, initialisations that change the base) is refused by `checkpoint.check_adapter`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlt_service.checkpoint import ADAPTER_WEIGHTS, UnusableModel, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["PeftMissing", "attach", "read_weights", "sharing_copy"]

PREFIX: Final = "base_model.model."


class PeftMissing(UnusableModel):
    """Adapters need a library that is not installed."""


def read_weights(folder: Path, dtype: str, device: torch.device, *, pickles: bool, **options: Any) -> nn.Module:
    """A causal language model in evaluation mode, read straight onto its device; needs accelerate.

    Args:
        dtype: of the weights; `auto` takes the checkpoint's.
        pickles: whether weights other than safetensors may be read.
        options: more for `from_pretrained`.

    Raises:
        UnusableModel: it cannot be read, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    where = options or {"device_map": {"": device}}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=None if pickles else True,
            output_loading_info=True,
            **where,
        )
        model, found = loaded
    except Exception as error:  # transformers raises whatever it meets: broken files, unknown architectures
        raise UnusableModel(f"{folder}: the model cannot be loaded: {first_line(error)}") from error
    wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if wrong:  # transformers fills these with random numbers and only warns
        raise UnusableModel(f"{folder}: weights are missing or of another shape: {', '.join(wrong[:5])}")
    module: nn.Module = model.eval().requires_grad_(False)
    return module


def sharing_copy(model: nn.Module) -> nn.Module:
    """A second model with the same tensors: modules can be put into it, and the first never notices."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def attach(base: nn.Module, folder: Path, name: str, *, extra: str) -> tuple[nn.Module, int]:
    """The base with the adapter, and the bytes that the adapter takes.

    Args:
        folder: one that `check_adapter` accepts.
        name: of the adapter; one that no other version ever had.
        extra: the optional dependencies that bring PEFT, for its absence.

    Raises:
        PeftMissing: it is not installed.
        UnusableModel: the adapter does not fit the base: modules, ranks, shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    except ModuleNotFoundError as error:
        raise PeftMissing(f"adapters need PEFT: pip install '{extra}'") from error
    model = sharing_copy(base)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS, device=str(next(base.parameters()).device))
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)
        named = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
        outcome: Any = set_peft_model_state_dict(model, named, name, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise UnusableModel(f"{folder}: the adapter does not fit its base: {_reason(error)}") from error
    missing = [key for key, parameter in model.named_parameters() if parameter.is_meta]
    wrong = sorted([*missing, *outcome.unexpected_keys])
    if wrong:
        raise UnusableModel(f"{folder}: the adapter's weights do not fit its base or its rank: {', '.join(wrong[:5])}")
    return model.eval().requires_grad_(False), _own(model, base)


def _own(model: nn.Module, base: nn.Module) -> int:
    """Bytes of what the copy has for itself, in the base's dtype from now on."""
    shared = set(map(id, base.parameters()))
    dtype = next(base.parameters()).dtype
    size = 0
    for parameter in model.parameters():
        if id(parameter) not in shared:
            parameter.data = parameter.data.to(dtype)
            size += parameter.nbytes
    return size


def _reason(error: Exception) -> str:
    """PyTorch names the tensors on the lines after the first."""
    return " ".join(str(error).split())[:500] or type(error).__name__
