"""Arguments of PPO: TRL 1.12's, with what it ignores refused and its batch arithmetic checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ..runtime.best_metric import set_direction
from . import trl_ppo


# Inherited keys that TRL's trainer never looks at, the values that ask for nothing, and what to do.
_DO_NOTHING = (
    ("max_steps", (-1, 0), "Unset it, and set `total_episodes`, the number of responses to learn from."),
    ("max_grad_norm", (1.0, None), "Unset it: gradients are not clipped. Lower `learning_rate` or `cliprange`."),
    (
        "load_best_model_at_end",
        (False,),
        "Unset it: the last policy is saved. The best checkpoint's name is in `trainer_state.json`, and it can be "
        "used as it is.",
    ),
    ("label_smoothing_factor", (0, 0.0), "Unset it."),
    ("neftune_noise_alpha", (None,), "Unset it."),
    ("eval_on_start", (False,), "Unset it: evaluations are at `eval_steps`."),
    ("auto_find_batch_size", (False,), "Unset it, and set `per_device_train_batch_size`."),
    ("gradient_checkpointing", (False,), "Unset it: its own loop never turns it on. Lower the batch, or train LoRA."),
)


@dataclass
class PPOConfig(trl_ppo.PPOConfig):
    """
    [`~trl.experimental.ppo.PPOConfig`] with the keys below, `stop_token="eos"` as the default, and its batch
    arithmetic checked before anything loads.

    Args:
        max_prompt_length (`int`, *optional*, defaults to `512`):
            Longer prompts, in tokens, are dropped and counted.
        normalize_reward (`bool`, *optional*, defaults to `False`):
            Shift rewards so that demonstrations get 0 on average (arXiv 2403.17031); those of SoftQReward, which has
            no scale of its own, are divided by their standard deviation too.
        reward_clip (`float`, *optional*):
            Cut rewards to lie within `-reward_clip` and `reward_clip`.
        save_value_model (`bool`, *optional*, defaults to `False`):
            Save the value model, in `output_dir/value_model`, to go on from with `value_model_path`.
    """

    # TRL's default is a model of its example.
    sft_model_path: str | None = field(default=None, metadata={"help": "Not used: set `model_name_or_path`."})
    reward_model_path: str | None = field(
        default=None, metadata={"help": "Reward model with one label: folder, Hub id or adapter."}
    )
    stop_token: str | None = field(
        default="eos", metadata={"help": "What ends a response: eos; null leaves responses uncut.", "choices": ["eos"]}
    )
    num_sample_generations: int = field(
        default=0, metadata={"help": "TRL's own tables of samples, in the terminal; see `eval_generations` too."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Not used: TRL's loop never turns it on."})
    max_prompt_length: int = field(default=512, metadata={"help": "Longer prompts are dropped and counted."})
    normalize_reward: bool = field(
        default=False, metadata={"help": "Shift rewards so that demonstrations get 0 on average."}
    )
    reward_clip: float | None = field(default=None, metadata={"help": "Largest reward, and negative, of a response."})
    save_value_model: bool = field(default=False, metadata={"help": "Save it in `output_dir/value_model`."})

    def __post_init__(self):
        set_direction(self)
        super().__post_init__()
        if self.sft_model_path is not None:
            raise ValueError(f"`sft_model_path: {self.sft_model_path}`: name the policy in `model_name_or_path`.")
        if self.resume_from_checkpoint and str(self.resume_from_checkpoint).lower() != "false":
            raise ValueError(
                "`resume_from_checkpoint`: TRL 1.12's PPOTrainer cannot resume; its checkpoints hold the policy only. "
                "Set `model_name_or_path` to a checkpoint to start a new run from its policy, and `value_model_path` "
                "to a value model if one was saved."
            )
        for name, nothing, instead in _DO_NOTHING:
            if getattr(self, name) not in nothing:
                raise ValueError(f"`{name}: {getattr(self, name)}` does nothing in TRL 1.12's PPOTrainer. {instead}")
        for name in ("save_strategy", "eval_strategy"):
            if getattr(self, name) == "epoch":
                raise ValueError(
                    f"`{name}: epoch` does nothing in TRL 1.12's PPOTrainer: its loop has no epochs. Set it to steps."
                )
        if not self.temperature > 0:
            raise ValueError(
                f"`temperature: {self.temperature}` must be above 0: PPO learns from samples of the policy, and TRL's "
                "trainer would sample at 1e-7 and score at that."
            )
        for name in ("response_length", "num_ppo_epochs", "num_mini_batches", "max_prompt_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}: {getattr(self, name)}` is out of range. Set it to 1 or more.")
        if self.missing_eos_penalty is not None and self.missing_eos_penalty <= 0:
            raise ValueError(
                f"`missing_eos_penalty: {self.missing_eos_penalty}` is subtracted, so it must be above 0."
            )
        self._check_batches()

    def check_prompts(self, count: int) -> None:
        """
        Raises:
            `ValueError`: fewer prompts than one batch over all ranks, which TRL would wait for for ever.
        """
        whole = self._prompts_per_rank() * int(os.environ.get("WORLD_SIZE", "1"))
        if count < whole:
            raise ValueError(
                f"There are {count} prompts, fewer than one batch of {whole} over all ranks. Lower "
                "`per_device_train_batch_size` or `gradient_accumulation_steps`, or bring more prompts."
            )

    def _prompts_per_rank(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def _check_batches(self) -> None:
        per_rank = self._prompts_per_rank()
        batch = (
            f"a rank's batch of `per_device_train_batch_size: {self.per_device_train_batch_size}` x "
            f"`gradient_accumulation_steps: {self.gradient_accumulation_steps}` = {per_rank} prompts"
        )
        if per_rank % self.num_mini_batches:
            raise ValueError(f"`num_mini_batches: {self.num_mini_batches}` does not divide {batch}.")
        if self.num_mini_batches > 1 and self.gradient_accumulation_steps > 1:
            # accelerate counts micro-batches through all mini-batches, and steps when there were
            # `gradient_accumulation_steps` of them: once an epoch, whatever `num_mini_batches` is.
            raise ValueError(
                f"`num_mini_batches: {self.num_mini_batches}` with `gradient_accumulation_steps: "
                f"{self.gradient_accumulation_steps}`: TRL 1.12 would make one step of all mini-batches together. Set "
                "one of them to 1."
            )
        if self.whiten_rewards and per_rank // self.num_mini_batches < 8:
            raise ValueError(
                f"`whiten_rewards` needs 8 responses or more in each mini-batch, and {batch} in "
                f"`num_mini_batches: {self.num_mini_batches}` leave {per_rank // self.num_mini_batches}."
            )
        whole = per_rank * int(os.environ.get("WORLD_SIZE", "1"))
        if self.total_episodes is not None and self.total_episodes < whole:
            raise ValueError(
                f"`total_episodes: {self.total_episodes}` is less than one batch of {whole} prompts over all ranks."
            )
