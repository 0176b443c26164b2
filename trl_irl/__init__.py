"""Inverse reinforcement learning for language models, as a thin extension of Hugging Face TRL."""

from typing import TYPE_CHECKING

from ._lazy import names_from
from ._moved import keep_old_paths


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .evaluation import evaluate
    from .rewards import PreferenceReward, SoftQReward
    from .trainer import (
        GAILConfig,
        GAILTrainer,
        IRLConfig,
        IRLTrainer,
        OnlineIRLConfig,
        OnlineIRLTrainer,
        Seq2SeqIRLConfig,
        Seq2SeqIRLTrainer,
        Seq2SeqOnlineIRLConfig,
        Seq2SeqOnlineIRLTrainer,
    )

__all__ = [
    "GAILConfig",
    "GAILTrainer",
    "IRLConfig",
    "IRLTrainer",
    "OnlineIRLConfig",
    "OnlineIRLTrainer",
    "PreferenceReward",
    "Seq2SeqIRLConfig",
    "Seq2SeqIRLTrainer",
    "Seq2SeqOnlineIRLConfig",
    "Seq2SeqOnlineIRLTrainer",
    "SoftQReward",
    "evaluate",
]

# The trainers import torch and TRL, which takes seconds: only when one is asked for, so that `trl-irl --help` is
# instant, and `from trl_irl import SoftQReward` brings no trainer.
__getattr__, __dir__ = names_from(
    __name__,
    {
        "GAILConfig": ".trainer.gail.config",
        "GAILTrainer": ".trainer.gail.trainer",
        "IRLConfig": ".trainer.irl.config",
        "IRLTrainer": ".trainer.irl.trainer",
        "OnlineIRLConfig": ".trainer.online_irl.config",
        "OnlineIRLTrainer": ".trainer.online_irl.trainer",
        "PreferenceReward": ".rewards.preference_reward",
        "Seq2SeqIRLConfig": ".trainer.seq2seq.config",
        "Seq2SeqIRLTrainer": ".trainer.seq2seq.trainer",
        "Seq2SeqOnlineIRLConfig": ".trainer.seq2seq.online",
        "Seq2SeqOnlineIRLTrainer": ".trainer.seq2seq.online",
        "SoftQReward": ".rewards.soft_q_reward",
        "evaluate": ".evaluation.run",
    },
)
keep_old_paths()
