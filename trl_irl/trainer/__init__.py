from .irl_config import IRLConfig
from .irl_trainer import IRLTrainer


__all__ = ["IRLConfig", "IRLTrainer"]
