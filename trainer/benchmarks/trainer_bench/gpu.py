"""RL steps of models of real size on one GPU: trainer, teacher and reward server beside one another.

Teacher and student have the shape of the model that is trained, with random weights, and stay in bfloat16; the trainer
keeps its weights in float32. The engine is the teacher server's own, since a machine of this kind may have no vLLM; so
`generating s` says little of a run with one, all else is as it is there.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from reward_bench.shapes import Shape
from rlt_bench.measure import Figures, Record, machine
from trainer_bench.models import QWEN_05B, QWEN_15B, save_random
from trainer_bench.runs import GENERATING, PUBLISHING, STEP, WAITING, Ran, Work
from trainer_bench.runs import run as run_once
from trainer_bench.world import Settings, beside

__all__ = ["WORK", "run"]

SHAPES: Final = (QWEN_05B, QWEN_15B)
WORK: Final = Work(steps=4, batch=64, generations=16, max_tokens=512, micro_batch=8)
LOOK_S: Final = 0.2


def run(command: str, *, shapes: Sequence[Shape] = SHAPES, work: Work = WORK, device: str = "cuda") -> Record:
    """LoRA, then full weights, of every shape: an adapter wants the weights that the teacher began with."""
    record = Record("trainer-gpu", command, machine())
    for shape in shapes:
        with TemporaryDirectory() as name:
            save_random(shape, Path(name), torch.bfloat16)
            with beside(Path(name), device=device, dtype="bfloat16") as world:
                for way, told in _ways(work, device).items():
                    with _in_use(device) as most:
                        ran = run_once("ours", world, work, told)
                    record.add(shape.name, way, **_figures(ran, most, device))
    record.notes.append(f"{work}; {work.micro_batch} at once in the trainer; the first step is left out")
    return record


def _ways(work: Work, device: str) -> dict[str, Settings]:
    told: Settings = {
        "training.cpu": device == "cpu",
        "texts.max_tokens": work.max_tokens + 128,
        "mismatch.stop_mean": 1.0,  # of random weights: this is not what is looked at here
    }
    return {"LoRA": {**told, "model.lora.rank": 32}, "full weights": told}


def _figures(ran: Ran, most: list[float], device: str) -> Figures:
    def median(name: str) -> float:
        return statistics.median(step[name] for step in ran.steps)

    elsewhere = (GENERATING, WAITING, PUBLISHING)
    return {
        "step s": median(STEP),
        "generating s": median(GENERATING),
        "waiting s": median(WAITING),
        "publishing s": median(PUBLISHING),
        "update s": statistics.median(step[STEP] - sum(step[name] for name in elsewhere) for step in ran.steps),
        "tokens a completion": median("completions/mean_length"),
        "trainer's peak GiB": ran.peak_gib if device != "cpu" else None,
        "GPU in use GiB": max(most) if most else None,
    }


@contextmanager
def _in_use(device: str) -> Iterator[list[float]]:
    """GiB of the whole GPU, all processes together, every now and then."""
    seen: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            free, total = torch.cuda.mem_get_info()
            seen.append((total - free) / 2**30)

    thread = threading.Thread(target=look, daemon=True)
    if device != "cpu":
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        if device != "cpu":
            thread.join()
