"""What a training shows in the terminal: a table before it, columns while it runs, and what to do with the result."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback

from ...evaluation.callback import GenerationCallback
from ...evaluation.rendering import printable, shortened
from .advice import give_advice
from .failures import print_nowhere
from .training_table import Rows, describe, next_commands, print_table, rows_of


# What a log line shows, in this order, where the run has it; all else is in trainer_state.json and the trackers.
_COLUMNS = {
    "nll": "nll",
    "td_loss": "td_loss",
    "reward_mean": "reward",
    "reward": "reward",
    "kl": "kl",
    "lambda_td": "lambda_td",
    "policy_reward_mean": "own reward",
    "discriminator_loss": "disc loss",
    "discriminator_accuracy_policy": "caught",
    "completions/mean_length": "length",
    "mean_token_accuracy": "token acc",
    "grad_norm": "grad norm",
    "learning_rate": "lr",
}
_BESIDE_THE_BAR = ("loss", "nll", "td_loss", "reward", "lambda_td", "lr", "tokens/s")
_NOT_SHOWN = (  # how keys of an evaluation end that its line leaves out: times, counts, and what only trackers want
    *("epoch", "_runtime", "_per_second", "_num_tokens", "_td_scale", "_lambda_td", "_mean_token_accuracy"),
    *("_log_pi_mean", "_q_mean", "_q_std", "_v_mean", "_reward_mean", "_reward_std", "_td_loss_terminal_share"),
)
_HEADER_EVERY = 25  # lines


class Terminal(ProgressCallback):
    """
    In place of the Trainer's own bar and printed dictionaries: a table before the first step, a bar, and log lines in
    columns. Where stderr is no terminal, lines only.

    Args:
        trainer ([`IRLTrainer`] or [`GAILTrainer`])
        script_args ([`~commands.irl.IRLScriptArguments`])
        split (`str`): what the commands that it proposes at the end are to look at.
    """

    def __init__(self, trainer, script_args, split: str):
        super().__init__()
        self.trainer, self.script_args, self.split = trainer, script_args, split
        self.bars = sys.stderr.isatty() and not trainer.args.disable_tqdm
        self.rows: Rows | None = None
        self._columns: list[str] = []
        self._lines = 0
        self._last_evaluation = ""
        self._asked, self._shown = "", -1  # the prompt whose answers are shown, and the step of the last one
        self._clock: float | None = None  # since when tokens are counted
        self._step_ended = 0.0
        self._seen = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.rows = rows_of(self.trainer)
            print_table(describe(self.trainer, self.rows, state.max_steps))
            give_advice()
            self._clock = time.perf_counter()
            # After a resume the count goes on from the last log.
            self._seen = next((one["num_tokens"] for one in reversed(state.log_history) if "num_tokens" in one), 0)
        if self.bars:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        self._step_ended = time.perf_counter()
        if self.bars:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.bars:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bars:
            super().on_train_end(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, **kwargs):
        super().on_evaluate(args, state, control, **kwargs)
        if state.is_world_process_zero and state.global_step != self._shown:
            self._shown = state.global_step
            self._show_first()
        now = time.perf_counter()
        if self._clock is not None:  # what the evaluation took is no training
            self._clock += now - max(self._step_ended, self._clock)
        self._step_ended = now

    def _show_first(self) -> None:
        """What the model says to the first prompt of its evaluations by now; the prompt itself only once."""
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, GenerationCallback) and callback.first is not None:
                prompt, said = callback.first
                if prompt != self._asked:
                    self._asked = prompt
                    self._write(_indented("asked", prompt))
                self._write(_indented("said", said))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if any(key.startswith(("eval_", "test_")) for key in logs):
            line = evaluation_line(state.global_step, logs)
            if line != self._last_evaluation:  # the one at the end, where the last step had one
                self._write(line)
            self._last_evaluation = line
        else:
            for line in self._log_lines(state.global_step, logs):
                self._write(line)

    def _log_lines(self, step: int, logs: dict) -> list[str]:
        values = {title: logs[key] for key, title in _COLUMNS.items() if key in logs} or {"loss": logs.get("loss", 0)}
        if "num_tokens" in logs:
            now = time.perf_counter()
            if self._clock is not None:
                values["tokens/s"] = (logs["num_tokens"] - self._seen) / (now - self._clock)
            self._clock, self._seen = now, logs["num_tokens"]
        if self.bars:
            beside = [f"{title} {number(values[title])}" for title in _BESIDE_THE_BAR if title in values]
            self.training_bar.set_postfix_str(", ".join(beside), refresh=False)
        new = [title for title in values if title not in self._columns]
        lines = []
        if new or self._lines % _HEADER_EVERY == 0:
            self._columns += new
            lines.append("    step" + "".join(f"{title:>11}" for title in self._columns))
        self._lines += 1
        lines.append(f"{step:>8}" + "".join(f"{number(values.get(title)):>11}" for title in self._columns))
        return lines

    def _write(self, line: str) -> None:
        try:
            if self.bars:
                tqdm.write(line, file=sys.stdout)
            else:
                print(line, flush=True)
        except BrokenPipeError:  # a run goes on where nobody reads what it prints any more
            print_nowhere()

    def tell_end(self) -> None:
        """The last numbers of the run and the next commands; on the first rank."""
        history = self.trainer.state.log_history
        if not self.trainer.accelerator.is_main_process:
            return
        for beginning in ("", "eval_"):
            last = next((entry for entry in reversed(history) if f"{beginning}nll" in entry), None)
            if last is not None:
                keys = [
                    key for key in ("nll", "td_loss", "mean_token_accuracy", "accuracy") if beginning + key in last
                ]
                numbers = ", ".join(f"{key} {number(last[beginning + key])}" for key in keys)
                print(f"{'Last evaluation' if beginning else 'Last log'} (step {last['step']}): {numbers}.")
        commands = next_commands(self.trainer, self.script_args, self.split, self.rows)
        if commands:
            trained = self.split == self.script_args.dataset_train_split
            note = "\nNothing was held out: these commands use the training rows." if trained else ""
            print(f"{note}\nNext:\n" + "\n".join(f"  {command}" for command in commands), flush=True)


def use_terminal(trainer, script_args, split: str) -> Terminal:
    """Put a [`Terminal`] in the place of the trainer's own callbacks that write there."""
    for kind in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(kind)
    terminal = Terminal(trainer, script_args, split)
    trainer.add_callback(terminal)
    return terminal


def _indented(what: str, text: str) -> str:
    """`    said: ...`, further lines below the first, the middle of a long text left out."""
    return f"    {what + ':':7}" + "\n           ".join(printable(shortened(text)).splitlines() or ["(nothing)"])


def evaluation_line(step: int, logs: dict) -> str:
    """`step 50: eval_nll 0.412, eval_td_loss 1.3`: what was evaluated, without times and what only trackers want."""
    shown = {key: value for key, value in logs.items() if not key.endswith(_NOT_SHOWN)}
    return f"    step {step}: " + ", ".join(f"{key} {number(value)}" for key, value in shown.items())


def number(value) -> str:
    """At most nine characters: `0.0123`, `2.00e-05`, `12,345`."""
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    if value == 0 or isinstance(value, int):
        return f"{value:,}" if isinstance(value, int) else "0"
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"
