"""What every trainer on demonstrations is told beside its objective: memory, and what happens when things go wrong."""

import copy
import os
import warnings
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from accelerate import PartialState

from ...soft_q.buffer import DEFAULT_LOGIT_BUFFER_MB, read_logit_buffer
from .best_metric import set_direction
from .least_values import check_at_least


NAN_POLICIES = ("stop", "skip")


@dataclass
class RunArguments:
    r"""
    For a dataclass of [`~transformers.TrainingArguments`], before it among the bases.

    Parameters:
        > Parameters that control memory

        logit_buffer_mb (`float` or `"auto"`, *optional*, defaults to `128`):
            Memory in MiB for the tile of logits at work and its working copy. The shape of the tile follows from it:
            the micro-batch's scored tokens (at most 4,096) by as many vocabulary columns as fit. Where all tokens and
            columns fit, the logits are kept for the backward, and a step is faster: 8 bytes times scored tokens times
            vocabulary are enough. `"auto"` takes as much where it is free, micro-batch by micro-batch; sums are then
            of another order now and then, and a run is repeated to rounding, not to the bit.

        > Parameters that control what happens when something goes wrong

        nan_policy (`str`, *optional*, defaults to `"stop"`):
            What a loss or gradient that is NaN or infinite, on any rank, does. `"stop"` ends the run with a
            `FloatingPointError` that gives the step and its metrics, before the weights change. `"skip"` leaves the
            weights as they are for that step, counts it in `skipped_steps`, and ends the run after ten such steps in
            a row. In fp16, gradients that overflow while the loss is finite are the loss scaler's business.
        save_on_signal (`bool`, *optional*, defaults to `False`):
            Whether SIGTERM makes training end after the current step with a checkpoint, from which
            `resume_from_checkpoint` goes on. All ranks act on a signal that any rank got.
    """

    # Parameters that control memory
    logit_buffer_mb: str = field(  # on the command line; a number, but for "auto", once it is read
        default=DEFAULT_LOGIT_BUFFER_MB,
        metadata={
            "help": "Memory in MiB for the tile of logits at work and its working copy; 'auto': all logits of a "
            "micro-batch where memory is free."
        },
    )

    # Parameters that control what happens when something goes wrong
    nan_policy: str = field(
        default="stop",
        metadata={
            "help": "What a NaN or infinite loss or gradient does: 'stop' ends the run before the weights change, "
            "'skip' leaves that step out and counts it in skipped_steps.",
            "choices": list(NAN_POLICIES),
        },
    )
    save_on_signal: bool = field(
        default=False,
        metadata={"help": "Whether SIGTERM makes training end after the current step with a checkpoint."},
    )

    def __post_init__(self):
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
            # transformers 5.23 passes `ddp_timeout` on for accelerators only; it then takes the group made here.
            PartialState(cpu=True, timeout=timedelta(seconds=self.ddp_timeout))
        set_direction(self)
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor={self.label_smoothing_factor}` is the Trainer's own smoothing: it needs the "
                "logits that are never made here. Set it to 0, and take `objective='label_smoothing'` with "
                f"`label_smoothing_weight={self.label_smoothing_factor}`."
            )
        check_at_least(self)
        if self.max_steps <= 0 and not self.num_train_epochs >= 0:
            raise ValueError(
                f"`num_train_epochs={self.num_train_epochs}` with `max_steps={self.max_steps}` trains for no step. "
                "Set one of them above 0."
            )
        if self.save_strategy == "steps" and not self.save_steps > 0:
            raise ValueError(
                f"`save_steps={self.save_steps}` with `save_strategy='steps'` saves nothing. Set it above 0, or "
                "`save_strategy='no'`."
            )
        if self.auto_find_batch_size and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            warnings.warn(
                "`auto_find_batch_size=True` on several processes: where one of them alone runs out of memory it "
                "begins anew, and the others wait for it until `ddp_timeout`. Find one on one process or by "
                "`trl-irl plan`, and set `per_device_train_batch_size`.",
                stacklevel=3,
            )
        self.logit_buffer_mb = read_logit_buffer(self.logit_buffer_mb)
        if self.nan_policy not in NAN_POLICIES:
            raise ValueError(
                f"`nan_policy={self.nan_policy!r}` is unknown. It says what a NaN or infinite loss does: 'stop' ends "
                "the run before the weights change, 'skip' leaves that step out."
            )
        if "token" in (self.model_init_kwargs or {}):
            raise ValueError(
                "`model_init_kwargs` holds a `token`, which would be written to logs and saved beside the model. Set "
                "it in the environment as HF_TOKEN, or log in with `hf auth login`."
            )

    def __getstate__(self) -> dict:
        # Trainer pickles its arguments beside the model (training_args.bin): without the Hub token.
        return {**self.__dict__, "hub_token": None}

    def __copy__(self) -> "RunArguments":  # which goes by the state of a pickle, and is none
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict) -> "RunArguments":
        new = memo[id(self)] = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new
