"""The tables that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlt_trainer.config.base import Section

__all__ = [
    "Checkpoints",
    "Data",
    "LoRA",
    "Logging",
    "Model",
    "Prompts",
    "Strategy",
    "TextRole",
    "Texts",
    "TooLong",
    "Training",
]


class TextRole(StrEnum):
    """Whose text a row becomes (arXiv 2506.08388, section 3)."""

    teacher = "teacher"
    """Question and answer are the prompt, the explanation is written."""
    student = "student"
    """The question is the prompt, explanation and answer are written."""


class TooLong(StrEnum):
    """What becomes of a text that does not fit the context."""

    drop = "drop"
    truncate = "truncate"
    error = "error"


class LoRA(Section):
    """A low-rank adapter in place of full weights (peft)."""

    rank: int = Field(32, ge=1, description="of the two factors of each update")
    alpha: int = Field(64, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapter's input, while it trains")
    targets: list[str] = Field(["all-linear"], description="modules, or `all-linear`")


class Model(Section):
    """The model that is trained."""

    name: str = Field(description="name on the hub, or a folder")
    revision: str | None = Field(None, description="commit of a name on the hub")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="computed with, and saved in; weights are kept in float32 while they train"
    )
    attention: str | None = Field(None, description="implementation, such as flash_attention_2; transformers' choice")
    gradient_checkpointing: bool = Field(True, description="recompute activations: less memory, a third more time")
    lora: LoRA | None = Field(None, description="train an adapter; without it all weights")


class Data(Section):
    """Rows of problems or traces."""

    path: str = Field(description="JSONL, CSV or Parquet file, a folder of an exported data set, or a name on the hub")
    split: str = Field("train", description="of a folder or a name on the hub")
    revision: str | None = Field(None, description="commit of a name on the hub")
    columns: dict[str, str] = Field(
        {}, description="where another name holds question, answer, explanation, system or messages"
    )
    limit: int | None = Field(None, ge=1, description="rows read at most, from the first on")


class Strategy(StrEnum):
    """How more than one process train one model; accelerate's names."""

    ddp = "ddp"
    fsdp = "fsdp"
    zero1 = "zero1"
    zero2 = "zero2"
    zero3 = "zero3"


class Training(Section):
    """Optimisation. A batch is that of one update, whatever the number of processes."""

    steps: int | None = Field(None, ge=1, description="updates; this or `epochs`")
    epochs: float | None = Field(None, gt=0, description="passes over the data; this or `steps`")
    batch_size: int = Field(64, ge=1, description="sequences of one update, of all processes together")
    micro_batch_size: int = Field(1, ge=1, description="sequences that one process holds at once")
    learning_rate: float = Field(gt=0, description="of AdamW, at its highest")
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = Field(
        "cosine", description="of the learning rate; transformers' names. constant has no warm-up"
    )
    min_lr_share: float = Field(0.0, ge=0, le=1, description="of the learning rate, where cosine_with_min_lr ends")
    warmup_steps: int = Field(0, ge=0, description="updates until the learning rate is at its highest")
    warmup_share: float = Field(0.0, ge=0, lt=1, description="of all steps; where warmup_steps is 0")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    beta1: float = Field(0.9, ge=0, lt=1, description="of AdamW: memory of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="of AdamW: memory of the second moment")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to it")
    strategy: Strategy = Field(Strategy.ddp, description="how several processes share the model")
    cpu: bool = Field(False, description="train on the CPU, though there is a GPU")

    @model_validator(mode="after")
    def _ends_once(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("want `steps` or `epochs`, and not both")
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self

    def accumulation(self, processes: int) -> int:
        """Micro-batches of one update in each process.

        Raises:
            ValueError: the batch does not divide.
        """
        at_once = self.micro_batch_size * processes
        if self.batch_size % at_once:
            raise ValueError(
                f"a batch of {self.batch_size} is no multiple of {processes} processes of {self.micro_batch_size}"
            )
        return self.batch_size // at_once


class Logging(Section):
    """Where figures go. `<output>/logs` holds TensorBoard's."""

    to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(["tensorboard"], description="by name; [] for none")
    every: int = Field(1, ge=1, description="steps")
    project: str = Field("rlt", description="of wandb and trackio")
    name: str | None = Field(None, description="of the run; the output folder's")
    completions_every: int = Field(10, ge=0, description="steps between tables of completions (rl); 0 for none")


class Checkpoints(Section):
    """`<output>/checkpoint-N`, whole or not there. A run goes on from the newest."""

    every: int = Field(100, ge=0, description="steps; 0 for none but the end's model")
    keep: int = Field(2, ge=1, description="newest ones that stay")
    resume: bool = Field(True, description="go on from the newest; false refuses a folder that has any")


class Prompts(Section):
    """How problems become prompts."""

    format: str = Field("stratos", description="prompt format, by name")
    formats: Path | None = Field(None, description="folder of formats beside those that are shipped")


class Texts(Prompts):
    """How rows become tokens."""

    max_tokens: int = Field(16_384, ge=8, description="of prompt and completion")
    too_long: TooLong = Field(TooLong.drop, description="what becomes of a text of more tokens than that")
