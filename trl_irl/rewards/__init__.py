"""What a trained model says about given text: likelihood, implied reward, and what preferences taught."""

from .discriminator import Discriminator
from .preference_reward import PreferenceReward
from .reward_model import RewardError, RewardFunctionModel, SoftQRewardModel
from .soft_q_reward import SoftQReward


__all__ = [
    "Discriminator",
    "PreferenceReward",
    "RewardError",
    "RewardFunctionModel",
    "SoftQReward",
    "SoftQRewardModel",
]
