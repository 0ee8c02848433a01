"""LoRA adapters of PEFT on models that are loaded already.

Each adapter gets a copy of its base's modules that holds the same tensors: one forward can only ever use one version,
nothing is switched between batches, and the base stays as it is. What an adapter might write into those shared tensors
(biases, initialisations that change the base) is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rlt_reward_server.loading.weights import UnusableModel, sharing_copy
from rlt_service import checkpoint

__all__ = ["attach", "check_adapter"]

PREFIX: Final = "base_model.model."


def check_adapter(folder: Path) -> None:
    """Raises `UnusableModel` for what is no adapter folder, or for an adapter of a kind that cannot be served."""
    checkpoint.check_adapter(folder)
    try:
        import peft  # noqa: F401  # the extra `lora`
    except ModuleNotFoundError as error:
        raise UnusableModel("adapters need PEFT: pip install 'rlt-reward-server[lora]'") from error


def attach(base: nn.Module, folder: Path, name: str) -> tuple[nn.Module, int]:
    """The base with the adapter, and the bytes that the adapter takes.

    Args:
        folder: one that `check_adapter` accepts.
        name: of the adapter; one that no other version ever had.

    Raises:
        UnusableModel: it does not fit the base: modules, ranks, shapes.
    """
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    model = sharing_copy(base)
    try:
        tensors = load_file(folder / checkpoint.ADAPTER_WEIGHTS, device=str(next(base.parameters()).device))
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
    shared = set(map(id, base.parameters()))
    own = [parameter for parameter in model.parameters() if id(parameter) not in shared]
    dtype = next(base.parameters()).dtype
    for parameter in own:
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False), sum(p.numel() * p.element_size() for p in own)


def _reason(error: Exception) -> str:
    """PyTorch names the tensors on the lines after the first."""
    return " ".join(str(error).split())[:500] or type(error).__name__
