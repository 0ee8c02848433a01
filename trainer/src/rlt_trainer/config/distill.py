"""`rlt-trainer distill`: a student learns from traces."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from rlt_trainer.config.base import Stage
from rlt_trainer.config.sections import Checkpoints, Data, Logging, Model, Texts, Training

__all__ = ["DistillConfig", "TraceShape"]


class TraceShape(StrEnum):
    """What the rows of an exported data set hold: the names of `rlt build export --shape`."""

    raw = "raw"
    """question, answer, explanation: written by the format, as the reward server's student read them."""
    messages = "messages"
    """A chat of role and content: the model's own template, the loss on the assistant's turns."""
    prompt_completion = "prompt_completion"
    """The same chat in two columns, `prompt` and `completion`."""
    sharegpt = "sharegpt"
    """The same chat as `conversations` of from (system, human, gpt) and value."""


class DistillConfig(Stage):
    """SFT of a student on an exported data set version, the loss on the assistant's text alone."""

    model: Model
    data: Data = Field(description="an exported version: its file or folder")
    shape: TraceShape = Field(TraceShape.raw, description="of the rows: that of `rlt build export --shape`")
    texts: Texts = Texts()
    packing: bool = Field(True, description="several texts in one sequence, none seeing another")
    training: Training
    logging: Logging = Logging()
    checkpoints: Checkpoints = Checkpoints()
