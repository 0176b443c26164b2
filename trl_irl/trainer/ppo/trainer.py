"""PPO as in InstructGPT, by TRL 1.12's `PPOTrainer`: what its users miss, around it."""

from __future__ import annotations

import functools

import numpy as np
import torch
from transformers import TrainerCallback

from ...text.generation import as_it_is
from ...text.stop_tokens import stop_token_ids
from . import trl_ppo
from .config import PPOConfig
from .ppo_reward_model import OtherEndsForgiven


class _EvaluateAtSteps(TrainerCallback):
    """TRL's loop does not look at `eval_strategy`: callbacks that wait for an evaluation get theirs from here."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate:
            self.trainer.callback_handler.on_evaluate(args, state, control, metrics={})
            control.should_evaluate = False


class PPOTrainer(trl_ppo.PPOTrainer):
    """
    [`~trl.experimental.ppo.PPOTrainer`] that also runs an adapter under DDP, lets callbacks evaluate at `eval_steps`,
    charges `missing_eos_penalty` only where a response ends in no stop token at all, and can save its value model.
    Overridden are `save_model`, which TRL 1.12 hands a policy that transformers 5.23 does not know how to save, and
    `generate_completions`, whose table shows rewards without what is given back of the penalty.
    """

    def __init__(self, args: PPOConfig, processing_class, model, ref_model, reward_model, *positional, **kwargs):
        stop_tokens = stop_token_ids(model, processing_class)
        if processing_class.pad_token_id == processing_class.eos_token_id:
            raise ValueError(
                f"The tokenizer pads with its EOS, {processing_class.eos_token!r}. PPO tells the end of a response by "
                "its first padding token, so that the EOS would be no part of it, and the policy would unlearn to "
                'end. Give the tokenizer another: `tokenizer.add_special_tokens({"pad_token": "[PAD]"})`, and the '
                "models embeddings for it (`resize_token_embeddings`)."
            )
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
