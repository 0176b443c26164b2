"""Inverse reinforcement learning for language models, as a thin extension of Hugging Face TRL."""

from typing import TYPE_CHECKING


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .rewards import PreferenceReward, SoftQReward
    from .trainer import GAILConfig, GAILTrainer, IRLConfig, IRLTrainer, OnlineIRLConfig, OnlineIRLTrainer

__all__ = [
    "GAILConfig",
    "GAILTrainer",
    "IRLConfig",
    "IRLTrainer",
    "OnlineIRLConfig",
    "OnlineIRLTrainer",
    "PreferenceReward",
    "SoftQReward",
]


def __getattr__(name: str):
    # The trainers import torch and TRL, which takes seconds: only when one is asked for, so that `trl-irl --help` is
    # instant.
    if name in __all__:
        from . import rewards, trainer

        return getattr(rewards if name.endswith("Reward") else trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
