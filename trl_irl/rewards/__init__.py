"""What a trained model says about given text: likelihood and implied reward."""

from .reward_model import RewardError, RewardFunctionModel, SoftQRewardModel
from .soft_q_reward import SoftQReward


__all__ = ["RewardError", "RewardFunctionModel", "SoftQReward", "SoftQRewardModel"]
