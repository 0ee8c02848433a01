"""What a run would do, told before it is done: a configuration file that says the same, and the memory it needs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import tomlkit

from rlt_trainer.config import DistillConfig, EvaluateConfig, RLConfig, SFTConfig, Stage
from rlt_trainer.errors import BadConfig
from rlt_trainer.memory import Load, Use, cache, device, disk
from rlt_trainer.shapes import Shape, shape_of

__all__ = ["as_toml", "plan"]

WIDTHS: Final = {"float32": 4, "bfloat16": 2}  # bytes
_GIB: Final = 2**30
_UNCOUNTED: Final = (
    "An estimate: states are exact, activations those of a dense decoder with fused attention. Leave a fifth beside it "
    "for the device's context (about 1 GiB), fragments, attention masks and buffers of communication. Whatever else "
    "has the same device, such as an engine or a student, is not counted."
)


def plan(config: Stage, processes: int = 1) -> str:
    """The whole configuration, defaults included, as TOML, then what it needs of memory and disk as its comments.

    Raises:
        BadConfig: the batch does not divide among the processes.
    """
    lines = _needs(config, processes)
    return "".join([as_toml(config), "\n", *(f"# {line}".rstrip() + "\n" for line in lines)])


def as_toml(config: Stage) -> str:
    """A file that makes this configuration when it is read. What is unset is left out: TOML has no word for it."""
    return tomlkit.dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True))


def _needs(config: Stage, processes: int) -> list[str]:
    if isinstance(config, EvaluateConfig):
        return _evaluating(config)
    assert isinstance(config, SFTConfig | RLConfig | DistillConfig)
    training = config.training
    try:
        accumulation = training.accumulation(processes)
    except ValueError as error:
        raise BadConfig(f"training: {error}") from error
    told = f"an update: {training.batch_size} sequences = {processes} processes × {accumulation} micro-batches × "
    return [f"{told}{training.micro_batch_size}", *_training(config, processes)]


def _training(config: SFTConfig | RLConfig | DistillConfig, processes: int) -> list[str]:
    training, model = config.training, config.model
    grpo = config.grpo if isinstance(config, RLConfig) else None
    reference = grpo is not None and grpo.beta > 0 and model.lora is None
    load = Load(
        strategy=training.strategy,
        processes=processes,
        width=WIDTHS[model.dtype],
        tokens=training.micro_batch_size * config.texts.max_tokens,
        recompute=model.gradient_checkpointing,
        reference=reference,
    )
    kept = config.checkpoints.keep if config.checkpoints.every else 0
    versions = config.rollout.keep if isinstance(config, RLConfig) else 0
    moves = reference and grpo is not None and grpo.reference.sync_every > 0
    try:
        shape = shape_of(model)
    except BadConfig as error:
        return [f"memory: not reckoned, {error}"]
    return [
        _counted(shape),
        *_table(f"memory of each process, for texts of {config.texts.max_tokens} tokens, GiB", device(shape, load)),
        *_table("disk, GiB", disk(shape, load, checkpoints=kept, versions=versions, moves=moves)),
        *textwrap.wrap(_UNCOUNTED, 100),
    ]


def _evaluating(config: EvaluateConfig) -> list[str]:
    if config.engine is not None:
        return ["memory: the engine has the model"]
    try:
        shape = shape_of(config.model)
    except BadConfig as error:
        return [f"memory: not reckoned, {error}"]
    width, tokens = WIDTHS[config.model.dtype], config.batch_size * config.max_new_tokens
    uses = [Use("weights", width * shape.parameters), cache(shape, width, tokens)]
    return [_counted(shape), *_table("memory, without the prompts, GiB", uses)]


def _counted(shape: Shape) -> str:
    return f"parameters: {shape.parameters:,}, of which {shape.trained:,} are trained"


def _table(title: str, uses: Sequence[Use]) -> list[str]:
    whole = Use("together", sum(use.bytes for use in uses))
    return [title, *(f"  {use.name:<30}{use.bytes / _GIB:>10.3f}" for use in (*uses, whole))]
