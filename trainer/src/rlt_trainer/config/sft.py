"""`rlt-trainer sft`: the teacher's warm-up."""

from __future__ import annotations

from pydantic import Field

from rlt_trainer.config.base import Stage
from rlt_trainer.config.sections import Checkpoints, Data, Logging, Model, TextRole, Texts, Training

__all__ = ["SFTConfig"]


class SFTConfig(Stage):
    """Warm-up of a teacher on (question, answer → explanation), the loss on what it writes alone."""

    model: Model
    data: Data = Field(description="rows of question, answer and explanation")
    texts: Texts = Texts()
    roles: list[TextRole] = Field(
        [TextRole.teacher], min_length=1, description="each row once for each; both for one model of both formats"
    )
    packing: bool = Field(False, description="several texts in one sequence, none seeing another")
    training: Training
    logging: Logging = Logging()
    checkpoints: Checkpoints = Checkpoints()
