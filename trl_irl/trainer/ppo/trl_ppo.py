"""TRL 1.12's PPO, the one place that imports from `trl.experimental`; it can go when TRL 1.12 does."""

import os
from importlib.metadata import version


os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # that it is experimental is said here, and its version pinned
try:
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from trl.experimental.utils import get_reward
except ImportError as error:
    raise ImportError(
        f'TRL {version("trl")} has no PPOTrainer: it was removed in 1.13. `pip install ".[ppo]"` in the clone '
        "of this package brings TRL 1.12.0, which has it; or use its maintained successors, RLOO and GRPO "
        "(`rloo.yaml`, `grpo.yaml` in recipes/)."
    ) from error

__all__ = ["PPOConfig", "PPOTrainer", "get_reward"]
