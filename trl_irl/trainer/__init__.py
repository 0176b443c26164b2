from .gail_config import GAILConfig
from .gail_trainer import GAILTrainer
from .irl_config import IRLConfig
from .irl_trainer import IRLTrainer
from .online_irl_config import OnlineIRLConfig
from .online_irl_trainer import OnlineIRLTrainer


__all__ = ["GAILConfig", "GAILTrainer", "IRLConfig", "IRLTrainer", "OnlineIRLConfig", "OnlineIRLTrainer"]
