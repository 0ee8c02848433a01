"""What samples completions with the weights that it was given last."""

from rlt_trainer.rl.engines.base import Ask, Completion, Engine, Failed, Published
from rlt_trainer.rl.engines.teacher import TeacherEngine
from rlt_trainer.rl.engines.vllm import VLLMEngine

__all__ = ["Ask", "Completion", "Engine", "Failed", "Published", "TeacherEngine", "VLLMEngine"]
