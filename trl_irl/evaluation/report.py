"""The report of an evaluation: which data and models, pictures, numbers with their intervals, differences, samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..tasks.known import task_of
from . import comparison
from .comparison import decoding, sampler_of
from .equal_diversity import Curve, long_lines
from .frontier import families, together
from .rendering import counted, markdown, shortened
from .settings import GIVEN, EvaluationSettings


_SIDE_BY_SIDE = 5  # prompts whose completions the report shows
_FEW = 10  # prompts: of skewed numbers intervals hold the mean in less than 90 % of cases
_SHARES = ("accuracy", "accuracy_math", "answered", "win_rate")
_PICTURED = {
    "performance_diversity.png": "Performance against diversity: a curve that lies above is a better model.",
    "frontier.png": "The frontier: by the best sampler at each diversity, chosen on other prompts.",
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
    "unique_answers": "`unique_answers` is how many different final answers the samples of a prompt give",
    "vendi": "`vendi` is the effective number of different samples of a prompt, by their n-grams",
    "length": "`length` is in tokens",
    "ended": "`ended` is the share that stopped by itself before the limit",
    "empty": "`empty` is the share that says nothing",
}


def report_text(results, pictures: Sequence[str] = ()) -> str:
    """
    The report as Markdown.

    Args:
        results ([`~evaluation.results.Results`])
        pictures (`Sequence[str]`, *optional*):
            Names of files beside it.
    """
    settings, shown = results.settings, results.shown
    of_split = "" if results.rows_given else f" of the split `{settings.split}`"
    baseline, *others = results.models
    parts = [
        f"# {', '.join(results.models)} on {results.title}",
        _told_of_what(results),
        *(f"**{note.replace('<', '&lt;')}**" for note in results.notes),  # it may quote what a model said
        *(f"![{_PICTURED[name]}]({name})" for name in pictures),
        "## Numbers",
        f"{counted(results.prompts, 'prompt')}{of_split}, {counted(settings.num_samples, 'sample')} per prompt and "
        f"seed (one when greedy), seeds {', '.join(map(str, settings.seeds))}, at most {settings.max_new_tokens} "
        f"tokens. {_of_intervals(results)} {_explained(shown, results)}",
        *_told_of_judge(settings.reward_model_path),
        *_told_of_given(settings),
        markdown(results.table()),
        *_told_of_their_diversity(results),
        *_of_references(results),
    ]
    if others:
        parts += [
            f"## Minus {baseline}, at equal diversity",
            "A flatter policy is more diverse and less accurate at every temperature, so this reads each model off "
            "the lines between its temperatures where its self-BLEU is the same (greedy decoding has 100). "
            "Differences are paired by prompt; of percentages they are in points.",
            markdown(comparison.table_at_equal_diversity(results.at_equal_diversity))
            if results.at_equal_diversity
            else _without_diversity(settings.num_samples),
            *_told_of_long_lines(comparison.curves_of_temperatures(results.values), results.at_equal_diversity),
            f"## Minus {baseline}, at the same {_what_differs(results)}",
            "Paired by prompt; differences of percentages are in points.",
            markdown(comparison.table(results.differences, shown, difference=True)),
        ]
    parts += _told_of_frontier(results)
    if results.findings is not None:
        parts.append(results.findings.markdown())
    parts += _side_by_side(results.lines)
    return "\n\n".join(parts)


def _without_diversity(num_samples: int) -> str:
    if num_samples < 2:
        return "Diversity is that of several samples of a prompt: set `num_samples` to two or more."
    return "The models' temperatures have no common diversity to compare at: add temperatures."


def _what_differs(results) -> str:
    return "sampler" if results.has_frontier else "temperature"


def _told_of_frontier(results) -> list[str]:
    """What the best sampler of each model gives at each diversity; nothing where all are temperatures alone."""
    if not results.has_frontier:
        return []
    baseline, *others = results.models
    text = (
        "Samplers that cut off the same and differ in temperature are a family, a curve over self-BLEU from greedy "
        "decoding on. The frontier is the best family at each self-BLEU, chosen on one half of the prompts and judged "
        "on the other, and the other way round; intervals hold the choice. The area is what it dominates: at each "
        "diversity (100 - self-BLEU) from 0 to 100 the best that is had there or at a higher one, in the mean. Beam "
        "search has no diversity, and is in the table alone."
    )
    parts = [f"## The frontier{f', minus {baseline}' if others else ''}", text]
    if not results.frontier_areas:
        return [
            *parts,
            "There is none: each family needs two temperatures, or greedy decoding (`t=0`), with two samples per "
            "prompt, and there must be a metric of the task and eight prompts or more.",
        ]
    parts.append(markdown(comparison.table_of_areas(results.frontier_areas)))
    if results.at_frontier:
        parts.append(markdown(comparison.table_at_equal_diversity(results.at_frontier)))
        curves = {model: together(families(results.values, model)) for model in results.paths}
        parts += _told_of_long_lines(curves, results.at_frontier)
    return parts


def _told_of_long_lines(curves: Mapping[str, Curve], at: Sequence[comparison.AtDiversity]) -> list[str]:
    """Which numbers of a table at equal diversity no sampler holds up."""
    told = long_lines(curves, {one.self_bleu for one in at})
    if not told:
        return []
    return [
        f"Some numbers lie on a long line, with no sampler near: {'; '.join(told)}. A line may lie above what a "
        "sampler between its ends would give: add one before you rely on them."
    ]


def _explained(shown: Iterable[str], results) -> str:
    """What the metrics of a table are; those of a user's own task, if it says so."""
    keys = ["pass@" if name.startswith("pass@") else name for name in shown]
    explained = {**_EXPLAINED, **task_of(results.settings.task).explained}
    sentences = [explained[key].replace("{tokenizer}", results.tokenizer) for key in keys if key in explained]
    return "; ".join(sentences) + "." if sentences else ""


def _told_of_their_diversity(results) -> list[str]:
    """How alike a prompt's references are, as models are asked to be more diverse than their data without noticing."""
    if results.of_references is None:
        return []
    interval, prompts = results.of_references
    count = results.settings.num_samples
    return [
        f"Of {counted(prompts, 'prompt')} with so many, {count} references have a `self_bleu` of "
        f"{comparison.shown('self_bleu', interval, True)}: below it a model is asked for more diversity than the "
        "data have."
    ]


def _of_intervals(results) -> str:
    if results.prompts == 1:
        return "Means over the samples of one prompt, which gives no interval: other prompts may change every number."
    narrow = ", which are too narrow with so few" if results.prompts < _FEW else ""
    told = (
        f"Means over prompts, with 95 % bootstrap intervals over prompts{narrow}. They say how much other prompts "
        "would change the numbers, and not how much training the same models anew would. Of twenty differences one "
        "leaves out 0 by chance."
    )
    shares = [one for result in results.summaries for name, one in result.metrics.items() if name in _SHARES]
    if any(one.low == one.high for one in shares):
        told += (
            " A share without a width is of prompts that are all alike, and bounds nothing: the true one may well be "
            f"{min(300 / results.prompts, 100):.0f} points away (three over the number of prompts)."
        )
    return told


def _of_references(results) -> list[str]:
    """The losses of the references, a row per model; nothing where they were not asked for."""
    held_out = {one.model: one.metrics for one in results.summaries if one.model in results.paths}
    losses = [name for name in ("nll", "td_loss") if any(name in one for one in held_out.values())]
    if not losses:
        return []
    units = {"nll": "`nll` in nats", "td_loss": "`td_loss` in squared nats"}
    rows = [["model", "held out", *(f"{loss} per token" for loss in losses)]]
    for name, one in held_out.items():
        rows.append([name, "references", *(comparison.shown(loss, one[loss], True) for loss in losses)])
    return [f"Of the references, {' and '.join(units[loss] for loss in losses)}:", markdown(rows)]


def _side_by_side(lines: Sequence[dict]) -> list[str]:
    """The first prompts, and below each what every model said first, by its first sampler and seed."""
    first: dict[str, list[dict]] = {}
    for line in lines:
        of_model = first.setdefault(line["model"], [])
        if not of_model or (sampler_of(line), line["seed"]) == (sampler_of(of_model[0]), of_model[0]["seed"]):
            of_model.append(line)
    columns = [f"{model} ({decoding(sampler_of(ones[0]))})" for model, ones in first.items()]
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
    text = re.sub(r"[&<>\\`*_\[\]|~#$]", lambda mark: f"&#{ord(mark[0])};", shortened(said))
    return "<br>".join(text.splitlines()) or "(nothing)"


def _told_of_what(results) -> str:
    """Which data and which models, as a report is read long after its command is forgotten."""
    settings = results.settings
    task = task_of(settings.task)
    of_task = task.dataset_name or ("generated" if task.generated else "given")
    data = ["Data: rows that were given" if results.rows_given else f"Data: `{settings.dataset_name or of_task}`"]
    named = {"task": settings.task, "from": settings.source_column, "to": settings.target_column}
    data += [f"{what} `{value}`" for what, value in named.items() if value]
    models = {name: path for name, path in results.paths.items() if path}
    if settings.reward_model_path:
        models["reward model"] = settings.reward_model_path
    listed = "; ".join(f"{name}: `{path}`" for name, path in models.items())
    return f"{', '.join(data)}.{f' Models: {listed}.' if listed else ''}"


def _told_of_given(settings: EvaluationSettings) -> list[str]:
    if not settings.completion_columns:
        return []
    return [
        f"`{GIVEN}` are the completions that the data has in {', '.join(settings.completion_columns)}: nothing is "
        "known of how they were sampled. Their `length` is in tokens of the first model that is named, or in words "
        "where there is none."
    ]


def _told_of_judge(reward_model_path: str | None) -> list[str]:
    if reward_model_path is None:
        return []
    return [
        f"`reward` is the reward model's, `{reward_model_path}`; `win_rate` is how often it gives a completion more "
        "than the prompt's own reference, a tie counting half."
    ]
