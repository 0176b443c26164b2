"""Arguments of generative adversarial imitation learning."""

import math
from dataclasses import dataclass, field

from trl import RLOOConfig

from ..runtime.best_metric import set_direction
from ..runtime.least_values import check_at_least
from .discriminator import LEVELS, REWARD_FORMS


@dataclass
class GAILConfig(RLOOConfig):
    r"""
    Configuration of [`GAILTrainer`]: [`~trl.RLOOConfig`] with the keys below. A generation is what RLOO calls one: the
    completions that are sampled at a time, once an optimiser step unless `num_iterations` or `steps_per_generation`
    say otherwise.

    Args:
        > Parameters that control the discriminator

        discriminator_model (`str`, *optional*):
            Folder or Hub id of the decoder that it starts from; its tokenizer must be the policy's. If unset, it is
            the model that the policy starts from (a second copy of it).
        eos_token (`str`, *optional*):
            The token that ends a completion, where it is not the tokenizer's EOS, as in [`~trl.SFTConfig`].
        discriminator_level (`str`, *optional*, defaults to `"sequence"`):
            `"sequence"` judges whole completions, `"token"` each token after what stands before it.
        discriminator_lora_r (`int`, *optional*, defaults to `0`):
            Rank of an adapter on the discriminator; 0 trains all its weights.
        discriminator_shares_base (`bool`, *optional*, defaults to `False`):
            Whether the adapter of the discriminator (`discriminator_lora_r`) sits on the same base as that of the
            policy, quantised or not, which then lies in memory once. It is refused under ZeRO-3 and FSDP, which shard
            the base.
        discriminator_dtype (`str`, *optional*, defaults to `"float32"`):
            Data type of its weights. Adapters are float32 in any case.
        discriminator_learning_rate (`float`, *optional*, defaults to `1e-5`):
            It stays constant.
        discriminator_weight_decay (`float`, *optional*, defaults to `0.0`)
        discriminator_max_grad_norm (`float`, *optional*, defaults to `1.0`):
            0 does not clip.
        discriminator_batch_size (`int`, *optional*):
            Rows per forward; `per_device_train_batch_size` if unset. It does not change the updates.
        discriminator_update_ratio (`float`, *optional*, defaults to `1.0`):
            Updates per generation, each on its share of the completions; below 1, not every generation brings one.
        discriminator_warmup_steps (`int`, *optional*, defaults to `20`):
            Generations at the start of which the discriminator learns while the policy gets no reward (`mle_coef` and
            the KL go on moving it). They count as training steps.
        label_smoothing (`float`, *optional*, defaults to `0.1`):
            Its targets are 1 minus this for the expert and this for the policy.

        > Parameters that control the policy's objective

        gail_reward (`str`, *optional*, defaults to `"airl"`):
            `"airl"`: log D - log(1 - D). `"gail"`: -log(1 - D). See
            [`~trainer.gail.discriminator.Discriminator.rewards`].
        reward_clip (`float`, *optional*, defaults to `5.0`):
            Largest reward, and negative, in nats; 0 does not clip. RLOO's own `reward_clip_range` acts after weights.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether the policy's dropout layers are off, an adapter's included (and with `discriminator_shares_base`
            those of the common base). RLOO's default is `False`: it then samples from another policy at each token,
            and takes its ratio to another one still.
        mle_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the expert's negative log-likelihood (nats per token; of the policy at `temperature`) in the
            policy's loss.

        > Parameters that control what happens when something goes wrong

        save_on_signal (`bool`, *optional*, defaults to `False`):
            See [`IRLConfig`].
    """

    discriminator_model: str | None = field(
        default=None, metadata={"help": "Decoder that the discriminator starts from; the policy's model if unset."}
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "What ends a completion, where it is not the tokenizer's EOS."}
    )
    discriminator_level: str = field(
        default="sequence", metadata={"help": "What is judged: a completion or each token.", "choices": list(LEVELS)}
    )
    discriminator_lora_r: int = field(default=0, metadata={"help": "Rank of an adapter; 0 trains all weights."})
    discriminator_shares_base: bool = field(
        default=False, metadata={"help": "The discriminator is a second adapter on the base of the policy's."}
    )
    discriminator_dtype: str = field(default="float32", metadata={"help": "Data type of the discriminator's weights."})
    discriminator_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of the discriminator; it stays constant."}
    )
    discriminator_weight_decay: float = field(
        default=0.0, metadata={"help": "Weight decay of the discriminator's AdamW."}
    )
    discriminator_max_grad_norm: float = field(
        default=1.0, metadata={"help": "Largest norm of its gradients; 0 does not clip."}
    )
    discriminator_batch_size: int | None = field(
        default=None, metadata={"help": "Rows per forward; per_device_train_batch_size if unset."}
    )
    discriminator_update_ratio: float = field(
        default=1.0, metadata={"help": "Updates of the discriminator per generation."}
    )
    discriminator_warmup_steps: int = field(
        default=20, metadata={"help": "Generations at the start in which the policy gets no reward."}
    )
    label_smoothing: float = field(
        default=0.1, metadata={"help": "Targets are 1 minus this for the expert and this for the policy."}
    )
    gail_reward: str = field(
        default="airl",
        metadata={"help": "airl: log D - log(1 - D); gail: -log(1 - D).", "choices": list(REWARD_FORMS)},
    )
    reward_clip: float = field(default=5.0, metadata={"help": "Largest reward, and negative, in nats; 0: no limit."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether the policy's dropout layers are off, an adapter's included."}
    )
    mle_coef: float = field(
        default=1.0, metadata={"help": "Weight of the expert's negative log-likelihood in the policy's loss."}
    )
    save_on_signal: bool = field(
        default=False,
        metadata={"help": "Whether SIGTERM makes training end after the current step with a checkpoint."},
    )

    def __post_init__(self):
        set_direction(self)
        check_at_least(self)
        super().__post_init__()
        for name, choices in (("discriminator_level", LEVELS), ("gail_reward", REWARD_FORMS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}={getattr(self, name)!r}` is unknown; there are {', '.join(choices)}.")
        for name in (
            "discriminator_lora_r",
            "discriminator_weight_decay",
            "discriminator_max_grad_norm",
            "discriminator_warmup_steps",
            "reward_clip",
            "mle_coef",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}={getattr(self, name)}` is out of range. Set it to 0 or more.")
        if math.isinf(self.mle_coef):
            raise ValueError(f"`mle_coef={self.mle_coef}` must be finite: it is a weight in the loss.")
        for name in ("discriminator_learning_rate", "discriminator_update_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}={getattr(self, name)}` is out of range: it is above 0, and finite.")
        if self.discriminator_batch_size is not None and self.discriminator_batch_size < 1:
            raise ValueError(f"`discriminator_batch_size={self.discriminator_batch_size}`: set it to 1 or more.")
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns=True` would drop the expert's completions before they reach the "
                "discriminator. Set it to False."
            )
        if self.discriminator_shares_base and not (self.discriminator_lora_r and self.discriminator_model is None):
            raise ValueError(
                "`discriminator_shares_base=True` makes the discriminator an adapter on the policy's base: set "
                "`discriminator_lora_r` to its rank, 16 for instance, and leave `discriminator_model` unset."
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"`label_smoothing={self.label_smoothing}` is out of range: from 0.5 on, targets no longer tell the "
                "expert from the policy. Set it to 0.1, or 0."
            )
