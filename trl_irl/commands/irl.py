"""
Fine-tune on demonstrations with the inverse soft-Q loss (or, with `lambda_td: 0`, by maximum likelihood).

```bash
trl-irl irl --config recipes/gsm8k/irl_lora.yaml --accelerate_config single_gpu
accelerate launch --config_file accelerate_configs/zero3.yaml \
    -m trl_irl.commands.irl --config recipes/gsm8k/irl_full.yaml --learning_rate 1e-5
```
"""

from dataclasses import dataclass, field

from trl import ScriptArguments


TASKS = ("gsm8k", "arithmetic", "arithmetic_facts")


@dataclass
class IRLScriptArguments(ScriptArguments):
    """
    Arguments of the `irl` command beside those of the trainer and the model.

    Args:
        task (`str`, *optional*):
            A task that this package formats: `"gsm8k"` (from `dataset_name` if set, else the Hub's `openai/gsm8k`),
            `"arithmetic"` or `"arithmetic_facts"` (generated). If unset, `dataset_name` is loaded as it is.
        calculator_annotations (`bool`, *optional*, defaults to `True`):
            GSM8K: whether to keep the `<<48/2=24>>` in solutions.
        num_train_rows (`int`, *optional*):
            Generated tasks: training rows to generate. Other data: keep only the first so many.
        task_seed (`int`, *optional*, defaults to `42`):
            Seed of the generated rows, or of GSM8K's validation split.
    """

    task: str | None = field(
        default=None,
        metadata={
            "help": "A task that this package formats; `gsm8k` reads `dataset_name` if set, else the Hub's "
            "openai/gsm8k. If unset, `dataset_name` is loaded as it is.",
            "choices": list(TASKS),
        },
    )
    calculator_annotations: bool = field(
        default=True, metadata={"help": "GSM8K: whether to keep the <<48/2=24>> in solutions."}
    )
    num_train_rows: int | None = field(
        default=None,
        metadata={"help": "Generated tasks: training rows to generate. Other data: keep only the first so many."},
    )
    task_seed: int = field(
        default=42, metadata={"help": "Seed of the generated rows, or of GSM8K's validation split."}
    )

    def __post_init__(self):
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"`task: {self.task}` is unknown; the tasks are {', '.join(TASKS)}.")
        if self.num_train_rows is not None and self.num_train_rows <= 0:
            raise ValueError(f"`num_train_rows: {self.num_train_rows}` leaves nothing to train on.")


def load_splits(script_args: IRLScriptArguments, mixture):
    """
    The task's or the dataset's splits.

    Args:
        script_args ([`IRLScriptArguments`])
        mixture ([`~trl.DatasetMixtureConfig`]):
            Loaded with TRL's `get_dataset` if it names datasets.

    Returns:
        [`~datasets.DatasetDict`] or [`~datasets.IterableDatasetDict`]

    Raises:
        `FileNotFoundError`: a local path is not there.
        `ValueError`: no dataset or two are named, or a split is missing or empty.
    """
    from trl import get_dataset

    from ..tasks.arithmetic import make_arithmetic, make_arithmetic_facts
    from ..tasks.files import load_from_hub_or_path
    from ..tasks.gsm8k import load_gsm8k

    if mixture.datasets and (script_args.task or script_args.dataset_name):
        raise ValueError("`datasets` is set together with `task` or `dataset_name`. Name the data in one place.")
    generated = {"num_train": script_args.num_train_rows} if script_args.num_train_rows else {}
    if mixture.datasets:
        splits = get_dataset(mixture)
    elif script_args.task == "gsm8k":
        splits = load_gsm8k(script_args.dataset_name, script_args.calculator_annotations, seed=script_args.task_seed)
    elif script_args.task == "arithmetic":
        return make_arithmetic(**generated, seed=script_args.task_seed)
    elif script_args.task == "arithmetic_facts":
        return make_arithmetic_facts(**generated, seed=script_args.task_seed)
    elif script_args.dataset_name:
        splits = load_from_hub_or_path(
            script_args.dataset_name, script_args.dataset_config, script_args.dataset_streaming
        )
    else:
        raise ValueError(f"No data. Set `dataset_name`, `datasets`, or `task` (one of {', '.join(TASKS)}).")
    train = script_args.dataset_train_split
    if script_args.num_train_rows and train in splits:
        splits[train] = splits[train].take(script_args.num_train_rows)
    return splits


def newest_checkpoint(output_dir: str) -> str | None:
    """
    The newest whole checkpoint in a folder, or `None`. `trainer_state.json` is the last file that the Trainer writes,
    so a checkpoint without a readable one was cut off while it was written; it is skipped with a warning.
    """
    import json
    import warnings
    from pathlib import Path

    from transformers.trainer_utils import sort_checkpoints

    if not Path(output_dir).is_dir():
        return None
    for checkpoint in reversed(sort_checkpoints(output_dir)):
        try:
            json.loads(Path(checkpoint, "trainer_state.json").read_text())
            return checkpoint
        except (OSError, json.JSONDecodeError):
            warnings.warn(f"{checkpoint} was not written to its end, so it is skipped. Delete it when you like.")
    return None


def main(script_args, training_args, model_args, mixture) -> None:
    from pathlib import Path

    from trl import get_peft_config, get_quantization_config

    from ..tasks.files import check_local_path
    from ..trainer import IRLTrainer

    # Everything that can be wrong and is cheap to see, before the model loads.
    if model_args.model_name_or_path is None:
        raise ValueError("No model. Set `model_name_or_path` to a Hub id or a local folder.")
    check_local_path(model_args.model_name_or_path, "model_name_or_path")
    evaluates = training_args.eval_strategy != "no" or training_args.do_eval
    splits = load_splits(script_args, mixture)
    wanted = {"dataset_train_split": script_args.dataset_train_split}
    if evaluates:
        wanted["dataset_test_split"] = script_args.dataset_test_split
    for key, split in wanted.items():
        if split not in splits:
            raise ValueError(f"`{key}: {split}` is not among the dataset's splits, which are {', '.join(splits)}.")
    resume = training_args.resume_from_checkpoint
    if str(resume).lower() == "true":  # a YAML `true`, or the word on the command line
        resume = newest_checkpoint(training_args.output_dir)
        if resume is None and training_args.process_index == 0:
            print(f"No checkpoint in {training_args.output_dir} to resume from: starting at step 0.")
    elif resume is not None and not Path(resume).is_dir():
        raise FileNotFoundError(f"`resume_from_checkpoint: {resume}` is not a folder.")

    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = IRLTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=splits[script_args.dataset_train_split],
        eval_dataset=splits[script_args.dataset_test_split] if evaluates else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=resume)
    if training_args.do_eval:
        trainer.save_metrics("eval", trainer.evaluate(), combined=False)

    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    dataset_name = script_args.dataset_name or script_args.task
    trainer.create_model_card(Path(training_args.output_dir).name, dataset_name=dataset_name)
    trainer.accelerator.print(f"Model, tokenizer and trainer state saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
        trainer.accelerator.print(f"Pushed to the Hub as {trainer.hub_model_id}.")
    # Trackers and the process group: a rank that exits with the group open can abort and fail the whole run.
    trainer.end()


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig

    from ..trainer import IRLConfig
    from .parser import RecipeParser

    return RecipeParser((IRLScriptArguments, IRLConfig, ModelConfig, DatasetMixtureConfig), prog="trl-irl irl")


def leave() -> None:
    """
    End a rank of a distributed run without Python's shutdown, where communication threads that torch 2.13 (gloo) or
    DeepSpeed still hold now and then abort ("terminate called without an active exception"): the launcher would then
    report a run that has saved everything as failed.
    """
    import os
    import sys

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*make_parser().parse())
    leave()
