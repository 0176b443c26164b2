"""What `evaluate` tells: `report.md` with its pictures, the numbers as files, and tables in the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..tasks.task import HUB_DATA
from .evaluate_rows import GIVEN, text_of


if TYPE_CHECKING:
    from ..evaluation.comparison import AtDiversity, Result, Values
    from .evaluate import EvaluateArguments


_SIDE_BY_SIDE = 5  # prompts whose completions the report shows
_PICTURED = {
    "performance_diversity.png": "Performance against diversity: a curve that lies above is a better model.",
    "pass_at_k.png": "The share of prompts that one of k samples solves.",
    "lengths.png": "How long completions are.",
}
# What a metric is, for those that a table shows.
_EXPLAINED = {
    "accuracy": "`accuracy` is the share whose final answer is the reference's",
    "accuracy_math": "`accuracy_math` is math-verify's judgement of the same",
    "answered": "`answered` is the share that gives a final answer at all, right or wrong",
    "rouge1": "`rouge1`, `rouge2` and `rougeL` compare words with the reference",
    "bleu": "`bleu` is sacrebleu's corpus BLEU with the tokenizer `{tokenizer}`, chosen by the references' script",
    "chrf": "`chrf` is sacrebleu's chrF",
    "pass@": "`pass@k` is the share of prompts that one of k samples solves",
    "self_bleu": "`self_bleu` compares a prompt's samples with each other (tokenizer `{tokenizer}`): lower is more "
    "diverse",
    "distinct": "`distinct` is the share of a prompt's samples that differ: higher is more diverse",
    "length": "`length` is in tokens",
    "ended": "`ended` is the share that stopped by itself before the limit",
    "empty": "`empty` is the share that says nothing",
}


@dataclass(frozen=True)
class Evaluated:
    """
    Attributes:
        values (`Values`), results (`list[Result]`): statistics of each model and temperature, and what they come to.
        lines (`list[dict]`): as in `samples.jsonl`.
        notes (`list[str]`): what a reader must know.
        rewards (`str`): the section on rewards, if there is one.
        tokenizer (`str`): sacrebleu's, for BLEU and self-BLEU.
    """

    values: Values
    results: list[Result]
    lines: list[dict]
    notes: list[str]
    rewards: str
    tokenizer: str

    @property
    def models(self) -> list[str]:
        """Whatever was judged, the baseline first."""
        return list(dict.fromkeys(model for model, _ in self.values))

    @property
    def prompts(self) -> int:
        return len(next(iter(self.values.values()))["length"].sums)

    @cached_property
    def shown(self) -> list[str]:
        """The metrics in tables, performance first: of pass@k the largest k, and `empty` only if something is."""
        from ..evaluation.comparison import metric_names

        names = metric_names(self.results)
        best_k = max((name for name in names if name.startswith("pass@")), key=lambda name: int(name[5:]), default="")
        tail = ["answered", best_k, "self_bleu", "distinct", "length", "ended"]
        if any(result.metrics["empty"].mean > 0 for result in self.results):
            tail.append("empty")
        elsewhere = {*tail, "distinct_2", "empty", "nll", "td_loss"}
        of_task = [name for name in names if name not in elsewhere and not name.startswith("pass@")]
        return [*of_task, *(name for name in tail if name in names)]

    @cached_property
    def matched(self) -> list[AtDiversity]:
        """At equal diversity the task's first metric and pass@k, of the baseline and of the others minus it."""
        from ..evaluation.comparison import at_equal_diversity

        if len(self.models) == 1:
            return []
        performance = [name for name in self.shown if name == self.shown[0] or name.startswith("pass@")]
        return at_equal_diversity(self.values, self.models[0], performance)


def print_numbers(arguments: EvaluateArguments, found: Evaluated) -> None:
    """The tables of the report in the terminal, without intervals."""
    from ..evaluation import comparison
    from ..evaluation.report import print_rows

    in_terminal = [name for name in found.shown if name not in ("accuracy_math", "distinct", "length")]
    title = f"{arguments.task or arguments.dataset_name}, {found.prompts} prompts"
    print_rows(comparison.table(found.results, in_terminal, intervals=False), title)
    if found.matched:
        rows = comparison.table_at_equal_diversity(found.matched, intervals=False)
        print_rows(rows, "At equal diversity; differences in points, * the 95 % interval leaves out 0")


def write_report(output_dir: Path, arguments: EvaluateArguments, found: Evaluated) -> None:
    """`report.md` and its pictures, `metrics.json`, `metrics.csv` and `differences.json`."""
    from ..evaluation import comparison
    from ..evaluation.pictures import plot
    from ..evaluation.report import markdown

    baseline, *others = found.models
    shown = found.shown
    said: dict[str, list[dict]] = {name: [] for name in found.models}
    for line in found.lines:
        said[line["model"]] += line["completions"]
    comparison.write_tables(found.results, output_dir)
    pictures = plot(found.results, shown[0], said, output_dir)
    parts = [
        f"# {', '.join(found.models)} on {arguments.task or arguments.dataset_name}",
        told_of_what(arguments),
        *(f"**{note}**" for note in found.notes),
        *(f"![{_PICTURED[name]}]({name})" for name in pictures),
        "## Numbers",
        f"{found.prompts} prompts of the split `{arguments.split}`, {arguments.num_samples} samples per prompt and "
        f"seed (one when greedy), seeds {', '.join(map(str, arguments.seeds))}, at most {arguments.max_new_tokens} "
        "tokens. Means over prompts, with 95 % bootstrap intervals over prompts. "
        f"{_explained(shown, found.tokenizer)}",
        *told_of_judge(arguments.reward_model_path),
        *told_of_given(arguments),
        markdown(comparison.table(found.results, shown)),
        *_of_references(arguments, found),
    ]
    if others:
        at_same = comparison.differences(found.values, baseline)
        comparison.write_differences(at_same, found.matched, baseline, output_dir)
        parts += [
            f"## Minus {baseline}, at equal diversity",
            "A flatter policy is more diverse and less accurate at every temperature, so this reads each model off "
            "the lines between its temperatures where its self-BLEU is the same (greedy decoding has 100). "
            "Differences are paired by prompt; of percentages they are in points.",
            markdown(comparison.table_at_equal_diversity(found.matched))
            if found.matched
            else "The models' temperatures have no common diversity to compare at: add temperatures.",
            f"## Minus {baseline}, at the same temperature",
            "Paired by prompt; differences of percentages are in points.",
            markdown(comparison.table(at_same, shown, difference=True)),
        ]
    else:
        (output_dir / "differences.json").unlink(missing_ok=True)  # of an earlier run with more models
    parts += [found.rewards] * bool(found.rewards)
    parts += _side_by_side(found.lines)
    (output_dir / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _explained(shown: Iterable[str], tokenizer: str) -> str:
    """What the metrics of a table are; a user's own are theirs to know."""
    keys = ["pass@" if name.startswith("pass@") else name for name in shown]
    told = [_EXPLAINED[key].format(tokenizer=tokenizer) for key in keys if key in _EXPLAINED]
    return "; ".join(told) + "." if told else ""


def _of_references(arguments: EvaluateArguments, found: Evaluated) -> list[str]:
    """The losses of the references, a row a model; nothing where they were not asked for."""
    from ..evaluation import comparison
    from ..evaluation.report import markdown

    held_out = {one.model: one.metrics for one in found.results if one.model in arguments.named_models()}
    losses = [name for name in ("nll", "td_loss") if any(name in one for one in held_out.values())]
    if not losses:
        return []
    units = {"nll": "`nll` in nats", "td_loss": "`td_loss` in squared nats"}
    rows = [["model", "held out", *(f"{loss} per token" for loss in losses)]]
    for name, one in held_out.items():
        rows.append([name, "references", *(comparison.shown(loss, one[loss], True) for loss in losses)])
    return [f"Of the references, {' and '.join(units[loss] for loss in losses)}:", markdown(rows)]


def _side_by_side(lines: Sequence[dict]) -> list[str]:
    """The first prompts, and below each what every model said first, at its first temperature and seed."""
    from ..evaluation.comparison import decoding

    first: dict[str, list[dict]] = {}
    for line in lines:
        of_model = first.setdefault(line["model"], [])
        if not of_model or (line["temperature"], line["seed"]) == (of_model[0]["temperature"], of_model[0]["seed"]):
            of_model.append(line)
    columns = [f"{model} ({decoding(ones[0]['temperature'])})" for model, ones in first.items()]
    parts = ["## What they said"]
    for asked in zip(*(ones[:_SIDE_BY_SIDE] for ones in first.values()), strict=True):
        cells = [one["completions"][0]["text"] if one["completions"] else "" for one in asked]
        header, reference = columns, asked[0]["reference"]
        if reference is not None:
            header, cells = ["reference", *columns], [reference, *cells]
        parts += [
            f"**{_cell(asked[0]['prompt'])}**",
            f"| {' | '.join(map(_cell, header))} |\n|{'---|' * len(header)}\n| {' | '.join(map(_cell, cells))} |",
        ]
    return parts


def _cell(said) -> str:
    """Text, or the last of some messages, as one cell of a Markdown table: nothing in it is markup."""
    text = re.sub(r"[&<>\\`*_\[\]|~#$]", lambda mark: f"&#{ord(mark[0])};", text_of(said))
    return "<br>".join(text.splitlines()) or "(nothing)"


def told_of_what(arguments: EvaluateArguments) -> str:
    """Which data and which models, as a report is read long after its command is forgotten."""
    data = [f"Data: `{arguments.dataset_name or HUB_DATA.get(arguments.task, 'generated')}`"]
    named = {"task": arguments.task, "from": arguments.source_column, "to": arguments.target_column}
    data += [f"{what} `{value}`" for what, value in named.items() if value]
    models = arguments.named_models()
    if arguments.reward_model_path:
        models["reward model"] = arguments.reward_model_path
    told = "; ".join(f"{name}: `{path}`" for name, path in models.items())
    return f"{', '.join(data)}.{f' Models: {told}.' if told else ''}"


def told_of_given(arguments: EvaluateArguments) -> list[str]:
    if not arguments.completion_columns:
        return []
    return [
        f"`{GIVEN}` are the completions that the data has in {', '.join(arguments.completion_columns)}: nothing is "
        "known of how they were sampled. Their `length` is in tokens of the first model that is named, or in words "
        "where there is none."
    ]


def told_of_judge(reward_model_path: str | None) -> list[str]:
    if reward_model_path is None:
        return []
    return [
        f"`reward` is the reward model's, `{reward_model_path}`; `win_rate` is how often it gives a completion more "
        "than the prompt's own reference, a tie counting half."
    ]
