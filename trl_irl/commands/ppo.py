"""
PPO as in InstructGPT, by TRL 1.12's PPOTrainer: prompts as text or messages, and a reward from a reward model, from
what IRL learned, or from a task's own checker.

```bash
trl-irl ppo --config recipes/tldr/ppo_lora.yaml --accelerate_config single_gpu
```
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from trl import ScriptArguments

from ..rewards.frozen_models import check_same_tokens
from ..rewards.soft_q_reward import AGGREGATES, KINDS
from ..tasks.arguments import BadRowArguments, EndArguments, TaskArguments
from ..tasks.own_task import number_of
from ..tasks.scoring import completion_score, has_own_score
from ..trainer.ppo.inputs import (
    after_eos,
    check_one_row_a_prompt,
    demonstrations_of,
    load_tokenizer,
    reward_of_rows,
)


_REWARDS = ("reward_model_path", "soft_q_model", "reward_metric")
_TRIED = 256  # rows that a task's own score is tried on before anything loads


@dataclass
class PPOScriptArguments(BadRowArguments, EndArguments, TaskArguments, ScriptArguments):
    """
    Arguments of the `ppo` command beside those of the task, the trainer and the model. The reward is one of
    `reward_model_path`, `soft_q_model` and `reward_metric`.

    Args:
        num_train_rows (`int`, *optional*):
            Generated tasks: prompts to generate. Other data: keep only the first so many.
        ref_model_name_or_path (`str`, *optional*):
            The reference of the KL; defaults to the policy as it is loaded, or with LoRA to it without its adapter.
        value_model_path (`str`, *optional*):
            Defaults to the reward model's weights or, where there is none, to the policy's with a new head.
        soft_q_model (`str`, *optional*):
            A model whose [`SoftQReward`] is the reward: folder, Hub id or adapter.
        soft_q_kind (`str`, *optional*, defaults to `"soft_q"`), soft_q_aggregate (`str`, *optional*, defaults to
        `"sum"`), soft_q_ref_model (`str`, *optional*):
            Its `kind`, `aggregate` and `ref_model`.
        reward_metric (`str`, *optional*):
            A number that the task's scoring function gives a response, such as `accuracy`; with `task:
            module:function`, one of your own.
    """

    num_train_rows: int | None = field(default=None, metadata={"help": "Train on the first so many prompts only."})
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The reference of the KL; the policy as it is loaded if unset."}
    )
    value_model_path: str | None = field(
        default=None, metadata={"help": "Value model to start from; the reward model's weights if unset."}
    )
    soft_q_model: str | None = field(default=None, metadata={"help": "A model whose SoftQReward is the reward."})
    soft_q_kind: str = field(default="soft_q", metadata={"help": "Kind of that reward.", "choices": list(KINDS)})
    soft_q_aggregate: str = field(
        default="sum", metadata={"help": "What it makes of token rewards.", "choices": list(AGGREGATES)}
    )
    soft_q_ref_model: str | None = field(default=None, metadata={"help": "Reference of the log_ratio kind."})
    reward_metric: str | None = field(
        default=None, metadata={"help": "A number of the task's scoring function, such as accuracy."}
    )

    def __post_init__(self):
        self.task_data(needs_target=False)  # is the task one?
        if self.num_train_rows is not None and self.num_train_rows <= 0:
            raise ValueError(f"`num_train_rows: {self.num_train_rows}` leaves nothing to train on.")
        if self.soft_q_model is None and self.soft_q_ref_model is not None:
            raise ValueError("`soft_q_ref_model` is the reference of `soft_q_model`, which is not set.")


def check_arguments(script_args, training_args, model_args) -> None:
    """
    What can be seen before anything loads.

    Raises:
        `ValueError`, `OSError`: a path is wrong, there is not one reward, or the launcher cannot run PPO.
    """
    import os

    from ..tasks.files import check_local_model, check_writable

    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise ValueError(
            "`trl-irl ppo` does not run under DeepSpeed ZeRO-3 yet. Take `--accelerate_config zero2` or ddp, with "
            "`use_peft: true` where the policy is too large for it, or TRL's own `trl rloo` or `trl grpo`."
        )
    named = {"model_name_or_path": model_args.model_name_or_path, "reward_model_path": training_args.reward_model_path}
    for key in ("ref_model_name_or_path", "value_model_path", "soft_q_model", "soft_q_ref_model"):
        named[key] = getattr(script_args, key)
    if named["model_name_or_path"] is None:
        raise ValueError("No policy. Set `model_name_or_path` to a supervised model: a Hub id or a local folder.")
    for key, path in named.items():
        if path is not None:
            check_local_model(path, key)
    check_writable(training_args.output_dir, "output_dir")
    rewards = [key for key in _REWARDS if getattr(script_args, key, getattr(training_args, key, None)) is not None]
    if len(rewards) != 1:
        raise ValueError(
            f"PPO needs one reward, and {' and '.join(rewards) or 'none'} is set. Set one of `reward_model_path` (a "
            "model of `trl reward`), `soft_q_model` (what IRL learned) and `reward_metric` (a number of the task's "
            "own scoring function)."
        )
    if model_args.use_peft and script_args.ref_model_name_or_path is not None:
        raise ValueError(
            "`ref_model_name_or_path` with `use_peft`: the reference is the policy without its adapter. Unset one."
        )


def load_prompts(script_args, tokenizer, training_args) -> dict[str, list[dict]]:
    """
    The rows of the training split and, if there is one, of the test split: each with `input_ids`, the prompt's tokens,
    beside its columns. Prompts longer than `max_prompt_length` are dropped, and counted on the terminal.

    Raises:
        `ValueError`: a split is missing, has no prompts, or none that is short enough.
    """
    from ..tasks.columns import format_row
    from ..tasks.rows import BadRows
    from ..tasks.splits import load_task
    from ..text.encode import asked, prompt_ids
    from ..text.messages import naming_row

    data = script_args.task_data(needs_target=False)
    splits = load_task(data, script_args.dataset_train_split, formatted=False)
    if script_args.dataset_train_split not in splits:
        raise ValueError(
            f"`dataset_train_split: {script_args.dataset_train_split}` is not among the dataset's splits, which are "
            f"{', '.join(splits)}."
        )
    by_split = {}
    for name in (script_args.dataset_train_split, script_args.dataset_test_split):
        if name not in splits:
            continue
        rows, dropped, bad = [], 0, BadRows(script_args.on_bad_row, f"`{name}`")
        for i, row in enumerate(splits[name]):
            where = f"Row {i} of `{name}`"
            with bad.reading(i):
                if "input_ids" not in row or "prompt" in row:
                    row = format_row(row, data, where, reference=False)
                with naming_row(where):
                    ids = row["input_ids"] if "input_ids" in row else prompt_ids(tokenizer, asked(row))
                if 0 < len(ids) <= training_args.max_prompt_length:
                    rows.append({**row, "input_ids": list(ids)})
                else:
                    dropped += 1
        left_out = bad.tell(len(splits[name]))
        if left_out and training_args.process_index == 0:
            print(f"Note: {left_out}")
        if dropped and training_args.process_index == 0:
            print(f"{name}: {dropped} of {dropped + len(rows)} prompts are empty or longer than "
                  f"`max_prompt_length: {training_args.max_prompt_length}` tokens, and left out.")  # fmt: skip
        if not rows:
            raise ValueError(
                f"Not one of the {dropped} prompts of `{name}` has at most `max_prompt_length: "
                f"{training_args.max_prompt_length}` tokens. Raise it, or shorten prompts with `trl-irl prepare`."
            )
        by_split[name] = rows
    return by_split


def load_reward(script_args, training_args, dtype: str, policy, function, tokenizer, row: dict):
    """The reward model that PPO gets; `function` is of `reward_metric`, if that is set, and `row` one of the data."""
    from ..rewards import PreferenceReward, SoftQReward
    from ..rewards.preference_reward import load_scorer
    from ..text.stop_tokens import stop_token_ids
    from ..trainer.ppo.ppo_reward_model import RewardFunctionModel, SoftQRewardModel, read_as_trained

    if training_args.reward_model_path is not None:
        tail = after_eos(tokenizer, row)
        if not tail:
            scorer = load_scorer(training_args.reward_model_path, dtype, "reward_model_path")
            return read_as_trained(scorer, tokenizer.eos_token_id)
        # What the template writes after the EOS of a turn, often a newline, was the last token in its training.
        batch_size = training_args.local_rollout_forward_batch_size
        reward = PreferenceReward(training_args.reward_model_path, batch_size, dtype, tokenizer)

        def with_tail(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
            ended = [response[-1:] == [tokenizer.eos_token_id] for response in responses]  # as the template ends it
            rows = zip(prompts, responses, ended, strict=True)
            return reward.of_ids([prompt + response + tail * end for prompt, response, end in rows])

        stop_tokens = stop_token_ids(policy, tokenizer)
        return RewardFunctionModel(with_tail, policy, stop_tokens, tokenizer.pad_token_id, [reward.model])
    if script_args.soft_q_model is None:
        return RewardFunctionModel(function, policy, stop_token_ids(policy, tokenizer), tokenizer.pad_token_id)
    reward = SoftQReward(
        script_args.soft_q_model,
        kind=script_args.soft_q_kind,
        aggregate=script_args.soft_q_aggregate,
        ref_model=script_args.soft_q_ref_model,
        batch_size=training_args.local_rollout_forward_batch_size,
        dtype=dtype,
    )
    return SoftQRewardModel(reward, policy)


def make_trainer(script_args, training_args, model_args, generation_args):
    """
    The trainer of a recipe, with its models and data loaded.

    Raises:
        `ValueError`, `OSError`, `ImportError`: something in the recipe is wrong. What is cheap to see is looked at
            before a model loads.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import get_quantization_config

    from ..evaluation.callback import GenerationCallback
    from ..evaluation.loaded_models import context_of
    from ..rewards.adapters import config_of
    from ..rewards.frozen_models import check_language_model, load_merged
    from ..rewards.preference_reward import check_one_label, load_scorer
    from ..text.context import context_length
    from ..text.stop_tokens import end_turns_as_the_template_does, stop_token_ids, why_nothing_ends
    from ..trainer.ppo.calibration import calibrate
    from ..trainer.ppo.trainer import PPOTrainer
    from .console.hub import check_repository, repository_of
    from .irl import no_evaluation, peft_config_of

    check_arguments(script_args, training_args, model_args)
    if generation_args.eval_generations and training_args.eval_strategy == "no":
        raise no_evaluation(generation_args)
    if training_args.push_to_hub and training_args.process_index == 0:
        check_repository(repository_of(training_args), "hub_model_id", training_args.hub_private_repo)
    path = model_args.model_name_or_path
    check_language_model(path, "model_name_or_path")
    config = config_of(path, "model_name_or_path")
    tokenizer = load_tokenizer(path, config, model_args.use_peft, script_args.eos_token)
    splits = load_prompts(script_args, tokenizer, training_args)
    rows = splits[script_args.dataset_train_split]
    end_turns_as_the_template_does(tokenizer, rows[0].get("prompt"), stop_token_ids(path, tokenizer))
    first = [row for row in rows[:16] if "prompt" in row]
    if warning := why_nothing_ends(tokenizer, first, stop_token_ids(path, tokenizer)):
        warnings.warn(warning)
    training_args.check_prompts(len(rows))
    held_out = splits.get(script_args.dataset_test_split) or rows
    longest = max(len(row["input_ids"]) for row in [*rows, *held_out]) + training_args.response_length
    context = context_length(config)
    if context is not None and longest > context:
        raise ValueError(
            f"`response_length: {training_args.response_length}` after the longest prompt makes {longest} tokens, and "
            f"the policy's context is {context}. Lower it or `max_prompt_length`."
        )
    for key in ("reward_model_path", "soft_q_model", "value_model_path", "ref_model_name_or_path"):
        other = getattr(script_args, key, None) or getattr(training_args, key, None)
        if other is not None:
            if key in ("soft_q_model", "ref_model_name_or_path"):
                check_language_model(other, key)
            check_same_tokens(tokenizer, other, key)
            if key in ("reward_model_path", "value_model_path"):
                check_one_label(other, key)
            room = context_of(other)
            if room is not None and longest > room:
                raise ValueError(
                    f"`response_length: {training_args.response_length}` after the longest prompt makes {longest} "
                    f"tokens, and the context of `{key}: {other}` is {room}. Lower it or `max_prompt_length`."
                )
    demonstrations = demonstrations_of(rows, tokenizer) if training_args.normalize_reward else []
    score = completion_score(script_args.task)
    function = None
    if script_args.reward_metric is not None:
        check_one_row_a_prompt([*rows, *held_out])
        tried = 1 if has_own_score(script_args.task) else _TRIED

        def number(response: str, row: dict) -> float:
            return number_of(score(response, row), script_args.reward_metric)

        function = reward_of_rows(number, [*rows, *held_out], tokenizer, tried)

    set_seed(training_args.seed)  # a value model without a head of its own gets a random one
    options = {"dtype": model_args.dtype}
    quantization = get_quantization_config(model_args)
    policy = load_merged(
        path,
        "model_name_or_path",
        revision=model_args.model_revision,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
        **options,
    )
    reference = None  # TRL copies the policy, or takes the adapter off
    if script_args.ref_model_name_or_path is not None:
        reference = load_merged(script_args.ref_model_name_or_path, "ref_model_name_or_path", **options)
    for model in (policy, reference):  # a padding token that was added is in no prompt, but behind responses
        if model is not None and len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    value_path = script_args.value_model_path or training_args.reward_model_path or path
    value_model = load_scorer(value_path, model_args.dtype, "value_model_path", new_head=value_path == path)
    reward_model = load_reward(script_args, training_args, model_args.dtype, policy, function, tokenizer, rows[0])
    if training_args.normalize_reward or training_args.reward_clip is not None:
        is_soft_q = script_args.soft_q_model is not None
        calibrate(reward_model, demonstrations, tokenizer.pad_token_id, is_soft_q, training_args.reward_clip)
    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows]}),
        eval_dataset=Dataset.from_dict({"input_ids": [row["input_ids"] for row in held_out]}),
        peft_config=peft_config_of(model_args),
    )
    if generation_args.eval_generations:
        trainer.add_callback(GenerationCallback(trainer, held_out, score, generation_args))
    return trainer


def train(trainer) -> None:
    """Train and save."""
    from pathlib import Path

    from ..trainer.runtime.checkpoints import one_error_if_disk_fails
    from .console.hub import pushing, repository_of, without_push

    args = trainer.args
    trainer.train()
    with without_push(args), one_error_if_disk_fails(args.output_dir, "*.safetensors"):
        trainer.save_model(args.output_dir)
        trainer.save_state()
        if args.save_value_model:
            trainer.save_value_model(str(Path(args.output_dir) / "value_model"))
    trainer.accelerator.print(f"Policy, tokenizer and trainer state saved to {args.output_dir}.")
    if args.push_to_hub:
        with pushing(repository_of(args), args.output_dir):
            trainer.push_to_hub()
    trainer.end()


def make_parser():
    from trl import ModelConfig

    from ..evaluation.callback import GenerationArguments
    from ..trainer.ppo.config import PPOConfig
    from .console.parser import RecipeParser

    return RecipeParser((PPOScriptArguments, PPOConfig, ModelConfig, GenerationArguments), __doc__, prog="trl-irl ppo")


def run(argv: list[str] | None = None) -> int:
    """The command; see [`~commands.console.failures.run_training`]."""
    from ..trainer.ppo.ppo_reward_model import RewardError
    from .console.failures import report, run_training
    from .console.hub import PushError

    try:
        parser = make_parser()
    except ImportError as error:  # a TRL without PPOTrainer
        report("trl-irl ppo", error)
        return 2
    return run_training(
        parser, make_trainer, lambda trainer, *_: train(trainer), argv, (RewardError, PushError), resumes=False
    )


if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
