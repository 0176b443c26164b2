"""Generations during training: sampled at every evaluation, scored, logged beside the losses, and kept as a table."""

import csv
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..tasks.columns import as_prompt_completion
from ..tasks.own_task import checked_score
from ..text.encode import asked
from ..text.generation import unwrapped
from ..text.messages import written
from ..text.random_states import random_states_kept
from ..text.sampling import check_context, encode_prompts, sample
from .metrics import check_installed
from .scoring import Scorer


@dataclass
class GenerationArguments:
    """
    What to generate at every evaluation.

    Args:
        eval_generations (`int`, *optional*, defaults to `0`):
            Prompts of the evaluation data to generate for, the first ones; 0 is none.
        eval_num_samples (`int`, *optional*, defaults to `4`):
            Completions per prompt; self-BLEU and pass@k need two or more.
        eval_temperature (`float`, *optional*, defaults to `1.0`):
            0 is greedy decoding, one completion per prompt.
        eval_top_p (`float`, *optional*, defaults to `1.0`)
        eval_max_new_tokens (`int`, *optional*):
            If unset, what the training samples (`response_length`, `max_completion_length`), or 256.
        eval_generation_batch_size (`int`, *optional*):
            Sequences that a process generates together; `per_device_eval_batch_size` if unset.
        eval_ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            ZeRO-3: gather all weights on each GPU while generating. `False` is slower and needs no room for them.
    """

    eval_generations: int = field(
        default=0, metadata={"help": "Prompts to generate for at every evaluation; 0 is none."}
    )
    eval_num_samples: int = field(default=4, metadata={"help": "Completions per prompt at an evaluation."})
    eval_temperature: float = field(default=1.0, metadata={"help": "0 is greedy decoding."})
    eval_top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling at an evaluation; 1 is off."})
    eval_max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest completion at an evaluation; as in training, or 256, if unset."}
    )
    eval_generation_batch_size: int | None = field(
        default=None, metadata={"help": "Sequences that a process generates together at an evaluation."}
    )
    eval_ds3_gather_for_generation: bool = field(
        default=True, metadata={"help": "ZeRO-3: gather all weights on each GPU while generating."}
    )

    def __post_init__(self):
        for name, least in (("eval_generations", 0), ("eval_num_samples", 1), ("eval_max_new_tokens", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"`{name}: {getattr(self, name)}` is out of range. Set it to {least} or more.")
        if self.eval_generation_batch_size is not None and self.eval_generation_batch_size < 1:
            raise ValueError(f"`eval_generation_batch_size: {self.eval_generation_batch_size}` must be 1 or more.")
        if self.eval_temperature < 0:
            raise ValueError(f"`eval_temperature: {self.eval_temperature}` must be 0 (greedy) or more.")
        if not 0 < self.eval_top_p <= 1:
            raise ValueError(f"`eval_top_p: {self.eval_top_p}` is a probability above 0, up to 1 (off).")


class GenerationCallback(TrainerCallback):
    """
    At every evaluation, samples completions of the same prompts, and

    - adds their metrics to the evaluation's as `eval_...`, so that `metric_for_best_model` can name one, and logs
      them;
    - writes prompt, generation and reference to `output_dir/generations/step-N.csv`, and to W&B, Trackio and
      TensorBoard where `report_to` names them.

    Training is untouched: random states are put back. Under DDP, DeepSpeed and FSDP2 every rank generates its share of
    the prompts.

    Example:

    ```python
    >>> trainer = SFTTrainer(...)  # or IRLTrainer
    >>> trainer.add_callback(GenerationCallback(trainer, rows, score, GenerationArguments(eval_generations=32)))
    ```

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer it is added to: [`~trl.SFTTrainer`], [`IRLTrainer`], or this package's PPOTrainer.
        rows (`Sequence[dict]`):
            In any of TRL's supervised formats, as for [`evaluate`]: `prompt`, as text or messages (and `tools`,
            `chat_template_kwargs`), and, where `score` needs it, `completion`, or `messages`. The first
            `eval_generations` are used, or all if that is 0.
        score (`Callable[[str, dict], dict[str, float]]`):
            From a completion's text and its row, whose `completion` is text, to named numbers (see
            [`~evaluation.scoring.Scorer`]), or to one number, which has the function's name; it may be `async`.
        arguments ([`GenerationArguments`], *optional*)
        corpus (`Sequence[str]`, *optional*):
            Among `"bleu"` and `"chrf"`.

    Raises:
        `ValueError`: there is no row, a metric has a name or value that it cannot have, or a prompt leaves no room for
            `eval_max_new_tokens` in the model's context.
        `ImportError`: a library of the `eval` extra is missing.
    """

    def __init__(
        self,
        trainer: Trainer,
        rows: Sequence[dict],
        score: Callable[[str, dict], dict[str, float]],
        arguments: GenerationArguments | None = None,
        corpus: Sequence[str] = (),
    ):
        check_installed()
        name = getattr(score, "__name__", "score")
        self.score = checked_score(score, "score" if name == "<lambda>" else name)
        self.trainer, self.corpus = trainer, corpus
        self.arguments = arguments or GenerationArguments()
        self.rows = [_readable(row, i) for i, row in enumerate(islice(rows, self.arguments.eval_generations or None))]
        if not self.rows:
            raise ValueError("`eval_generations` has no prompt: the evaluation data has no rows.")
        self.tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        Scorer(self.score, corpus).check(self.rows)
        self._prompts = [self._asked(row) for row in self.rows]
        sampled = [getattr(trainer.args, key, None) for key in ("response_length", "max_completion_length")]
        self.max_new_tokens = self.arguments.eval_max_new_tokens or next(filter(None, sampled), 256)
        check_context(
            trainer.model,
            encode_prompts(self.tokenizer, self._prompts, trainer.model.config.is_encoder_decoder),
            self.max_new_tokens,
            "eval_max_new_tokens",
        )
        self._last: tuple[tuple[int, int], dict[str, float]] | None = None  # of which weights, and their metrics
        self.first: tuple[str, str] | None = None  # the first prompt and what was said to it last, on the main process

    def _asked(self, row: dict):
        if not hasattr(self.trainer.args, "chat_template_kwargs"):
            return asked(row)
        # RLOO's, and so GAIL's: there the run says what the chat template gets, and rows do not.
        return {"prompt": row["prompt"], "chat_template_kwargs": self.trainer.args.chat_template_kwargs}

    def on_evaluate(self, args, state, control, metrics: dict[str, float] | None = None, **kwargs):
        # Asked again about the same weights: another of several evaluation datasets, or the evaluation at the end.
        weights = (state.global_step, sum(weight._version for weight in self.trainer.model.parameters()))
        (is_known,) = broadcast_object_list([self._last is not None and self._last[0] == weights])  # all ranks alike
        if not is_known:
            with random_states_kept():
                groups = self._generate(args)
            from_main = [None]
            if self.trainer.accelerator.is_main_process:
                from_main = [self._measure(args, state, groups)]
            # The same numbers on every rank: they may decide which checkpoint is the best.
            (scored,) = broadcast_object_list(from_main)
            self._last = weights, scored
            self.trainer.log(dict(scored))
        if metrics is not None:
            metrics.update(self._last[1])

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end:  # other weights than those of the last evaluation, at the same step
            self._last = None

    def _generate(self, args) -> list[list[dict]]:
        """The completions of every prompt, on every rank."""
        accelerator, options = self.trainer.accelerator, self.arguments
        world, rank = accelerator.num_processes, accelerator.process_index
        # As many on each rank, for ranks that gather weights layer by layer must go through them together.
        share = -(-len(self.rows) // world)
        chosen = [(rank + i * world) % len(self.rows) for i in range(share)]
        gather = options.eval_ds3_gather_for_generation
        with unwrapped(self.trainer.model_wrapped, accelerator, args, gather) as model:
            groups = sample(
                model,
                self.tokenizer,
                [self._prompts[i] for i in chosen],
                max_new_tokens=self.max_new_tokens,
                temperature=options.eval_temperature,
                num_samples=options.eval_num_samples if options.eval_temperature > 0 else 1,
                top_p=options.eval_top_p,
                batch_size=options.eval_generation_batch_size or args.per_device_eval_batch_size,
                seed=args.seed + rank,
                description="Generating" if accelerator.is_main_process and not args.disable_tqdm else "",
                synced_gpus=world > 1,
            )
        mine = [(i, [vars(completion) for completion in group]) for i, group in zip(chosen, groups, strict=True)]
        return [group for _, group in sorted(dict(gather_object(mine)).items())]

    def _measure(self, args, state, groups: list[list[dict]]) -> dict[str, float]:
        scorer = Scorer(self.score, self.corpus)
        metrics = {f"eval_{name}": statistic.value for name, statistic in scorer.statistics(groups, self.rows).items()}
        if scorer.failures.count:
            total = sum(map(len, groups))
            metrics["eval_unscored"] = scorer.failures.count / total
            warnings.warn(
                f"{scorer.failures.count} of {total} generations could not be scored and are left out of their means. "
                f"The first: {scorer.failures.first}"
            )
        table = [
            [state.global_step, written(row["prompt"]), completion["text"], row.get("completion", "")]
            for row, group in zip(self.rows, groups, strict=True)
            for completion in group
        ]
        self.first = tuple(table[0][1:3])
        self._write(args, state.global_step, table)
        return metrics

    def _write(self, args, step: int, table: list[list]) -> None:
        header = ["step", "prompt", "generation", "reference"]
        folder = Path(args.output_dir) / "generations"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"step-{step}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *table])
        except OSError as error:  # a table is not worth a run
            warnings.warn(f"The generations of step {step} could not be written to {folder}: {error}")
        if "wandb" in args.report_to:
            import wandb

            if wandb.run is not None:
                wandb.log({"generations": wandb.Table(columns=header, data=table), "train/global_step": step})
        if "trackio" in args.report_to:
            import pandas
            import trackio

            trackio.log({"generations": trackio.Table(dataframe=pandas.DataFrame(table, columns=header))})
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("generations", _markdown(header, table), step)


def _readable(row: dict, i: int) -> dict:
    """With a prompt, and what is to be said to it as text."""
    if row.get("prompt") is not None and isinstance(row.get("completion"), str):
        return row
    return as_prompt_completion(row, f"Row {i}", reference=False)


def _markdown(header: list[str], table: list[list]) -> str:
    def line(cells: list) -> str:
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), '<br>') for cell in cells)} |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, table)])
