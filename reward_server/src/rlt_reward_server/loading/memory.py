"""Whether a model fits, told before anything of it is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil
import torch
from safetensors import SafetensorError

from rlt_client.errors import Conflict
from rlt_client.schemas.common import FieldError
from rlt_service.checkpoint import UnusableModel, first_line, tensors, weight_files

__all__ = ["InsufficientMemory", "checkpoint_bytes", "ensure_room", "free_bytes"]

FLOATS: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # what a dtype that is asked for replaces
SIZES: Final = FLOATS | {"F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
WANTED: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
CGROUP: Final = Path("/sys/fs/cgroup")
LAYERS: Final = ".layers."  # what transformers' plans cut; embeddings and norms are whole in every part
MIB: Final = 2**20


class InsufficientMemory(Conflict):
    default_type = "insufficient_memory"
    title = "The model does not fit"


def checkpoint_bytes(folder: Path, dtype: str, *, parts: int = 1, fp8: bool = False) -> int:
    """Bytes that the weights of a folder take in memory, by the headers of its safetensors, else by its files' sizes.

    Args:
        dtype: of the weights; `auto` takes the checkpoint's.
        parts: into how many the layers are cut; the bytes are then those of one.
        fp8: whether matrices of layers are kept in 8 bits.

    Raises:
        UnusableModel: the files cannot be read.
    """
    try:
        return _checkpoint_bytes(folder, dtype, parts, fp8)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, SafetensorError) as error:
        raise UnusableModel(f"{folder}: the model cannot be loaded: {first_line(error)}") from error


def _checkpoint_bytes(folder: Path, dtype: str, parts: int, fp8: bool) -> int:
    wanted = WANTED.get(_configured(folder) if dtype == "auto" else dtype)
    files = weight_files(folder)
    if files and files[0].suffix != ".safetensors":
        return sum(file.stat().st_size for file in files) * (2 if wanted == 4 else 1)  # at worst it is widened
    total = 0
    for file in files:
        for name, kind, shape in tensors(file):
            in_layer = LAYERS in name
            kept = 1 if fp8 and in_layer and len(shape) == 2 else wanted
            total += -(-_tensor_bytes(kind, shape, kept) // (parts if in_layer else 1))
    return total


def _configured(folder: Path) -> str:
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    return str(config.get("dtype") or config.get("torch_dtype") or "")


def _tensor_bytes(dtype: str, shape: Sequence[int], wanted: int | None) -> int:
    return math.prod(shape) * (wanted if wanted and dtype in FLOATS else SIZES.get(dtype, 8))


def free_bytes(device: torch.device) -> int:
    """What could be allocated now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min([int(psutil.virtual_memory().available), *_cgroup_free()])


def _cgroup_free() -> Iterator[int]:
    """A container's own limit, which the machine's figures do not show."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cache = next(
            line for line in (CGROUP / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
        )
    except (OSError, StopIteration):  # no container, or the first version of cgroups
        return
    if limit != "max":
        yield int(limit) - int(used) + int(cache.split()[1])


def ensure_room(needed: int, devices: Iterable[torch.device], *, loaded: int, reserve: int, limit: int | None) -> None:
    """Refuse what does not fit on one of the devices.

    Args:
        needed: bytes of the new weights, on each device.
        loaded: bytes of the weights that are on each device already.
        reserve: bytes that stay free for forward passes.
        limit: bytes of weights on one device at most.

    Raises:
        InsufficientMemory: with the figures of each device.
    """
    short = []
    for device in dict.fromkeys(devices):
        room = free_bytes(device) - reserve
        if limit is not None:
            room = min(room, limit - loaded)
        if needed > room:
            short.append(f"{device}: needs {needed} bytes ({needed / MIB:,.0f} MiB), {max(room, 0)} are free")
    if short:
        detail = f"{'; '.join(short)} ({loaded} in use by models, {reserve} kept free for passes"
        detail += f", at most {limit} for models)" if limit is not None else ")"
        raise InsufficientMemory(detail, errors=[FieldError(pointer="/source", detail=each) for each in short])
