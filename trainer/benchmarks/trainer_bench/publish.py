"""What it costs to put new weights into the engine: written whole, hashed, read, proved.

`published` is the whole call to the teacher server, which hashes a folder before and after its engine reads it, and
proves what was read by a forward pass, vLLM also by a prompt with and without its cache. Between steps no request
runs, so nothing waits for others to end.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM
from transformers.utils import logging

from reward_bench.shapes import Shape
from rlt_bench.command import ROOT
from rlt_bench.measure import Figures, Record, machine
from rlt_client.prompts import TextCodec
from rlt_local.engine import engine_python
from rlt_service.revision import model_revision
from rlt_trainer.config.rl import Rollout
from rlt_trainer.rl.engines import TeacherEngine
from rlt_trainer.rl.publishing import Versions
from rlt_trainer.saving import write_weights
from rlt_trainer.tiny import ensure_warmup
from rlt_trainer.tiny.model import load_model
from trainer_bench.models import QWEN_05B, save_random
from trainer_bench.world import launched, server

__all__ = ["run"]

ROUNDS: Final = 5
RANK: Final = 16
ADAPTER: Final = "lora_"  # in the names of an adapter's tensors
CACHE_MIB: Final = 512


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    model: LlamaForCausalLM
    folder: Path
    dtype: str


def run(command: str, *, shape: Shape = QWEN_05B, rounds: int = ROUNDS) -> Record:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of each model written
    record = Record("trainer-publish", command, machine())
    tiny = ensure_warmup()
    case = _Case("147k parameters", load_model(tiny), tiny, "float32")
    for engine in (_embedded, _vllm):
        _ways(record, case, engine, rounds)
    del case
    gc.collect()
    with TemporaryDirectory() as name:
        large = _Case(shape.name, save_random(shape, Path(name), torch.bfloat16), Path(name), "bfloat16")
        _ways(record, large, _embedded, rounds)
    record.notes += [
        f"medians of {rounds} rounds after one that is not counted; LoRA of rank {RANK} on all linear layers",
        "the tiny model in float32, the other in bfloat16; folders are on the disk before the engine is told (fsync)",
    ]
    return record


@contextmanager
def _embedded(case: _Case, folder: Path) -> Iterator[str]:
    flags = ["--model", case.folder, "--allowed-roots", folder, "--dtype", case.dtype]
    with server("teacher", flags) as url:
        yield url


@contextmanager
def _vllm(case: _Case, folder: Path) -> Iterator[str]:
    with launched(case.folder, engine_python(ROOT / ".engine"), folder, dtype=case.dtype, memory_mib=CACHE_MIB) as url:
        yield url


ENGINES: Final = {_embedded: "transformers", _vllm: "vLLM"}


def _ways(record: Record, case: _Case, engine: Callable[..., Any], rounds: int) -> None:
    """An adapter, then full weights, at one teacher server: an adapter wants those that the server began with."""
    with TemporaryDirectory() as name, engine(case, Path(name)) as url:
        for lora in (True, False):
            with _trained(case.model, lora=lora) as model:
                taken = asyncio.run(_rounds(case, model, url, Path(name), rounds, lora=lora))
            way = f"{ENGINES[engine]}, {'LoRA' if lora else 'full weights'}"
            record.add(case.name, way, **_figures(taken))


@contextmanager
def _trained(model: Any, *, lora: bool) -> Iterator[Any]:
    """What an optimizer would change: all of the model, or an adapter, which is taken off it again."""
    if not lora:
        yield model
        return
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    try:
        yield adapted
    finally:
        adapted.unload()
        model.requires_grad_(True)


@dataclass(frozen=True, slots=True)
class _Took:
    """Seconds of one version, and its size."""

    write: float
    hash_once: float
    published: float
    mib: float


async def _rounds(case: _Case, model: Any, url: str, folder: Path, rounds: int, *, lora: bool) -> list[_Took]:
    versions = Versions(folder / ("lora" if lora else "full"), keep=2)
    tokenizer = TextCodec.of_folder(case.folder).tokenizer
    engine = TeacherEngine(Rollout(url=url, weights=folder), key=None, stop=[])

    def save(path: Path) -> None:
        state = {name: value for name, value in model.state_dict().items() if not lora or ADAPTER in name}
        write_weights(path, model, state, tokenizer, case.dtype)

    async def once(step: int) -> _Took:
        _change(model)
        moments = [time.perf_counter()]
        path = versions.write(step, save)
        moments.append(time.perf_counter())
        model_revision(path)
        moments.append(time.perf_counter())
        await engine.publish(path, lora=lora)
        moments.append(time.perf_counter())
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
        versions.prune(step)
        write, hash_once, published = (after - before for before, after in pairwise(moments))
        return _Took(write, hash_once, published, size)

    try:
        return [await once(step) for step in range(rounds + 1)][1:]
    finally:
        await engine.aclose()


def _figures(taken: Sequence[_Took]) -> Figures:
    def median(of: Callable[[_Took], float]) -> float:
        return statistics.median(map(of, taken))

    return {
        "MiB": median(lambda each: each.mib),
        "write s": median(lambda each: each.write),
        "hash once s": median(lambda each: each.hash_once),
        "published s": median(lambda each: each.published),
        "whole s": median(lambda each: each.write + each.published),
    }


@torch.no_grad()
def _change(model: Any) -> None:
    """Other weights each time: what an engine has already, it does not load again."""
    last = [parameter for parameter in model.parameters() if parameter.requires_grad][-1]
    last += 0.01 * torch.randn_like(last)
