"""A folder for each method, its configuration and its trainer; `runtime` is what any of them needs to survive."""

from typing import TYPE_CHECKING

from .._lazy import names_from


if TYPE_CHECKING:
    from .gail.config import GAILConfig
    from .gail.trainer import GAILTrainer
    from .irl.config import IRLConfig
    from .irl.trainer import IRLTrainer
    from .online_irl.config import OnlineIRLConfig
    from .online_irl.trainer import OnlineIRLTrainer
    from .seq2seq.config import Seq2SeqIRLConfig
    from .seq2seq.online import Seq2SeqOnlineIRLConfig, Seq2SeqOnlineIRLTrainer
    from .seq2seq.trainer import Seq2SeqIRLTrainer

__all__ = [
    "GAILConfig",
    "GAILTrainer",
    "IRLConfig",
    "IRLTrainer",
    "OnlineIRLConfig",
    "OnlineIRLTrainer",
    "Seq2SeqIRLConfig",
    "Seq2SeqIRLTrainer",
    "Seq2SeqOnlineIRLConfig",
    "Seq2SeqOnlineIRLTrainer",
]

__getattr__, __dir__ = names_from(
    __name__,
    {
        "GAILConfig": ".gail.config",
        "GAILTrainer": ".gail.trainer",
        "IRLConfig": ".irl.config",
        "IRLTrainer": ".irl.trainer",
        "OnlineIRLConfig": ".online_irl.config",
        "OnlineIRLTrainer": ".online_irl.trainer",
        "Seq2SeqIRLConfig": ".seq2seq.config",
        "Seq2SeqIRLTrainer": ".seq2seq.trainer",
        "Seq2SeqOnlineIRLConfig": ".seq2seq.online",
        "Seq2SeqOnlineIRLTrainer": ".seq2seq.online",
    },
)
