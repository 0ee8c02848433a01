"""A configuration in the words of transformers' trainers."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any, Final, TypeVar

import torch
from transformers import TrainingArguments

from rlt_trainer.config.base import Stage
from rlt_trainer.config.sections import Checkpoints, Logging, Model, Strategy, Training
from rlt_trainer.errors import BadConfig
from rlt_trainer.launched import processes

__all__ = ["BARRIER_S", "shared_arguments", "without_cpu_number"]

BARRIER_S: Final = 7200
"""How long processes wait for one another: the first one makes tokens of a million texts, or writes a model of 32B."""

A = TypeVar("A", bound=TrainingArguments)

_NEEDED: Final[dict[str, str]] = {
    **{to: to for to in ("tensorboard", "wandb", "trackio")},
    **dict.fromkeys((Strategy.zero1, Strategy.zero2, Strategy.zero3), "deepspeed"),
}
"""The package behind a setting."""


def shared_arguments(
    stage: Stage, model: Model, training: Training, logging: Logging, checkpoints: Checkpoints
) -> dict[str, Any]:
    """What `TrainingArguments` and what builds on it (SFTConfig, GRPOConfig) take alike.

    Raises:
        BadConfig: the batch does not divide among the processes, or a package or the GPUs of a strategy are missing.
    """
    on_cpu = training.cpu or not torch.cuda.is_available()
    _require("logging.to", *logging.to)
    _require("training.strategy", training.strategy)
    if on_cpu and training.strategy is not Strategy.ddp:
        raise BadConfig(f"training.strategy {training.strategy} needs GPUs: on CPUs nothing would be sharded")
    # transformers 5.17 takes TensorBoard's folder and wandb's project from here alone
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(stage.output / "logs")
    os.environ["WANDB_PROJECT"] = logging.project
    try:
        accumulation = training.accumulation(processes())
    except ValueError as error:
        raise BadConfig(f"training: {error}") from error
    ends = {"max_steps": training.steps} if training.steps else {"num_train_epochs": training.epochs}
    # FSDP's own way to recompute gathers less, but names layers so that peft 0.21 saves adapters without a weight
    wrapped = training.strategy is Strategy.fsdp and model.lora is None
    least = {"min_lr_rate": training.min_lr_share} if training.schedule == "cosine_with_min_lr" else {}
    return {
        "output_dir": str(stage.output),
        "seed": stage.seed,
        "data_seed": stage.seed,
        "per_device_train_batch_size": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "lr_scheduler_kwargs": least,
        "warmup_steps": training.warmup_steps or training.warmup_share,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.beta1,
        "adam_beta2": training.beta2,
        "max_grad_norm": training.max_grad_norm,
        "bf16": model.dtype == "bfloat16",
        "gradient_checkpointing": model.gradient_checkpointing and not wrapped,
        "use_cpu": on_cpu,
        "ddp_timeout": BARRIER_S,
        "save_strategy": "steps" if checkpoints.every else "no",
        "save_steps": checkpoints.every or 1,
        "save_total_limit": None,  # ours: transformers would remove the old one before the new one is whole
        "logging_steps": logging.every,
        "logging_first_step": True,
        "report_to": list(logging.to) or "none",
        "project": logging.project,
        "run_name": logging.name or stage.output.name,
        "disable_tqdm": not sys.stderr.isatty(),
        **ends,
        **_shared_by(training.strategy, recompute=model.gradient_checkpointing and wrapped),
    }


def without_cpu_number(arguments: A) -> A:
    """Several processes on CPUs have the device `cpu:0` by accelerate 1.15, onto which torch reads no checkpoint."""
    if arguments.device.type == "cpu":
        arguments.__dict__["_setup_devices"] = torch.device("cpu")  # where `arguments.device` is kept
    return arguments


def _require(setting: str, *values: str) -> None:
    for value in values:
        package = _NEEDED.get(value)
        if package is not None and importlib.util.find_spec(package) is None:
            raise BadConfig(f"{setting} {value} needs the package {package}, which is not installed")


def _shared_by(strategy: Strategy, *, recompute: bool) -> dict[str, Any]:
    if strategy is Strategy.ddp:
        return {"ddp_find_unused_parameters": False}
    if strategy is Strategy.fsdp:
        return {
            "fsdp": True,
            "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "activation_checkpointing": recompute},
        }
    stage = int(strategy.value[-1])
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {"deepspeed": {"zero_optimization": zero, "bf16": {"enabled": "auto"}, **dict.fromkeys(auto, "auto")}}
