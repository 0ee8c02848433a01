"""The teacher's warm-up (arXiv 2506.08388, section 4.1): SFT on explanations, the loss on what it writes alone."""

from __future__ import annotations

from pathlib import Path

from rlt_trainer.config import SFTConfig
from rlt_trainer.config.distill import TraceShape
from rlt_trainer.finetuning import finetune
from rlt_trainer.tokenized import Tokenizing

__all__ = ["run"]


def run(config: SFTConfig) -> Path:
    """As `rlt_trainer.finetuning.finetune`."""
    return finetune(config, Tokenizing(config.model, config.texts, TraceShape.raw, tuple(config.roles)))
