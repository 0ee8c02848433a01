"""What samples completions with the weights that it was given last."""

from rlt_trainer.rl.engines.base import Completion, Engine, Failed
from rlt_trainer.rl.engines.teacher import TeacherEngine

__all__ = ["Completion", "Engine", "Failed", "TeacherEngine"]
