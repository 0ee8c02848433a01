"""What a run is told: one typed object for each command, from TOML files and flags. Nothing here imports torch."""

from rlt_trainer.config.base import Stage, load
from rlt_trainer.config.distill import DistillConfig
from rlt_trainer.config.evaluate import EvaluateConfig
from rlt_trainer.config.rl import RLConfig
from rlt_trainer.config.sft import SFTConfig

__all__ = ["DistillConfig", "EvaluateConfig", "RLConfig", "SFTConfig", "Stage", "load"]
