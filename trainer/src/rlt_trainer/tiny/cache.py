"""Where the base lies, and the warm-up, which is made once. torch is imported only where it has to be made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from rlt_trainer.tiny.folders import content_hash, default_cache, made_once
from rlt_trainer.tiny.recipe import WarmupRecipe, as_json

HERE = Path(__file__).parent
RECIPE_SOURCES = ("documents.py", "fit.py", "make.py", "model.py", "recipe.py", "task.py", "tokenizer.py", "traces.py")
WEIGHTS = "model.safetensors"
Progress = Callable[[str], None]


def to_stderr(line: str) -> None:
    """The default progress: one line at a time, never on stdout, which belongs to results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def ensure_base() -> Path:
    """The folder of the base that comes with this package.

    Raises:
        FileNotFoundError: the package was installed without its data.
    """
    folder = HERE / "base"
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"no model in {folder}: make one with `rlt-trainer tiny base --out {folder}`")
    return folder


def ensure_warmup(
    cache_dir: Path | None = None,
    *,
    seed: int = 0,
    recipe: WarmupRecipe | None = None,
    progress: Progress = to_stderr,
) -> Path:
    """The warm-up of the committed base, made the first time (about a minute) and then found in the cache.

    The folder's name carries a hash of the base's weights and of everything that shapes the warm-up.

    Args:
        cache_dir: holds `models/`; `default_cache()` if None.
    """
    base, recipe = ensure_base(), recipe or WarmupRecipe()
    folder = (cache_dir or default_cache()) / "models" / f"tiny-warmup-{warmup_key(base, seed, recipe)}"

    def make(out: Path) -> None:
        from rlt_trainer.tiny.make import make_warmup

        make_warmup(base, out, seed, recipe=recipe, progress=progress)

    return made_once(folder, make)


def warmup_key(base_dir: Path, seed: int, recipe: WarmupRecipe) -> str:
    """Changes with the base's weights, the seed, the recipe's numbers and the code that reads them."""
    numbers = json.dumps([seed, as_json(recipe)], sort_keys=True).encode()
    sources = [(HERE / name).read_bytes() for name in RECIPE_SOURCES]
    return content_hash((base_dir / WEIGHTS).read_bytes(), numbers, *sources)
