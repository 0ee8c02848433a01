"""The second task of the miniature: an answer of several tokens, whose parts rest on separate parts of the explanation.

Importing this package loads no torch: `rlt_trainer.tiny.parts.make` and `.gate` do.
"""

from pathlib import Path

from rlt_trainer.tiny.parts.corpus import parts_corpus
from rlt_trainer.tiny.parts.recipe import CORPORA, PartsBaseRecipe, PartsMixture
from rlt_trainer.tiny.parts.task import PartsProblem, Use, parts_problems
from rlt_trainer.tiny.parts.traces import TraceStyle, good_parts_trace, leaking_parts_trace, style_of

__all__ = [
    "CORPORA",
    "PartsBaseRecipe",
    "PartsMixture",
    "PartsProblem",
    "TraceStyle",
    "Use",
    "good_parts_trace",
    "leaking_parts_trace",
    "parts_base",
    "parts_corpus",
    "parts_problems",
    "style_of",
]


def parts_base() -> Path:
    """The folder of the base that comes with this package.

    Raises:
        FileNotFoundError: the package was installed without its data.
    """
    folder = Path(__file__).parent / "base"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no model in {folder}: make one with `rlt-trainer tiny parts-base --out {folder}`")
    return folder
