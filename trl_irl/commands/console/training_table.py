"""The table before a training: what is trained, on what, how long; and the commands to run after it."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from datasets import Dataset
from trl.trainer.utils import get_config_model_id

from ...soft_q.objectives import Combined, InverseSoftQ, Objective, OnlineInverseSoftQ, PerToken
from ...text.context import context_length
from ...trainer import IRLConfig
from ...trainer.irl.row_ends import labels_of
from ...trainer.runtime.models import causal_lm, rows_per_step


_LOOKED_AT = 200  # rows whose tokens are counted; of more, as many drawn from all


@dataclass(frozen=True)
class Rows:
    """
    The rows that a training sees, or some of them, drawn from all.

    Attributes:
        count (`int`): of all, not only of those that were looked at.
        looked_at (`int`)
        tokens, scored (`float`): mean tokens per row, and those of them that the loss is over.
        longest_prompt, longest_scored (`int`): in tokens, of the documents that a packed row has each for itself.
        ended (`float`, *optional*):
            Share whose scored tokens end in a stop token, or in white space behind one; `None` where rows are packed.
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
    lengths, scored, ended, documents = [], [], [], []
    stop_tokens = torch.tensor(sorted(trainer.stop_token_ids))
    for i in chosen.tolist():
        (row,), labels = labels_of(trainer, [dataset[i]])
        actions = labels[labels != -100]
        own = _documents(row, labels.flatten(), trainer.model.config.is_encoder_decoder)
        documents += own
        lengths.append(sum(map(sum, own)))
        scored.append(len(actions))
        stops = torch.isin(actions, stop_tokens).nonzero().flatten()
        # Many chat templates write a newline behind the token that ends a turn.
        ended.append(len(stops) > 0 and not trainer.processing_class.decode(actions[stops[-1] + 1 :]).strip())
    prompts, completions = zip(*documents, strict=True)
    share = None if trainer.args.packing else sum(ended) / len(ended)
    means = (sum(lengths) / len(lengths), sum(scored) / len(scored))
    return Rows(len(dataset), len(chosen), *means, max(prompts), max(completions), share)


def _documents(row: dict, labels: torch.Tensor, apart: bool) -> list[tuple[int, int]]:
    """Tokens that are only read, and those that are scored, of each document of a row; `labels` are the collator's."""
    if apart:  # what the encoder reads, and what the decoder writes
        several = isinstance(row["labels"][0], list) if row["labels"] else False
        pairs = zip(row["input_ids"], row["labels"], strict=True) if several else [(row["input_ids"], row["labels"])]
        return [(len(ids), sum(label != -100 for label in own)) for ids, own in pairs]
    lengths = row.get("seq_lengths")
    if not lengths:
        count = int((labels != -100).sum())
        return [(len(row["input_ids"]) - count, count)]
    scored = [int((own != -100).sum()) for own in labels[: sum(lengths)].split(lengths)]
    return [(length - count, count) for length, count in zip(lengths, scored, strict=True)]


def objective(trainer, max_steps: int | None = None) -> str:
    """The loss of a trainer, and when its terms are in force in a run of so many steps."""
    args = trainer.args
    if not isinstance(args, IRLConfig):
        return f"GAIL: RLOO on a discriminator's reward, beta {args.beta:g}"
    kl = f", lambda_kl {args.lambda_kl:g}" if args.lambda_kl else ""
    own = trainer.objective
    if not own.is_scheduled:
        return ", ".join([own.formula, *_strengths(own)]) + kl
    if args.lambda_td_in_use == 0 and isinstance(own, PerToken | OnlineInverseSoftQ) and not isinstance(own, Combined):
        return f"maximum likelihood (lambda_td 0){kl}"
    scale = "measured at the first step" if args.td_scale is None else f"{args.td_scale:g}"
    told = [own.formula, *_strengths(own), schedule(args, max_steps), f"td_scale {scale}", f"gamma {args.gamma:g}"]
    return ", ".join([*told, f"terminal_value {args.terminal_value}"]) + kl


def _strengths(objective: Objective) -> list[str]:
    """The keys of an objective beside its schedule and discount; of inverse soft-Q those that are not the paper's."""
    if not isinstance(objective, PerToken):
        return []
    parts = objective.parts if isinstance(objective, Combined) else (objective,)
    return [
        f"{key.name} {value:g}" if isinstance(value := getattr(part, key.name), float) else f"{key.name} {value}"
        for part in parts
        for key in fields(part)
        if key.name in part.uses
        and key.name != "value_origin"  # the formula says it
        and not (isinstance(part, InverseSoftQ) and _is_default(part, key.name))
    ]


def _is_default(part: InverseSoftQ, key: str) -> bool:
    value = getattr(part, key)
    return (tuple(value) if isinstance(value, list) else value) == getattr(InverseSoftQ(), key)


def schedule(args, max_steps: int | None = None) -> str:
    """`MLE for steps 0 to 99, then lambda_td rises to 0.1 at step 300`; steps count from 0."""
    first, rise, decay = args.schedule_of(max_steps)
    last = first + rise - 1
    before = f"MLE for steps 0 to {first - 1}, then " if first else ""
    after = f" and falls to 0 at step {max(last, first) + decay}" if decay else ""
    if last > first:
        return f"{before}lambda_td rises to {args.lambda_td:g} at step {last}{after}"
    return f"{before}lambda_td {args.lambda_td:g}{after}"


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
    per_step = rows_per_step(trainer)
    lines = [
        ("objective", objective(trainer, max_steps)),
        ("model", f"{name}: {trained:,} of {total:,} weights trained"),
    ]
    if rows is not None:
        per_step = min(per_step, rows.count)  # a step does not go beyond an epoch
    steps = f"{max_steps:,} of {per_step:,} {'rows' if isinstance(args, IRLConfig) else 'completions'}"
    if rows is not None:
        about = "" if rows.looked_at == rows.count else "about "
        counts = (
            f"{rows.count:,} {'packed ' if args.packing else ''}rows, {about}{rows.count * rows.scored:,.0f} scored"
        )
        counts += f" tokens, {rows.tokens:.0f} tokens per row of which {rows.scored:.0f} scored"
        lines.append(("data", counts if rows.ended is None else f"{counts}; {rows.ended:.0%} of the rows end"))
        steps += f", {about}{per_step * rows.scored:,.0f} scored tokens each"
    elif isinstance(trainer.train_dataset, Dataset):
        lines.append(("data", f"{len(trainer.train_dataset):,} rows"))
    else:
        lines.append(("data", "a stream"))
    kind = str(accelerator.distributed_type.value).lower()
    ranks = f"{accelerator.num_processes} processes ({kind})" if accelerator.num_processes > 1 else "1 process"
    precision = accelerator.mixed_precision
    if precision == "no":
        precision = str(causal_lm(model).dtype).removeprefix("torch.")
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
    if script_args.task_seed != type(script_args).__dataclass_fields__["task_seed"].default:
        data += ["--task_seed", str(script_args.task_seed)]
    if script_args.chat_format:
        data += ["--chat_format", "true"]
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


def print_table(lines: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(name, text)
    console = Console(width=min(shutil.get_terminal_size((100, 24)).columns, 110), highlight=False, markup=False)
    with console.capture() as rendered:
        console.print(table)
    print("\n" + "\n".join(line.rstrip() for line in rendered.get().splitlines()) + "\n", flush=True)
