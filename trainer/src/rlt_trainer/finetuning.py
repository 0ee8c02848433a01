"""Supervised fine-tuning by TRL's trainer on examples that are token ids already."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig as Arguments
from trl.trainer.sft_trainer import SFTTrainer

from rlt_trainer import checkpoints, record
from rlt_trainer.arguments import shared_arguments, without_cpu_number
from rlt_trainer.callbacks import Sealing, equip
from rlt_trainer.config import DistillConfig, SFTConfig
from rlt_trainer.errors import BadConfig
from rlt_trainer.models import load_model, lora_config
from rlt_trainer.saving import save_trained
from rlt_trainer.stopping import Stop, Stopping
from rlt_trainer.tokenized import Tokenizing, tokenized

__all__ = ["finetune"]

log = logging.getLogger(__name__)

_FUSED: Final = ("flash_attention", "flex_attention", "kernels-community/")
"""Attention that skips what lies between packed texts; others hold a mask of the whole square."""


def finetune(config: SFTConfig | DistillConfig, tokenizing: Tokenizing) -> Path:
    """Train; go on from the newest checkpoint where there is one.

    Returns:
        The folder of the finished model.

    Raises:
        RLTError: see `rlt_trainer.errors` and `rlt_client.errors`.
    """
    arguments = _arguments(config)  # first: it knows the processes that all else is divided among
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        resume = checkpoints.starting_point(config.output, resume=config.checkpoints.resume)
        examples = tokenized(config.data, tokenizing, config.output / "tokens")
    if state.is_main_process:
        record.keep(config, goes_on=resume is not None)
    with Stop() as stop:
        trainer = _trainer(config, arguments, examples, tokenizing)
        equip(trainer, Sealing(config.checkpoints.keep), Stopping(stop))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        stop.check_done(trainer.state)
    made = save_trained(trainer, config.model, config.output)
    if state.is_main_process:
        shutil.rmtree(config.output / "tokens", ignore_errors=True)
    return made


def _trainer(
    config: SFTConfig | DistillConfig, arguments: Arguments, examples: Dataset, tokenizing: Tokenizing
) -> SFTTrainer:
    model = load_model(config.model)
    if config.packing and torch.cuda.is_available():
        _warn_of_square_masks(model.config._attn_implementation)
    try:
        return SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=examples,
            processing_class=tokenizing.codec.tokenizer,
            peft_config=lora_config(config.model.lora),
        )
    except ValueError as error:  # such as LoRA targets that the model lacks
        raise BadConfig(str(error)) from error


def _warn_of_square_masks(attention: str | None) -> None:
    if not (attention or "").startswith(_FUSED):
        log.warning(
            "packing with attention %s keeps texts apart by a mask whose memory grows with the square of the length: "
            "set model.attention, such as flash_attention_2",
            attention,
        )


def _arguments(config: SFTConfig | DistillConfig) -> Arguments:
    shared: dict[str, Any] = shared_arguments(config, config.model, config.training, config.logging, config.checkpoints)
    try:
        arguments = Arguments(
            **shared,
            packing=config.packing,
            max_length=config.texts.max_tokens if config.packing else None,  # examples fit already
        )
        return without_cpu_number(arguments)
    except (ValueError, ImportError) as error:  # such as bfloat16 on a device that has none
        raise BadConfig(f"training: {error}") from error
