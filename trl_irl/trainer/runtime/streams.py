"""Datasets that are read as they come, by several processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from datasets import Dataset, IterableDataset
from transformers import TrainerCallback, TrainingArguments


class EpochsWithoutStep(TrainerCallback):
    """
    Ends a training that would go on for ever: of a stream with fewer batches than a step takes, Trainer reads epoch
    after epoch and never comes to a step. After a resume one epoch without a step is what was trained before.
    """

    def __init__(self):
        self._steps, self._idle = 0, 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._steps = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        self._idle = self._idle + 1 if state.global_step == self._steps else 0
        if self._idle == 2 and not control.should_training_stop:
            raise ValueError(
                "The stream of the train dataset ended twice without one optimiser step: a step takes "
                f"`gradient_accumulation_steps={args.gradient_accumulation_steps}` batches of "
                f"`per_device_train_batch_size={args.per_device_train_batch_size}` rows on each process, and it has "
                "fewer. Lower one of them, or give more rows."
            )


def read_on_every_rank(args: TrainingArguments, datasets: Iterable[tuple[str, Dataset | IterableDataset]]) -> None:
    """
    Streams are read by each rank, which takes batches of its own. By default accelerate reads them on the first and
    cuts what it has read for all, which fails where two batches differ in width; SFTTrainer sets this for a train
    dataset alone. What is evaluated on may then be read twice, and a warning says so.

    Args:
        args ([`~transformers.TrainingArguments`]):
            `accelerator_config` is set.
        datasets (`Iterable[tuple[str, Dataset]]`):
            With their names, the train dataset's first if there is one.

    Raises:
        `ValueError`: `dispatch_batches` is set to the contrary, and there are several.
    """
    streams = [name for name, dataset in datasets if isinstance(dataset, IterableDataset)]
    if not streams or args.world_size == 1:
        return
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            f"The {streams[0]} dataset is a stream and `accelerator_config` sets `dispatch_batches`: one rank would "
            "read it and cut its batches for the others, which fails where two batches differ in width. Leave "
            "`dispatch_batches` unset."
        )
    args.accelerator_config.dispatch_batches = False
    evaluated = [name for name in streams if name != "train"]
    if evaluated:
        most = args.world_size * args.per_device_eval_batch_size - 1
        warnings.warn(
            f"The {evaluated[0]} dataset is a stream, and its last batch over {args.world_size} processes is filled "
            f"up with rows from its start: up to {most} rows count twice in its metrics. On one process none does. "
            "Load it whole (`dataset_streaming: false`) for numbers that do not depend on how many there are.",
            stacklevel=3,
        )
