"""A signal to end, and a checkpoint that is whole or not there: what lets an interrupted run go on."""

import signal
import threading
from pathlib import Path

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .checkpoints import one_error_if_disk_fails


class StopOnSignal(TrainerCallback):
    """
    Ends training with a checkpoint after the step in which any rank got SIGTERM ([`IRLConfig.save_on_signal`]).

    Raises:
        `ValueError`: training starts outside the main thread, where Python delivers no signals.
    """

    def __init__(self):
        self.stopped = False
        self._received = False
        self._holds = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(
                "`save_on_signal=True` needs training to run in the main thread: Python handles signals only there. "
                "Call `trainer.train()` from it, or set `save_on_signal=False`."
            )
        self.stopped = self._received = False
        if not self._holds:  # `auto_find_batch_size` begins several times
            self._previous = signal.signal(signal.SIGTERM, self._receive)
            self._holds = True

    def _receive(self, signum, frame):
        self._received = True

    def on_step_end(self, args, state, control, **kwargs):
        received = reduce(torch.tensor([float(self._received)], device=args.device), reduction="sum")
        if received.item() > 0:
            self.stopped = True
            # The time until SIGKILL is short: no evaluation before the checkpoint.
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped:  # the Trainer takes the end of the run for one of an epoch; all is saved already
            control.should_save = control.should_evaluate = False

    def give_back(self) -> None:
        """The signal to whoever had it before."""
        if self._holds:
            self._holds = False
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)


class Interruptible:
    """
    For a [`~transformers.Trainer`], before it among the bases: SIGTERM can end training with a checkpoint
    (`save_on_signal`), a checkpoint is whole or not there, a run that is resumed at its end trains no more, and a full
    disk is one error.
    """

    def _watch_signals(self) -> None:
        self._stop_on_signal = StopOnSignal()
        if self.args.save_on_signal:
            self.add_callback(self._stop_on_signal)

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:  # also where training fails: the signal would end nothing from then on
            self._stop_on_signal.give_back()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        # The Trainer looks behind a step whether it was the last: resumed at its end, a run would train one more.
        if self.is_in_train and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    @property
    def stopped_by_signal(self) -> bool:
        """Whether the last training ended early, with a checkpoint, because of SIGTERM (`save_on_signal`)."""
        return self._stop_on_signal.stopped

    def _save_rng_state(self, output_dir):
        # Each rank's last file of a checkpoint. `trainer_state.json` comes next and marks the checkpoint as whole, and
        # then older ones may be deleted: not before every rank is here.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with one_error_if_disk_fails(folder, "."):
            if self.args.should_save:  # one of the same step is written over, and is not whole meanwhile
                (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
