"""The miniature: a task, a tokenizer and two models that the project trains from scratch in minutes on one core.

Importing this package loads no torch: what needs it is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlt_trainer.tiny.recipe import BaseRecipe, Fitting, Mixture, ModelShape, WarmupRecipe
from rlt_trainer.tiny.task import Problem, problems
from rlt_trainer.tiny.traces import good_trace, leaking_trace

if TYPE_CHECKING:
    from rlt_trainer.tiny.cache import ensure_base, ensure_warmup
    from rlt_trainer.tiny.gate import Gate, single_op_accuracy
    from rlt_trainer.tiny.make import GateFailed, Made, make_base, make_warmup
    from rlt_trainer.tiny.tokenizer import make_tokenizer

__all__ = [
    "BaseRecipe",
    "Fitting",
    "Gate",
    "GateFailed",
    "Made",
    "Mixture",
    "ModelShape",
    "Problem",
    "WarmupRecipe",
    "ensure_base",
    "ensure_warmup",
    "good_trace",
    "leaking_trace",
    "make_base",
    "make_tokenizer",
    "make_warmup",
    "problems",
    "single_op_accuracy",
]

_LAZY = {
    **dict.fromkeys(("Gate", "single_op_accuracy"), "gate"),
    **dict.fromkeys(("ensure_base", "ensure_warmup"), "cache"),
    **dict.fromkeys(("GateFailed", "Made", "make_base", "make_warmup"), "make"),
    "make_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
