"""
PPO as in InstructGPT, by TRL 1.12's `PPOTrainer`: what its users miss, around it. The one place that imports from
`trl.experimental`; it can go when TRL 1.12 does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from ..rewards import RewardFunctionModel
from ..rewards.reward_model import OtherEndsForgiven
from ..text.generation import as_it_is
from ..text.stop_tokens import stop_token_ids
from .best_metric import set_direction


os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # that it is experimental is said here, and its version pinned
try:
    from trl.experimental.ppo import PPOConfig as _PPOConfig
    from trl.experimental.ppo import PPOTrainer as _PPOTrainer
    from trl.experimental.utils import get_reward
except ImportError as error:
    raise ImportError(
        f'TRL {version("trl")} has no PPOTrainer: it was removed in 1.13. `pip install "trl-irl[ppo]"` brings TRL '
        "1.12.0, which has it; or use its maintained successors, RLOO and GRPO (`rloo.yaml`, `grpo.yaml` in recipes/)."
    ) from error


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
)


@dataclass
class PPOConfig(_PPOConfig):
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
        told = (
            f"a rank's batch of `per_device_train_batch_size: {self.per_device_train_batch_size}` x "
            f"`gradient_accumulation_steps: {self.gradient_accumulation_steps}` = {per_rank} prompts"
        )
        if per_rank % self.num_mini_batches:
            raise ValueError(f"`num_mini_batches: {self.num_mini_batches}` does not divide {told}.")
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
                f"`whiten_rewards` needs 8 responses or more in each mini-batch, and {told} in "
                f"`num_mini_batches: {self.num_mini_batches}` leave {per_rank // self.num_mini_batches}."
            )
        whole = per_rank * int(os.environ.get("WORLD_SIZE", "1"))
        if self.total_episodes is not None and self.total_episodes < whole:
            raise ValueError(
                f"`total_episodes: {self.total_episodes}` is less than one batch of {whole} prompts over all ranks."
            )


class _EvaluateAtSteps(TrainerCallback):
    """TRL's loop does not look at `eval_strategy`: callbacks that wait for an evaluation get theirs from here."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate:
            self.trainer.callback_handler.on_evaluate(args, state, control, metrics={})
            control.should_evaluate = False


class PPOTrainer(_PPOTrainer):
    """
    [`~trl.experimental.ppo.PPOTrainer`] that also runs an adapter under DDP, lets callbacks evaluate at `eval_steps`,
    charges `missing_eos_penalty` only where a response ends in no stop token at all, and can save its value model.
    """

    def __init__(self, args: PPOConfig, processing_class, model, ref_model, reward_model, *positional, **kwargs):
        stop_tokens = stop_token_ids(model, processing_class)
        self._forgiving = None
        if args.missing_eos_penalty is not None and args.stop_token == "eos":
            if stop_tokens - {processing_class.eos_token_id}:
                reward_model = self._forgiving = OtherEndsForgiven(
                    reward_model,
                    processing_class.eos_token_id,
                    stop_tokens,
                    processing_class.pad_token_id,
                    args.missing_eos_penalty,
                )
        super().__init__(args, processing_class, model, ref_model, reward_model, *positional, **kwargs)
        if args.stop_token == "eos":
            # TRL leaves the tokenizer's EOS alone. A response may end in the others too; one is enough for TRL's cut.
            self.policy_model.generation_config.eos_token_id = sorted(stop_tokens)
        self._generate_as_it_is()
        args.check_prompts(self.train_dataset_len)
        unwrapped = self.accelerator.unwrap_model(self.model)
        if self.model is not unwrapped and not hasattr(self.model, "policy"):
            # TRL asks the wrapped model for its policy, which DistributedDataParallel does not pass on. Not as a
            # submodule, which would be saved twice.
            object.__setattr__(self.model, "policy", unwrapped.policy)
        # transformers 5.23 asks for it on ranks that save nothing; TRL's __init__ is not Trainer's, which sets it.
        self.is_distributed_loading_by_transformers = False
        self.model_wrapped = self.model  # where callbacks look for what generates
        np.random.seed(self.local_seed % 2**32)  # TRL shuffles mini-batches by numpy, and seeds torch alone
        self.add_callback(_EvaluateAtSteps(self))

    def _generate_as_it_is(self) -> None:
        policy, generate = self.policy_model, self.policy_model.generate

        @functools.wraps(generate)
        def plain(*args, **kwargs):
            if self._forgiving is not None:
                self._forgiving.prompt_width = (args[0] if args else kwargs["input_ids"]).size(1)
            with as_it_is(policy):
                return generate(*args, **kwargs)

        policy.generate = plain

    def generate_completions(self, sampling: bool = False) -> None:
        if self._forgiving is None:
            return super().generate_completions(sampling)
        penalty, self._forgiving.penalty = self._forgiving.penalty, 0.0  # none is taken off in this table
        try:
            return super().generate_completions(sampling)
        finally:
            self._forgiving.penalty = penalty

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # TRL hands the policy to Trainer as if it were DeepSpeed's engine, which transformers 5.23 sees through.
        policy = self.accelerator.unwrap_model(self.model).policy
        state, wrapped = self._state_of("policy"), self.model
        if self.args.should_save:
            self.model = policy
            try:
                self._save(output_dir, state_dict=state)
            finally:
                self.model = wrapped

    def save_value_model(self, folder: str) -> None:
        """The value model, whole, to go on from; every rank takes part."""
        state = self._state_of("value_model")
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).value_model.save_pretrained(folder, state_dict=state)
            self.processing_class.save_pretrained(folder)
        self.accelerator.wait_for_everyone()

    def _state_of(self, part: str) -> dict[str, torch.Tensor]:
        """Weights of the policy or the value model, gathered from all ranks."""
        state = self.accelerator.get_state_dict(self.model)
        prefix = f"{part}."
        names = {name: name.removeprefix("module.") for name in state}  # DistributedDataParallel's
        return {own.removeprefix(prefix): state[name] for name, own in names.items() if own.startswith(prefix)}


class _Calibrated(nn.Module):
    """A reward model's head, shifted, scaled and cut."""

    def __init__(self, score: nn.Module, shift: float, scale: float, clip: float | None):
        super().__init__()
        self.inner, self.shift, self.scale, self.clip = score, shift, scale, clip

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        reward = (self.inner(hidden) - self.shift) / self.scale
        return reward if self.clip is None else reward.clamp(-self.clip, self.clip)


@torch.no_grad()
def calibrate(
    reward_model: nn.Module,
    demonstrations: Sequence[tuple[list[int], list[int]]],
    pad_token_id: int,
    scale: bool = False,
    clip: float | None = None,
    batch_size: int = 8,
) -> tuple[float, float]:
    """
    From here on the reward model gives these demonstrations 0 on average.

    Args:
        reward_model (`nn.Module`):
            As `PPOTrainer` takes it, before it gets it.
        demonstrations (`Sequence[tuple[list[int], list[int]]]`):
            Token ids of prompts and responses; none leaves rewards where they are.
        pad_token_id (`int`)
        scale (`bool`, *optional*, defaults to `False`):
            Whether to divide by their standard deviation.
        clip (`float`, *optional*):
            Then cut every reward to lie within `-clip` and `clip`.
        batch_size (`int`, *optional*, defaults to `8`)

    Returns:
        `tuple[float, float]`: the mean and the standard deviation of the demonstrations' rewards before.
    """
    device = next(reward_model.parameters(), torch.empty(0)).device
    found: list[float] = []
    for start in range(0, len(demonstrations), batch_size):
        chosen = demonstrations[start : start + batch_size]
        width, length = (max(len(row[i]) for row in chosen) for i in (0, 1))
        rows = [
            [pad_token_id] * (width - len(prompt)) + prompt + response + [pad_token_id] * (length - len(response))
            for prompt, response in chosen
        ]
        if isinstance(reward_model, RewardFunctionModel):
            reward_model.backbone.prompt_width = width
        _, scores, _ = get_reward(reward_model, torch.tensor(rows, device=device), pad_token_id, width)
        found += scores.float().tolist()
    mean, std = (float(np.mean(found)), float(np.std(found))) if found else (0.0, 0.0)
    reward_model.score = _Calibrated(reward_model.score, mean, std if scale and std > 0 else 1.0, clip)
    return mean, std
