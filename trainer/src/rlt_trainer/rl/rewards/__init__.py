"""What a completion is worth."""

from rlt_trainer.rl.rewards.answers import AnswerRewards
from rlt_trainer.rl.rewards.base import Rewarded, Rewards
from rlt_trainer.rl.rewards.server import ServerRewards

__all__ = ["AnswerRewards", "Rewarded", "Rewards", "ServerRewards"]
