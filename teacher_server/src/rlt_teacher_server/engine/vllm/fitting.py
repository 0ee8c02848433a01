"""Whether files fit the model that a vLLM server holds; by their headers alone.

vLLM itself takes too much: it keeps the old values of tensors that a checkpoint lacks, leaves out adapters of layers
that the model lacks, scales every module of an adapter alike; and after a tensor of another shape no weights can be
put into it any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rlt_client.errors import InvalidRequest
from rlt_service.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    UnusableModel,
    check_adapter,
    first_line,
    read_json,
    tensor_shapes,
    tensors,
)

__all__ = ["fit_adapter", "fit_weights", "unusable"]

PREFIX: Final = "base_model.model."
HALVES: Final = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
TIED: Final = "lm_head.weight"
TOLD: Final = 3  # names that a refusal lists

Shapes = Mapping[str, tuple[int, ...]]


def unusable(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, type="unusable_policy")


def fit_weights(base: Path, folder: Path) -> None:
    """Raises `InvalidRequest` (unusable_policy) unless the tensors of both have the same names and shapes."""
    with _reading(folder, base):
        own, served = tensor_shapes(folder), tensor_shapes(base)
        tied = read_json(base / "config.json").get("tie_word_embeddings")
    wrong = sorted(name for name in own.keys() | served.keys() if own.get(name) != served.get(name))
    if tied:
        wrong = [name for name in wrong if name != TIED]  # written by some, left out by some
    if wrong:
        listed = ", ".join(wrong[:TOLD]) + (f" and {len(wrong) - TOLD} more" if len(wrong) > TOLD else "")
        raise unusable(f"{folder.name}: missing, too many, or of another shape than in the model: {listed}")


def fit_adapter(base: Path, folder: Path) -> None:
    """Raises `InvalidRequest` (unusable_policy) unless each tensor is half of a pair, of a module of the model."""
    with _reading(folder, base):
        check_adapter(folder)
        config = read_json(folder / ADAPTER_CONFIG)
        own, served = {name: shape for name, _, shape in tensors(folder / ADAPTER_WEIGHTS)}, tensor_shapes(base)
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise unusable(f"{folder.name}: vLLM knows one rank and one alpha for all modules")
    pairs = dict(_pairs(own))
    halves = {name for pair in pairs.values() for name in pair}
    if not pairs or len(halves) < len(own):
        raise unusable(f"{folder.name}: {min(own.keys() - halves, default='nothing')} is not half of a LoRA pair")
    targets = config.get("target_modules")
    if isinstance(targets, list) and (wrong := [m for m in pairs if m.rpartition(".")[2] not in _last_names(targets)]):
        raise unusable(f"{folder.name}: {wrong[0]} is not among its target_modules")
    for module, (first, second) in pairs.items():
        if problem := _misfit(own[first], own[second], served.get(f"{module}.weight"), config.get("r")):
            raise unusable(f"{folder.name}: {module}: {problem}")


def _last_names(targets: list[Any]) -> set[str]:
    return {str(target).rpartition(".")[2] for target in targets}


def _pairs(own: Shapes) -> Iterator[tuple[str, tuple[str, str]]]:
    """The modules that are adapted, and the names of their two tensors."""
    for name in own:
        for first, second in HALVES.items():
            module = name.removesuffix(first)
            if module != name and name.startswith(PREFIX) and module + second in own:
                yield module.removeprefix(PREFIX), (name, module + second)


def _misfit(first: tuple[int, ...], second: tuple[int, ...], weight: tuple[int, ...] | None, rank: Any) -> str | None:
    """`first` is [rank, in], `second` [out, rank]; a weight is stored either way round."""
    if weight is None:
        return "the model has no such module"
    if len(first) != 2 or len(second) != 2 or not first[0] == second[1] == rank:
        return f"its rank is not the {rank} of {ADAPTER_CONFIG}"
    if sorted((first[1], second[0])) != sorted(weight):
        return f"it is made for {[second[0], first[1]]}, in the model it is {list(weight)}"
    return None


@contextmanager
def _reading(folder: Path, base: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except UnusableModel as error:
        raise unusable(str(error).replace(str(folder), folder.name).replace(str(base), base.name)) from error
    except (OSError, ValueError, TypeError, AttributeError, LookupError, SafetensorError) as error:
        raise unusable(f"{folder.name}: it cannot be read: {first_line(error)}") from error
