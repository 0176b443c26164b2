"""
Fine-tune on demonstrations with the inverse soft-Q loss (or, with `lambda_td: 0`, by maximum likelihood).

```bash
trl-irl irl --config recipes/gsm8k/irl_lora.yaml --accelerate_config single_gpu
accelerate launch --config_file accelerate_configs/zero3.yaml \
    -m trl_irl.commands.irl --config recipes/gsm8k/irl_full.yaml --learning_rate 1e-5
```
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from trl import ScriptArguments

from ..tasks.arguments import TaskArguments
from ..tasks.scoring import default_metrics, make_score


_SEEN_WITHIN = 60  # seconds, in which every machine sees what one has written to a shared disk


@dataclass
class IRLScriptArguments(TaskArguments, ScriptArguments):
    """
    Arguments of a training command beside those of the task, the trainer and the model.

    Args:
        num_train_rows (`int`, *optional*):
            Generated tasks: training rows to generate. Other data: keep only the first so many.
    """

    num_train_rows: int | None = field(
        default=None,
        metadata={"help": "Generated tasks: training rows to generate. Other data: keep only the first so many."},
    )

    def __post_init__(self):
        self.task_data()  # is the task one?
        if self.num_train_rows is not None and self.num_train_rows <= 0:
            raise ValueError(f"`num_train_rows: {self.num_train_rows}` leaves nothing to train on.")


@dataclass
class OfflineScriptArguments(IRLScriptArguments):
    """
    Arguments of the `irl` command, which has those of [`Seq2SeqIRLConfig`] beside [`IRLConfig`]'s.

    Args:
        max_completion_length (`int`, *optional*):
            Encoder-decoder models: longest completion, and the decoder's room in a packed row; `max_length` if unset.
    """

    max_completion_length: int | None = field(
        default=None,
        metadata={"help": "Encoder-decoder models: longest completion in tokens; max_length if unset."},
    )


def load_splits(script_args: IRLScriptArguments, mixture):
    """
    The task's or the dataset's splits.

    Args:
        script_args ([`IRLScriptArguments`])
        mixture ([`~trl.DatasetMixtureConfig`]):
            Loaded by [`~tasks.mixture.load_mixture`] if it names datasets.

    Returns:
        [`~datasets.DatasetDict`] or [`~datasets.IterableDatasetDict`]

    Raises:
        `FileNotFoundError`: a local path is not there.
        `ValueError`: no dataset or two are named, or a split is missing or empty.
    """
    from ..tasks.mixture import check_mixture, load_mixture
    from ..tasks.splits import load_task

    if mixture.datasets:
        if script_args.task or script_args.dataset_name:
            raise ValueError("`datasets` is set together with `task` or `dataset_name`. Name the data in one place.")
        check_mixture(mixture, script_args, IRLScriptArguments())
        return load_mixture(mixture, script_args.task_seed)
    return load_task(script_args.task_data(), script_args.dataset_train_split)


def check_paths(training_args, model_args) -> None:
    """
    Refuse paths that are wrong, before anything loads.

    Raises:
        `FileNotFoundError`: what looks like a local path is not there.
        `ValueError`: no model is named, or its folder has no weights in safetensors.
        `OSError`: `output_dir` cannot be written to.
    """
    from ..rewards.adapters import check_tokenizer_files
    from ..tasks.files import check_local_model, check_local_path, check_writable

    if model_args.model_name_or_path is None:
        raise ValueError("No model. Set `model_name_or_path` to a Hub id or a local folder.")
    check_local_model(model_args.model_name_or_path, "model_name_or_path")
    check_tokenizer_files(model_args.model_name_or_path, "model_name_or_path")
    for key in ("chat_template_path", "discriminator_model"):
        if getattr(training_args, key, None) is not None:
            check_local_path(getattr(training_args, key), key)
    check_writable(training_args.output_dir, "output_dir")


def find_checkpoint(training_args) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` names or, where it is true, the newest whole one, if any: of several
    processes the first decides for all, whose views of a shared disk may differ for a while.

    Raises:
        `FileNotFoundError`: the named one is not a folder, or this process does not see the one to resume from.
    """
    from pathlib import Path

    from accelerate.utils import broadcast_object_list

    from ..trainer.runtime.checkpoints import newest_checkpoint

    resume = training_args.resume_from_checkpoint
    if str(resume).lower() == "true":  # a YAML `true`, or the word on the command line
        found: list[str | None] = [None]
        if training_args.process_index == 0:
            found = [newest_checkpoint(training_args.output_dir)]
            if found[0] is None:
                print(f"No checkpoint in {training_args.output_dir} to resume from: starting at step 0.")
        if training_args.world_size > 1:
            found = broadcast_object_list(found)
        deadline = time.monotonic() + _SEEN_WITHIN
        while found[0] is not None and not Path(found[0]).is_dir() and time.monotonic() < deadline:
            time.sleep(1)
        if found[0] is not None and not Path(found[0]).is_dir():
            raise FileNotFoundError(
                f"Process {training_args.process_index} does not see {found[0]}, from which the first one resumes. "
                "`output_dir` must be a folder that all machines share."
            )
        return found[0]
    if resume is not None and str(resume).lower() != "false" and not Path(resume).is_dir():
        raise FileNotFoundError(
            f"`resume_from_checkpoint: {resume}` is not a folder. Set it to a checkpoint's folder, or to `true` for "
            "the newest one in `output_dir`."
        )
    return None if str(resume).lower() == "false" else resume


def no_evaluation(generation_args, or_else: str = "") -> ValueError:
    return ValueError(
        f"`eval_generations: {generation_args.eval_generations}` generates at every evaluation, and there is none. "
        f"Set `eval_strategy: steps` and `eval_steps`{or_else}."
    )


def generation_rows(script_args, training_args, generation_args, splits) -> list[dict]:
    """
    The prompts and references to generate for at every evaluation; none if that is not asked for.

    Raises:
        `ValueError`: there is no evaluation, or its rows have no prompts.
    """
    from itertools import islice

    from ..tasks.columns import as_prompt_completion

    if not generation_args.eval_generations:
        return []
    if training_args.eval_strategy == "no" and not training_args.do_eval:
        raise no_evaluation(generation_args, ", or `do_eval: true` for one at the end")
    split = splits[script_args.dataset_test_split]
    name = script_args.dataset_test_split
    chosen = enumerate(islice(split, generation_args.eval_generations))
    return [as_prompt_completion(row, f"Row {i} of `{name}`") for i, row in chosen]


def make_trainer(script_args, training_args, model_args, mixture, generation_args):
    """
    The trainer of a recipe, with its model and data loaded, and the checkpoint to resume from or `None`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: something in the recipe is wrong. What is cheap to see is looked at
            before the model loads.
    """
    import os

    from trl import get_quantization_config

    from .. import trainer as trainers
    from ..rewards.adapters import config_of
    from ..rewards.frozen_models import check_language_model
    from ..tasks.files import check_room
    from ..trainer import IRLConfig, OnlineIRLConfig, Seq2SeqIRLConfig, Seq2SeqOnlineIRLConfig
    from .console.hub import check_repository, repository_of
    from .console.terminal import use_terminal
    from .console.training_table import weights

    check_paths(training_args, model_args)
    remote = {"trust_remote_code": training_args.trust_remote_code}
    other = {IRLConfig: Seq2SeqIRLConfig, OnlineIRLConfig: Seq2SeqOnlineIRLConfig}.get(type(training_args))
    path = model_args.model_name_or_path
    check_language_model(path, "model_name_or_path", encoder_decoder=other is not None, **remote)
    of_decoder = getattr(script_args, "max_completion_length", None)
    if config_of(path, "model_name_or_path", **remote).is_encoder_decoder:
        own = {} if of_decoder is None else {"max_completion_length": of_decoder}
        training_args = other.of(training_args, **own)
    elif of_decoder is not None:
        raise ValueError(
            f"`max_completion_length: {of_decoder}` is the decoder's room of an encoder-decoder model, and "
            f"{path} reads prompt and completion together. Set `max_length` alone."
        )
    if model_args.use_peft and model_args.lora_r < 1:
        raise ValueError(f"`lora_r: {model_args.lora_r}` is the adapter's rank. Set it to 1 or more; 16 is usual.")
    resume = find_checkpoint(training_args)
    evaluates = training_args.eval_strategy != "no" or training_args.do_eval
    splits = load_splits(script_args, mixture)
    wanted = {"dataset_train_split": script_args.dataset_train_split}
    if evaluates:
        wanted["dataset_test_split"] = script_args.dataset_test_split
    for key, split in wanted.items():
        if split not in splits:
            way_out = (
                ' Carve one off with `trl-irl prepare`, or train without: `eval_strategy: "no"` and '
                "`eval_generations: 0`."
            )
            raise ValueError(
                f"`{key}: {split}` is not among the dataset's splits, which are {', '.join(splits)}."
                f"{way_out if key == 'dataset_test_split' else ''}"
            )
    if training_args.max_steps <= 0 and not hasattr(splits[script_args.dataset_train_split], "__len__"):
        raise ValueError(
            f"`max_steps: {training_args.max_steps}` of a stream, which does not say how many rows it has. Set "
            "`max_steps`, or `dataset_streaming: false`."
        )
    rows = generation_rows(script_args, training_args, generation_args, splits)
    if rows:
        from ..evaluation.metrics import check_installed

        check_installed()
        metrics = dict.fromkeys(["rouge", *default_metrics(script_args.task)])
        metrics.pop("accuracy_math", None)  # a process of its own at each evaluation; `evaluate` has it
        score = make_score(script_args.task, list(metrics))

    if training_args.hub_token:
        # Where huggingface_hub looks for it; as an argument it would be saved and logged with the others.
        os.environ["HF_TOKEN"] = training_args.hub_token
        training_args.hub_token = None
    if training_args.push_to_hub and training_args.process_index == 0:
        check_repository(repository_of(training_args), "hub_model_id", training_args.hub_private_repo)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "use_safetensors": True,  # never a pickle
        **(training_args.model_init_kwargs or {}),
    }
    try:
        kind = getattr(trainers, type(training_args).__name__.replace("Config", "Trainer"))
        trainer = kind(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=splits[script_args.dataset_train_split],
            eval_dataset=splits[script_args.dataset_test_split] if evaluates else None,
            quantization_config=get_quantization_config(model_args),
            peft_config=peft_config_of(model_args),
        )
    except ValueError as error:
        if "Target modules" not in str(error):
            raise
        raise ValueError(
            f"`lora_target_modules: {model_args.lora_target_modules}` names no module of this model. Name some of its "
            "linear layers, such as q_proj and v_proj in most, or set it to all-linear."
        ) from error
    if rows:
        from ..evaluation.callback import GenerationCallback

        corpus = [name for name in ("bleu", "chrf") if name in metrics]
        trainer.add_callback(GenerationCallback(trainer, rows, score, generation_args, corpus))
    test = script_args.dataset_test_split
    use_terminal(trainer, script_args, test if test in splits else script_args.dataset_train_split)
    trained = sum(weights([p]) * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    check_room(training_args.output_dir, "output_dir", trained)
    return trainer, resume


def main(script_args, training_args, model_args, mixture, generation_args) -> None:
    """Train, evaluate, save and push as the arguments say."""
    trainer, resume = make_trainer(script_args, training_args, model_args, mixture, generation_args)
    train(trainer, resume, script_args.dataset_name or script_args.task)


def peft_config_of(model_args):
    """TRL's, where one module alone is a name too: TRL takes it out of its list, and PEFT takes it for a pattern."""
    from trl import get_peft_config

    config, modules = get_peft_config(model_args), model_args.lora_target_modules
    if config is not None and isinstance(modules, str) and modules.isidentifier():
        config.target_modules = {modules}
    return config


def train(trainer, resume: str | None, dataset_name: str | None) -> None:
    """
    Train, evaluate, save and push.

    Raises:
        `FloatingPointError`: the loss was not finite ([`IRLConfig.nan_policy`]).
        `CheckpointError`: a checkpoint or the model could not be written.
        `GenerationError`: the policy samples nothing that ends.
    """
    from pathlib import Path

    from transformers import TrainerState
    from transformers.trainer import TRAINER_STATE_NAME

    from ..trainer.runtime.checkpoints import newest_checkpoint, one_error_if_disk_fails
    from .console.hub import pushing, repository_of, without_push
    from .console.terminal import Terminal

    args = trainer.args
    begun = 0
    if resume is not None:
        begun = TrainerState.load_from_json(Path(resume, TRAINER_STATE_NAME)).global_step
    trainer.train(resume_from_checkpoint=resume)
    if begun and begun >= trainer.state.max_steps:
        trainer.accelerator.print(
            f"Nothing was trained: {resume} has {begun} steps, and this run ends after {trainer.state.max_steps}. "
            "Raise `max_steps` or `num_train_epochs`, or leave `resume_from_checkpoint` out to begin anew."
        )
    if trainer.stopped_by_signal:
        trainer.accelerator.print(
            f"Stopped by SIGTERM after step {trainer.state.global_step}. `resume_from_checkpoint: true` goes on from "
            f"{newest_checkpoint(args.output_dir)}; the final model is not saved yet."
        )
        trainer.end()
        return
    with without_push(args), one_error_if_disk_fails(args.output_dir, "*.safetensors"):
        trainer.save_model(args.output_dir)  # before an evaluation, which may fail
        trainer.save_state()
    if args.do_eval:
        trainer.save_metrics("eval", trainer.evaluate(), combined=False)
        with one_error_if_disk_fails(args.output_dir, "*.safetensors"):
            trainer.save_state()
    trainer.create_model_card(Path(args.output_dir).name, dataset_name=dataset_name)
    trainer.accelerator.print(f"Model, tokenizer and trainer state saved to {args.output_dir}.")
    if args.push_to_hub:
        with pushing(repository_of(args), args.output_dir):
            trainer.push_to_hub(dataset_name=dataset_name)
        trainer.accelerator.print(f"Pushed to the Hub as {trainer.hub_model_id}.")
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Terminal):
            callback.tell_end()
    # Trackers and the process group: a rank that exits with the group open can abort and fail the whole run.
    trainer.end()


def training_command(name: str, doc: str, config: str) -> tuple[Callable, Callable]:
    """
    A command that trains by one of this package's trainers on demonstrations.

    Args:
        name (`str`):
            As in `trl-irl NAME`.
        doc (`str`):
            What it does, and examples: for `--help`.
        config (`str`):
            The class of its training arguments, as `trl_irl.trainer` has it.

    Returns:
        `tuple[Callable, Callable]`: `make_parser()`, and `run(argv=None)`, which returns the exit status: see
        [`~commands.console.failures.run_training`].
    """

    def make_parser():
        from trl import DatasetMixtureConfig, ModelConfig

        from .. import trainer
        from ..evaluation import GenerationArguments
        from .console.parser import RecipeParser

        script = OfflineScriptArguments if config == "IRLConfig" else IRLScriptArguments
        kinds = (script, getattr(trainer, config), ModelConfig, DatasetMixtureConfig, GenerationArguments)
        return RecipeParser(kinds, doc, prog=f"trl-irl {name}")

    def run(argv: list[str] | None = None) -> int:
        from ..trainer.runtime.generation_watch import GenerationError
        from .console.advice import drop_advice, hold_advice
        from .console.failures import run_training
        from .console.hub import PushError

        def train_and_save(made, script_args, *_) -> None:
            train(*made, script_args.dataset_name or script_args.task)

        hold_advice()
        try:
            return run_training(make_parser(), make_trainer, train_and_save, argv, (GenerationError, PushError))
        finally:
            drop_advice()

    return make_parser, run


make_parser, run = training_command("irl", __doc__, "IRLConfig")

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
