"""Making the base and the warm-up, and the record (`recipe.json`) that each folder keeps of how it was made."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rlt_client.errors import RLTError
from rlt_trainer.tiny.cache import Progress, to_stderr
from rlt_trainer.tiny.documents import base_documents, warmup_documents
from rlt_trainer.tiny.fit import fit, one_thread
from rlt_trainer.tiny.folders import whole
from rlt_trainer.tiny.gate import Gate, gate
from rlt_trainer.tiny.model import load_model, new_model, save_model
from rlt_trainer.tiny.recipe import BaseRecipe, WarmupRecipe, as_json

RECORD = "recipe.json"


class GateFailed(RLTError):
    """No seed gave a base that can do what the rest is built on."""


@dataclass(frozen=True, slots=True)
class Made:
    """A model folder just made. `loss` in nats per learned token; `gate` for a base only."""

    folder: Path
    seed: int
    steps: int
    loss: float
    seconds: float
    gate: Gate | None = None


def make_base(
    out_dir: Path,
    seed: int = 0,
    *,
    recipe: BaseRecipe | None = None,
    replace: bool = False,
    progress: Progress = to_stderr,
) -> Made:
    """Pre-train a base from scratch; a seed that fails the gate is reported and the next one tried.

    Args:
        replace: an earlier model in `out_dir` may be replaced, once the new one is whole.

    Raises:
        FileExistsError: `out_dir` exists, is not empty and may not be replaced.
        GateFailed: `recipe.attempts` seeds failed.
    """
    recipe = recipe or BaseRecipe()
    with whole(out_dir, replacing=RECORD if replace else None) as folder:
        for attempt in range(seed, seed + recipe.attempts):
            made = _pretrain(folder, attempt, recipe, progress)
            if made.gate and made.gate.passed(recipe.gate):
                return dataclasses.replace(made, folder=out_dir)
            progress(f"seed {attempt} fails the gate of {recipe.gate}: next seed")
        raise GateFailed(f"seeds {seed} to {seed + recipe.attempts - 1} all failed the gate of {recipe.gate}")


def make_warmup(
    base_dir: Path,
    out_dir: Path,
    seed: int = 0,
    *,
    recipe: WarmupRecipe | None = None,
    progress: Progress = to_stderr,
) -> Made:
    """Fine-tune a base on both formats of the mixed corpus.

    Raises:
        FileExistsError: `out_dir` exists and is not an empty folder.
    """
    recipe = recipe or WarmupRecipe()
    with whole(out_dir) as folder, one_thread():
        progress(f"warm-up, seed {seed}: {recipe.corpus} questions, {recipe.fitting.steps} steps")
        started = time.monotonic()
        model = load_model(base_dir)
        loss = fit(model, warmup_documents(recipe, seed), recipe.fitting, progress)
        save_model(model, folder)
        made = Made(out_dir, seed, recipe.fitting.steps, loss, time.monotonic() - started)
        _record(folder, made, recipe)
        progress(f"warm-up done in {made.seconds:.0f} s, loss {loss:.3f}")
    return made


def _pretrain(folder: Path, seed: int, recipe: BaseRecipe, progress: Progress) -> Made:
    progress(f"base, seed {seed}: {recipe.fitting.steps} steps, learning rate {recipe.fitting.learning_rate}")
    with one_thread():
        started = time.monotonic()
        model = new_model(recipe.shape, seed)
        loss = fit(model, base_documents(recipe, seed), recipe.fitting, progress)
        measured = gate(model)
    save_model(model, folder)
    made = Made(folder, seed, recipe.fitting.steps, loss, time.monotonic() - started, measured)
    _record(folder, made, recipe)
    verdict = "passes" if measured.passed(recipe.gate) else "fails"
    progress(f"base, seed {seed}: {measured}; {verdict} the gate of {recipe.gate}; {made.seconds:.0f} s")
    return made


def _record(folder: Path, made: Made, recipe: BaseRecipe | WarmupRecipe) -> None:
    measured: dict[str, object] = {"seed": made.seed, "steps": made.steps, "loss": round(made.loss, 4)}
    if made.gate:
        measured["gate"] = asdict(made.gate)
    text = json.dumps({**measured, "recipe": as_json(recipe)}, indent=2)
    (folder / RECORD).write_text(f"{text}\n", encoding="utf-8")
