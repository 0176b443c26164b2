"""PPO as in InstructGPT, by TRL 1.12's `PPOTrainer`; this folder can go when TRL 1.12 does."""

from ..._lazy import names_from


__getattr__, __dir__ = names_from(
    __name__, {"PPOConfig": ".config", "PPOTrainer": ".trainer", "calibrate": ".calibration"}
)
