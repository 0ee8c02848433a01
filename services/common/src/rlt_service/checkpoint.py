"""Model folders as files: which weights are read, their shapes, which adapters can be served. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rlt_client.errors import RLTError

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "UnusableModel",
    "check_adapter",
    "first_line",
    "read_json",
    "tensor_shapes",
    "tensors",
    "weight_files",
]

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
INITS: Final = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the weights of the base

_Bad = Callable[[Any], bool]
REFUSED: Final[dict[str, tuple[_Bad, str]]] = {
    "peft_type": (lambda v: v != "LORA", "only LoRA adapters can be served"),
    "bias": (lambda v: v not in (None, "none"), "it changes biases of the base: train with bias='none'"),
    "modules_to_save": (bool, "it replaces whole modules: merge it into a full model"),
    "trainable_token_indices": (bool, "it changes the embedding: merge it into a full model"),
    "target_parameters": (bool, "adapters of bare parameters cannot be served: merge it into a full model"),
    "layer_replication": (bool, "it changes the layers of the base: merge it into a full model"),
    "alora_invocation_tokens": (bool, "activated LoRA depends on the prompt's tokens"),
    "arrow_config": (bool, "it routes between several adapters"),
    "init_lora_weights": (lambda v: v not in INITS, "it changes the weights of the base: convert it to plain LoRA"),
}


class UnusableModel(RLTError):
    """A model folder that is there but cannot be served."""


def check_adapter(folder: Path) -> None:
    """Raises `UnusableModel` for what is no adapter folder of PEFT, or an adapter of a kind that cannot be served."""
    config = read_json(folder / ADAPTER_CONFIG)
    for field, (bad, reason) in REFUSED.items():
        if bad(config.get(field)):
            raise UnusableModel(f"{folder}: {field} = {json.dumps(config.get(field))}: {reason}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UnusableModel(f"{folder}: there is no {ADAPTER_WEIGHTS}; weights in other files are not read")


def read_json(path: Path) -> dict[str, Any]:
    """Raises `UnusableModel` for a file that is not there, or is no JSON object."""
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UnusableModel(f"{path.parent}: {path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(read, dict):
        raise UnusableModel(f"{path.parent}: {path.name} is not an object")
    return read


def weight_files(folder: Path) -> list[Path]:
    """What is loaded: other copies may lie beside it (`consolidated.safetensors`).

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError: the index cannot be read.
    """
    for stem, suffix in (("model", "safetensors"), ("adapter_model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if single.is_file():
            return [single]
        if index.is_file():
            return [_inside(folder, name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def _inside(folder: Path, name: str) -> Path:
    """An index may name any path; transformers would read it. Raises `ValueError`."""
    if Path(name).name != name:
        raise ValueError(f"the index names {name!r}, which is not a file of this folder")
    return folder / name


def tensors(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor of a safetensors file, by its header; needs safetensors.

    Raises:
        OSError, SafetensorError: the file cannot be read, or breaks off.
    """
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        for name in opened.keys():  # noqa: SIM118  # not a dict
            tensor = opened.get_slice(name)
            yield name, tensor.get_dtype(), tuple(tensor.get_shape())


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a folder's tensors by name, from the headers of its safetensors.

    Raises:
        UnusableModel: they cannot be read, or there are none: pickles are never read.
    """
    from safetensors import SafetensorError

    try:
        files = weight_files(folder)
        if not files or files[0].suffix != ".safetensors":
            raise UnusableModel(f"{folder}: it has no safetensors; weights in other files are not read")
        return {name: shape for file in files for name, _, shape in tensors(file)}
    except (OSError, ValueError, TypeError, AttributeError, LookupError, SafetensorError) as error:
        raise UnusableModel(f"{folder}: its weights cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
