"""What a trained model says about given text: likelihood, implied reward, and what preferences taught."""

from typing import TYPE_CHECKING

from .._lazy import names_from
from .._moved import with_old_names


if TYPE_CHECKING:
    from .preference_reward import PreferenceReward
    from .soft_q_reward import SoftQReward

__all__ = ["PreferenceReward", "SoftQReward"]

_get, __dir__ = names_from(__name__, {"PreferenceReward": ".preference_reward", "SoftQReward": ".soft_q_reward"})
__getattr__ = with_old_names(__name__, _get)
