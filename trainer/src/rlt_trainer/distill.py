"""A student learns from traces: thoughts and answer, the loss on the assistant's text alone."""

from __future__ import annotations

from pathlib import Path

from rlt_trainer.config import DistillConfig
from rlt_trainer.config.sections import TextRole
from rlt_trainer.finetuning import finetune
from rlt_trainer.tokenized import Tokenizing

__all__ = ["run"]


def run(config: DistillConfig) -> Path:
    """As `rlt_trainer.finetuning.finetune`."""
    return finetune(config, Tokenizing(config.model, config.texts, config.shape, (TextRole.student,)))
