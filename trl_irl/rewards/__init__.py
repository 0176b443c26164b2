"""What a trained model says about given text: likelihood and implied reward."""

from .soft_q_reward import SoftQReward


__all__ = ["SoftQReward"]
