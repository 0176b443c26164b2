"""The rows that `evaluate` asks and judges: which of them can be, by what, and the completions that a file gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..tasks.rows import BadRows, Given, given_completions
from ..tasks.task import names_function
from .loaded_models import check_lengths
from .task_arguments import load_rows


if TYPE_CHECKING:
    from .evaluate import EvaluateArguments


# What the completions that the data gives are called in a report.
GIVEN = "given"

# Metrics that compare with a row's own completion, or are of it.
OF_REFERENCES = ("accuracy", "accuracy_math", "rouge", "bleu", "chrf", "nll", "td_loss")


def rows_to_judge(arguments: EvaluateArguments) -> tuple[list[dict], list[list[Given]], list[str]]:
    """
    The rows that fit into every model's context, with `prompt` and, if the data has them, `completion`; without, all
    of `arguments.metrics` that need references are dropped.

    Returns:
        `tuple[list[dict], list[list[Given]], list[str]]`: rows; of each the completions that `completion_columns`
        names, none if it is not set; and notes for the report on what was left out.

    Raises:
        `ValueError`: a row cannot be read or does not fit, or there is nothing to judge by.
    """
    bad = BadRows(arguments.on_bad_row, f"`{arguments.split}`")
    judged = arguments.reward_model_path is not None or names_function(arguments.task)
    rows = load_rows(arguments, arguments.num_prompts, bad, reference=not judged)
    total, notes = len(rows) + len(bad.found), []
    with_reference = [i for i, row in rows.items() if "completion" in row]
    if with_reference:
        for i in rows.keys() - set(with_reference):
            with bad.reading(i):
                raise ValueError(f"Row {i} of {bad.of} has no reference (`completion`), and others have one.")
    elif rows:
        notes += _without_references(arguments)
    of_references = bool({"nll", "td_loss"} & set(arguments.metrics))
    for name, path in arguments.named_models().items():
        check_lengths(name, path, rows, arguments.max_new_tokens, of_references, bad, arguments.eos_token)
    for name, path in arguments.judges().items() if arguments.reward_analysis else ():
        check_lengths(name, path, rows, 0, bool(with_reference), bad, arguments.eos_token)
    given = _given(arguments.completion_columns or (), rows, bad)
    left_out = bad.tell(total)
    kept = [i for i in rows if i not in bad.found]
    return [rows[i] for i in kept], [given.get(i, []) for i in kept], notes + ([left_out] if left_out else [])


def _without_references(arguments: EvaluateArguments) -> list[str]:
    needing = [name for name in arguments.metrics if name in OF_REFERENCES]
    if needing and not arguments.metrics_are_defaults:
        raise ValueError(
            f"`metrics: {needing[0]}` compares with references, and the rows have none (no `completion`). Name their "
            "column with `target_column`, or leave that metric out."
        )
    arguments.metrics = [name for name in arguments.metrics if name not in needing]
    return ["The rows have no references: they are judged by your own function or the reward model alone."]


def _given(columns: Sequence[str], rows: Mapping[int, dict], bad: BadRows) -> dict[int, list[Given]]:
    """By number, the completions in these columns; as many of each row."""
    found: dict[int, list[Given]] = {}
    for i, row in rows.items() if columns else ():
        where = f"Row {i} of {bad.of}"
        with bad.reading(i):
            of_row = given_completions(row, columns, where)
            wanted = len(next(iter(found.values()), of_row))
            if len(of_row) != wanted:
                raise ValueError(
                    f"{where} has {len(of_row)} completions, and the rows before it {wanted}: prompts are compared "
                    "with equally many of each."
                )
            found[i] = of_row
    return found


def given_lines(name: str, rows: Sequence[dict], given: Sequence[Sequence[Given]], length: Callable) -> list[dict]:
    """
    Each row's given completions as [`~evaluation.cells.load_or_sample`] has sampled ones, without `token_ids`: no
    model of ours has said them. `length` counts the tokens of a text.
    """
    from ..evaluation import comparison

    told = {"model": name, "temperature": comparison.GIVEN, "seed": 0}
    return [
        {
            **told,
            "prompt": row["prompt"],
            "reference": row.get("completion"),
            "completions": [
                {"text": str(one.text), "token_ids": None, "length": length(one.text), "ended": not one.cut}
                for one in of_row
            ],
        }
        for row, of_row in zip(rows, given, strict=True)
    ]


def length_by(arguments: EvaluateArguments) -> Callable[[str], int]:
    """Counts tokens of the first model that is named, or words where none is."""
    from ..rewards.adapters import tokenizer_of

    paths = [*arguments.named_models().values(), *(arguments.reward_models and arguments.judges().values() or ())]
    if arguments.reward_model_path is not None:
        paths.append(arguments.reward_model_path)
    if not paths:
        return lambda text: len(text.split())
    tokenizer = tokenizer_of(paths[0])
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def show_one(lines: Sequence[dict]) -> None:
    """Print the first prompt and what each model said to it, first at its first temperature: what numbers are of."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print("\nThe first prompt:", style="bold")
    console.print(text_of(lines[0]["prompt"]))
    if lines[0]["reference"] is not None:
        console.print("reference:", style="bold")
        console.print(text_of(lines[0]["reference"]))
    seen: set[str] = set()
    for line in lines:
        if line["model"] not in seen and line["completions"]:
            seen.add(line["model"])
            console.print(f"{line['model']}:", style="bold")
            console.print(text_of(line["completions"][0]["text"]))
    console.print()


def text_of(said: str | list[dict], longest: int = 500) -> str:
    """Text, or the last of some messages, shortened in its middle."""
    text = (said if isinstance(said, str) else str(said[-1]["content"])).strip()
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
