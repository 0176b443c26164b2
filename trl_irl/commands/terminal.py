"""What a training shows in the terminal: a table before it, columns while it runs, and what to do with the result."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback
from trl.trainer.utils import get_config_model_id

from ..evaluation.callback import GenerationCallback
from ..text.context import context_length
from ..trainer import IRLConfig
from ..trainer.models import causal_lm
from ..trainer.row_ends import labels_of
from .advice import give_advice
from .evaluate_rows import text_of


_LOOKED_AT = 200  # rows whose tokens are counted; of more, as many drawn from all
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


@dataclass(frozen=True)
class Rows:
    """
    The rows that a training sees, or some of them, drawn from all.

    Attributes:
        count (`int`): of all, not only of those that were looked at.
        looked_at (`int`)
        tokens, scored (`float`): mean tokens per row, and those of them that the loss is over.
        longest_prompt, longest_scored (`int`): in tokens.
        ended (`float`, *optional*): share whose last scored token is a stop token; `None` where rows are packed.
    """

    count: int
    looked_at: int
    tokens: float
    scored: float
    longest_prompt: int
    longest_scored: int
    ended: float | None


def rows_of(trainer) -> Rows | None:
    """Of a trainer on demonstrations; `None` of a stream, and of rows that are not token ids (images, GAIL)."""
    dataset = trainer.train_dataset
    if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
        return None
    if trainer.processing_class is not getattr(trainer, "_tokenizer", None):
        return None
    # Drawn, as evenly spaced ones would beat with data that is sorted or repeats.
    chosen = np.random.default_rng(0).permutation(len(dataset))[:_LOOKED_AT]
    lengths, scored, ended = [], [], []
    stop_tokens = torch.tensor(sorted(trainer.stop_token_ids))
    for i in chosen.tolist():
        (row,), labels = labels_of(trainer, [dataset[i]])
        actions = labels[labels != -100]
        lengths.append(len(row["input_ids"]))
        scored.append(len(actions))
        ended.append(len(actions) > 0 and bool(torch.isin(actions[-1], stop_tokens)))
    prompts = [length - count for length, count in zip(lengths, scored, strict=True)]
    share = None if trainer.args.packing else sum(ended) / len(ended)
    means = (sum(lengths) / len(lengths), sum(scored) / len(scored))
    return Rows(len(dataset), len(chosen), *means, max(prompts), max(scored), share)


def objective(args) -> str:
    """The loss that these arguments ask for, and when its terms are in force."""
    if not isinstance(args, IRLConfig):
        return f"GAIL: RLOO on a discriminator's reward, beta {args.beta:g}"
    kl = f", lambda_kl {args.lambda_kl:g}" if args.lambda_kl else ""
    if args.lambda_td == 0:
        return f"maximum likelihood (lambda_td 0){kl}"
    scale = "measured at the first step" if args.td_scale is None else f"{args.td_scale:g}"
    return (
        f"inverse soft-Q: nll + lambda_td / td_scale * r^2, {schedule(args)}, td_scale {scale}, gamma {args.gamma:g}, "
        f"terminal_value {args.terminal_value}{kl}"
    )


def schedule(args) -> str:
    """`MLE for steps 0 to 99, then lambda_td rises to 0.1 at step 300`; steps count from 0."""
    first, last = args.mle_warmup_steps, args.mle_warmup_steps + args.lambda_td_warmup_steps - 1
    before = f"MLE for steps 0 to {first - 1}, then " if first else ""
    if last > first:
        return f"{before}lambda_td rises to {args.lambda_td:g} at step {last}"
    return f"{before}lambda_td {args.lambda_td:g}"


def weights(parameters: Iterable[torch.nn.Parameter]) -> int:
    """How many weights there are, also where they are packed into 4 bits or sharded by ZeRO-3."""
    return sum(
        math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else getattr(p, "ds_numel", p.numel())
        for p in parameters
    )


def describe(trainer, rows: Rows | None, max_steps: int) -> list[tuple[str, str]]:
    """The lines of the table before a training: what, and how."""
    args, accelerator, model = trainer.args, trainer.accelerator, trainer.model
    trained, total = weights(p for p in model.parameters() if p.requires_grad), weights(model.parameters())
    name = get_config_model_id(causal_lm(model).config) or type(model).__name__
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    lines = [("objective", objective(args)), ("model", f"{name}: {trained:,} of {total:,} weights trained")]
    steps = f"{max_steps:,} of {per_step:,} {'rows' if isinstance(args, IRLConfig) else 'completions'}"
    if rows is not None:
        about = "" if rows.looked_at == rows.count else "about "
        told = f"{rows.count:,} {'packed ' if args.packing else ''}rows, {about}{rows.count * rows.scored:,.0f} scored"
        told += f" tokens, {rows.tokens:.0f} tokens per row of which {rows.scored:.0f} scored"
        lines.append(("data", told if rows.ended is None else f"{told}; {rows.ended:.0%} of the rows end"))
        steps += f", {about}{per_step * rows.scored:,.0f} scored tokens each"
    elif isinstance(trainer.train_dataset, Dataset):
        lines.append(("data", f"{len(trainer.train_dataset):,} rows"))
    else:
        lines.append(("data", "a stream"))
    kind = str(accelerator.distributed_type.value).lower()
    ranks = f"{accelerator.num_processes} processes ({kind})" if accelerator.num_processes > 1 else "1 process"
    precision = "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    trackers = [name for name in args.report_to if name != "none"]
    logged = f"every {args.logging_steps:g} steps here" + (f" and to {', '.join(trackers)}" if trackers else "")
    saves = {"no": "", "epoch": ", a checkpoint every epoch"}.get(
        str(getattr(args.save_strategy, "value", args.save_strategy)),
        f", a checkpoint every {args.save_steps:g} steps",
    )
    return [
        *lines,
        ("steps", steps),
        ("runs on", f"{ranks}, {accelerator.device.type}, {precision}"),
        ("saves to", f"{args.output_dir}{saves}"),
        ("logs", logged),
    ]


def next_commands(trainer, script_args, split: str, rows: Rows | None) -> list[str]:
    """
    What to run after this training, ready to paste: an evaluation against its base, its rewards as a page, and a talk
    with both.
    """
    args, context = trainer.args, context_length(causal_lm(trainer.model).config)
    if script_args.task is None and script_args.dataset_name is None:  # a mixture, which `evaluate` has no keys for
        return []
    data = []
    for key in ("task", "dataset_name", "dataset_config", "source_column", "target_column", "prompt_template"):
        if getattr(script_args, key) is not None:
            data += [f"--{key}", getattr(script_args, key)]
    if not script_args.calculator_annotations:
        data += ["--calculator_annotations", "false"]
    if args.eos_token is not None:
        data += ["--eos_token", args.eos_token]
    longest = rows.longest_scored * 3 // 2 if rows is not None else getattr(args, "max_completion_length", None) or 256
    if context is not None and rows is not None:
        longest = min(longest, context - rows.longest_prompt)
    out, of_split = args.output_dir, [*data, "--split", split]
    models = [f"base={get_config_model_id(causal_lm(trainer.model).config)}", f"tuned={out}"]
    sampling = ["--num_prompts", "100", "--max_new_tokens", str(max(longest, 1))]
    commands = [["evaluate", "--models", *models, *of_split, *sampling, "--output_dir", f"{out}/evaluation"]]
    if isinstance(args, IRLConfig):  # GAIL's reward is its discriminator's
        pages = ["--num_rows", "100", "--output", f"{out}/rewards.parquet", "--html", f"{out}/rewards.html"]
        commands.append(["score", "--model", out, *of_split, *pages])
    commands.append(["chat", *models])
    return [shlex.join(["trl-irl", *command]) for command in commands]


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
            _print_table(describe(self.trainer, self.rows, state.max_steps))
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
        if self.bars:
            tqdm.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

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
                told = ", ".join(f"{key} {number(last[beginning + key])}" for key in keys)
                print(f"{'Last evaluation' if beginning else 'Last log'} (step {last['step']}): {told}.")
        commands = next_commands(self.trainer, self.script_args, self.split, self.rows)
        if commands:
            print("\nNext:\n" + "\n".join(f"  {command}" for command in commands), flush=True)


def use_terminal(trainer, script_args, split: str) -> Terminal:
    """Put a [`Terminal`] in the place of the trainer's own callbacks that write there."""
    for kind in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(kind)
    terminal = Terminal(trainer, script_args, split)
    trainer.add_callback(terminal)
    return terminal


def _indented(what: str, text: str) -> str:
    """`    said: ...`, further lines below the first, the middle of a long text left out."""
    # A model may say what a terminal takes for a command.
    text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text_of(text))
    return f"    {what + ':':7}" + "\n           ".join(text.splitlines() or ["(nothing)"])


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


def _print_table(lines: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, told in lines:
        table.add_row(name, told)
    console = Console(width=min(shutil.get_terminal_size((100, 24)).columns, 110), highlight=False, markup=False)
    with console.capture() as rendered:
        console.print(table)
    print("\n" + "\n".join(line.rstrip() for line in rendered.get().splitlines()) + "\n", flush=True)
