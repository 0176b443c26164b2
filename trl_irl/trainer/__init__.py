from .irl_config import IRLConfig
from .irl_trainer import IRLTrainer
from .online_irl_config import OnlineIRLConfig
from .online_irl_trainer import OnlineIRLTrainer


__all__ = ["IRLConfig", "IRLTrainer", "OnlineIRLConfig", "OnlineIRLTrainer"]
