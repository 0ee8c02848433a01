"""Making the base of the parts task, with the record (`recipe.json`) of how it was made."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from rlt_trainer.tiny.cache import Progress, to_stderr
from rlt_trainer.tiny.fit import fit, one_thread
from rlt_trainer.tiny.folders import whole
from rlt_trainer.tiny.make import RECORD, GateFailed
from rlt_trainer.tiny.model import new_model, save_model
from rlt_trainer.tiny.parts.documents import parts_base_documents
from rlt_trainer.tiny.parts.gate import parts_gate
from rlt_trainer.tiny.parts.recipe import PartsBaseRecipe


def make_parts_base(
    out_dir: Path,
    seed: int = 0,
    *,
    recipe: PartsBaseRecipe | None = None,
    replace: bool = False,
    progress: Progress = to_stderr,
) -> Path:
    """Pre-train a base from scratch; a seed that fails the gate is reported and the next one tried.

    Args:
        replace: an earlier model in `out_dir` may be replaced, once the new one is whole.

    Raises:
        FileExistsError: `out_dir` exists, is not empty and may not be replaced.
        GateFailed: `recipe.attempts` seeds failed.
    """
    recipe = recipe or PartsBaseRecipe()
    with whole(out_dir, replacing=RECORD if replace else None) as folder:
        for attempt in range(seed, seed + recipe.attempts):
            if _pretrained(folder, attempt, recipe, progress):
                return out_dir
            progress(f"seed {attempt} fails the gate of {recipe.gate}: next seed")
        raise GateFailed(f"seeds {seed} to {seed + recipe.attempts - 1} all failed the gate of {recipe.gate}")


def _pretrained(folder: Path, seed: int, recipe: PartsBaseRecipe, progress: Progress) -> bool:
    progress(f"base of the parts task, seed {seed}: {recipe.fitting.steps} steps")
    with one_thread():
        started = time.monotonic()
        model = new_model(recipe.shape, seed)
        loss = fit(model, parts_base_documents(recipe, seed), recipe.fitting, progress)
        measured = parts_gate(model, recipe)
    save_model(model, folder)
    facts = {"seed": seed, "steps": recipe.fitting.steps, "loss": round(loss, 4), "gate": measured}
    text = json.dumps({**facts, "recipe": asdict(recipe)}, indent=2)
    (folder / RECORD).write_text(f"{text}\n", encoding="utf-8")
    shown = ", ".join(f"{name} {share:.4f}" for name, share in measured.items())
    progress(f"base, seed {seed}: {shown}; {time.monotonic() - started:.0f} s")
    return min(measured.values()) > recipe.gate
