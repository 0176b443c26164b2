"""What a trained model says about given text: likelihood, implied reward, and what preferences taught."""

from .preference_reward import PreferenceReward
from .reward_model import RewardError, RewardFunctionModel, SoftQRewardModel
from .soft_q_reward import SoftQReward


__all__ = ["PreferenceReward", "RewardError", "RewardFunctionModel", "SoftQReward", "SoftQRewardModel"]
