"""The rows that an evaluation asks and judges: which of them can be, by what, and completions that a file gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..tasks.columns import references_of
from ..tasks.final_answer import final_answer, is_correct, reference_answer
from ..tasks.rows import BadRows, Given, given_completions, readable
from ..tasks.scoring import has_own_score
from .comparison import AS_GIVEN, of_sampler
from .loaded_models import LoadedModel, check_lengths
from .metrics import self_bleu
from .sample_cache import said_of
from .settings import EvaluationSettings
from .statistics import Interval, mean_of


# Metrics that compare with a row's own completion, or are of it.
OF_REFERENCES = ("accuracy", "accuracy_math", "rouge", "bleu", "chrf", "nll", "td_loss")


def rows_to_judge(
    split: Iterable[dict],
    settings: EvaluationSettings,
    models: Mapping[str, LoadedModel],
    judges: Mapping[str, LoadedModel],
) -> tuple[list[dict], list[list[Given]], list[str], list[str]]:
    """
    The rows that fit into the context of every model, and of every judge that reads completions, with `prompt` and, if
    the data has them, `completion`.

    Returns:
        `tuple[list[dict], list[list[Given]], list[str], list[str]]`: rows; of each the completions that
        `completion_columns` names, none if it is not set; the metrics, without those that need references where there
        are none; and notes for the report on what was left out.

    Raises:
        `ValueError`: a row cannot be read or does not fit, or there is nothing to judge by.
    """
    bad = BadRows(settings.on_bad_row, f"`{settings.split}`")
    judged = settings.reward_model_path is not None or has_own_score(settings.task)
    rows = readable(split, settings.task_data(needs_target=False), bad, reference=not judged)
    total, notes, metrics = len(rows) + len(bad.left_out), [], list(settings.metrics)
    with_reference = [i for i, row in rows.items() if "completion" in row]
    if with_reference:
        for i in rows.keys() - set(with_reference):
            with bad.reading(i):
                raise ValueError(f"Row {i} of {bad.of} has no reference (`completion`), and others have one.")
    elif rows:
        metrics = _without_references(settings)
        notes.append("The rows have no references: they are judged by your own function or the reward model alone.")
    of_references = bool({"nll", "td_loss"} & set(metrics))
    for name, model in models.items():
        check_lengths(name, model, rows, settings.max_new_tokens, of_references, bad)
    for name, judge in judges.items():
        others = [model for model in models.values() if model is not judge]  # what they say it has to read too
        longest = settings.max_new_tokens if others else 0
        check_lengths(name, judge, rows, longest, bool(with_reference) and settings.reward_analysis, bad)
    given = _given(settings.completion_columns or (), rows, bad)
    left_out = bad.tell(total)
    kept = [i for i in rows if i not in bad.left_out]
    notes += [left_out] if left_out else []
    if repeated := len(kept) - len({repr(rows[i]["prompt"]) for i in kept}):
        notes.append(
            f"{repeated} of {len(kept)} rows have the same prompt as another row. Intervals are over rows, and so "
            "too narrow: give each prompt one row, with its several answers as a list in `references`."
        )
    return [rows[i] for i in kept], [given.get(i, []) for i in kept], metrics, notes


def diversity_of_references(rows: Sequence[dict], count: int, tokenizer: str) -> tuple[Interval, int] | None:
    """
    How alike a prompt's own references are: the self-BLEU of the first `count` of each prompt that has so many, as of
    so many samples, in the mean over those prompts and with their number; `None` where there are none or fewer than 2
    are compared.
    """
    texts = [references_of(row) for row in rows if "completion" in row]
    enough = [of_row[:count] for of_row in texts if len(of_row) >= count]
    if count < 2 or not enough:
        return None
    return mean_of([self_bleu(of_row, tokenizer) for of_row in enough]).interval(), len(enough)


def _without_references(settings: EvaluationSettings) -> list[str]:
    needing = [name for name in settings.metrics if name in OF_REFERENCES]
    if needing and not settings.metrics_are_defaults:
        raise ValueError(
            f"`metrics: {needing[0]}` compares with references, and the rows have none (no `completion`). Name their "
            "column with `target_column`, or leave that metric out."
        )
    return [name for name in settings.metrics if name not in needing]


def _given(columns: Sequence[str], rows: Mapping[int, dict], bad: BadRows) -> dict[int, list[Given]]:
    """By number, the completions in these columns; as many of each row."""
    by_row: dict[int, list[Given]] = {}
    for i, row in rows.items() if columns else ():
        where = f"Row {i} of {bad.of}"
        with bad.reading(i):
            of_row = given_completions(row, columns, where)
            wanted = len(next(iter(by_row.values()), of_row))
            if len(of_row) != wanted:
                raise ValueError(
                    f"{where} has {len(of_row)} completions, and the rows before it {wanted}: prompts are compared "
                    "with equally many of each."
                )
            by_row[i] = of_row
    return by_row


def given_lines(name: str, rows: Sequence[dict], given: Sequence[Sequence[Given]], length: Callable) -> list[dict]:
    """
    Each row's given completions as [`~evaluation.sample_cache.load_or_sample`] has sampled ones, without `token_ids`:
    no model of ours has said them. `length` counts the tokens of a text, given whether it ended by itself.
    """
    of_cell = {"model": name, **of_sampler(AS_GIVEN), "seed": 0}
    return [
        {
            **of_cell,
            **said_of(row),
            "completions": [
                {
                    "text": str(one.text),
                    "token_ids": None,
                    "length": length(one.text, not one.cut),
                    "ended": not one.cut,
                }
                for one in of_row
            ],
        }
        for row, of_row in zip(rows, given, strict=True)
    ]


def length_by(models: Iterable[LoadedModel]) -> Callable[[str, bool], int]:
    """
    Counts tokens of the first of these models, with the stop token of a text that ended, as sampled ones have it; or
    words where there is no model.
    """
    tokenizer = next((model.tokenizer for model in models), None)
    if tokenizer is None:
        return lambda text, ended: len(text.split())
    return lambda text, ended: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + ended


def unanswered(rows: Sequence[dict], metrics: Sequence[str], marker: str | None = None) -> list[str]:
    """
    Notes on the references that `accuracy` cannot compare with and on those it takes whole, if there are any.

    Raises:
        `ValueError`: it can compare with none of them.
    """
    if "accuracy" not in metrics:
        return []
    answers = [(reference_answer(row["completion"], marker), final_answer(row["completion"], marker)) for row in rows]
    without = sum(answer is None for answer, _ in answers)
    whole = sum(answer is not None and marked is None for answer, marked in answers)
    mark = "`####`" if marker is None else f"`####` or `{marker}`"
    notes = []
    if without == len(rows):
        try:
            is_correct("", rows[0], marker)
        except ValueError as error:
            raise ValueError(f"{without} of {len(rows)} references have no final answer. The first: {error}") from None
    if without:
        notes.append(
            f"{without} of {len(rows)} references have no final answer (after {mark}, or as a whole), and the "
            " task's means leave those prompts out."
        )
    if whole:
        notes.append(f"{whole} of {len(rows)} references have no {mark}; `accuracy` takes the whole of them.")
    return notes
