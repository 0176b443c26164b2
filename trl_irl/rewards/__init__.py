"""What a trained model says about given text: likelihood, implied reward, and what preferences taught."""

from typing import TYPE_CHECKING

from .._lazy import names_from


if TYPE_CHECKING:
    from .preference_reward import PreferenceReward
    from .soft_q_reward import SoftQReward

__all__ = ["PreferenceReward", "SoftQReward"]

__getattr__ = names_from(__name__, {"PreferenceReward": ".preference_reward", "SoftQReward": ".soft_q_reward"})
