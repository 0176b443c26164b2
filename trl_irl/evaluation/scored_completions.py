"""What `score` reads and writes: the completions of a file, and what a reward says of each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..tasks.columns import as_prompt_completion, row_with_columns
from ..tasks.data import TaskData
from ..tasks.rows import BadRows, Given, given_completions
from ..text.messages import as_messages, is_messages, written


if TYPE_CHECKING:
    from datasets import Dataset


_CHUNK = 256  # completions between two saves
_COMPLETIONS = ("completion", "completions", "chosen", "rejected")


@dataclass(frozen=True)
class ToScore:
    """
    Attributes:
        number (`int`): the row's in the split.
        row (`dict`): with `prompt`, as [`~tasks.task.as_prompt_completion`] has it.
        given ([`~tasks.rows.Given`])
    """

    number: int
    row: dict
    given: Given

    @property
    def whole(self) -> dict:
        """The row as [`~text.encode.encode_row`] reads it."""
        return {**self.row, "completion": self.given.text}

    @property
    def ended(self) -> bool:
        return not self.given.cut


def completions_of(
    row: dict, data: TaskData, columns: Sequence[str], number: int, where: str, all_cut: bool
) -> list[ToScore]:
    """
    A row's completions, each with its prompt; both sides of a preference pair, whose prompt may be in them.

    Raises:
        `ValueError`: there is no prompt or no completion, or what stands there is none.
    """
    row = row_with_columns(row, data, where)
    asked = {key: value for key, value in row.items() if key not in _COMPLETIONS}
    row = {**row, **as_prompt_completion(asked, where, reference=False)}
    return [ToScore(number, row, given) for given in given_completions(row, columns, where, all_cut)]


def read(arguments, split: Dataset, bad: BadRows, check: Callable[[list[ToScore]], None]) -> list[ToScore]:
    """
    All completions of a split that can be scored; `check` raises `ValueError` where those of a row cannot.

    Raises:
        `ValueError`: a row cannot be read, see [`~tasks.rows.BadRows`].
    """
    data, completions = arguments.task_data(needs_target=False), []
    for i, row in enumerate(split):
        with bad.reading(i):
            where = f"Row {i} of `{arguments.split}`"
            of_row = completions_of(row, data, arguments.completion_columns or (), i, where, arguments.cut)
            check(of_row)
            completions += of_row
    return completions


def score_all(decisive: dict, rows: list[ToScore], parts: Path, reward: Callable) -> list[dict]:
    """
    Every completion with its numbers; those of finished chunks are read from `parts`, the others written there.

    Args:
        decisive (`dict`):
            All that decides the numbers beside the rows.
        rows (`list[ToScore]`), parts (`Path`)
        reward (`Callable`):
            Without arguments, the function that gives a number of rows their numbers: a `dict` each.
    """
    from tqdm.auto import tqdm

    of_rows, lines = cache(reward), []
    for start in tqdm(range(0, len(rows), _CHUNK), desc="Scoring", unit=f"{_CHUNK} rows", leave=False, disable=None):
        chunk = rows[start : start + _CHUNK]
        part = parts / f"{start}-{_digest(decisive, chunk)}.json"
        if not part.is_file():
            scored = [_line(one) | numbers for one, numbers in zip(chunk, of_rows()(chunk), strict=True)]
            unfinished = part.with_suffix(".part")
            unfinished.write_text(json.dumps(scored), encoding="utf-8")
            os.replace(unfinished, part)
        lines += json.loads(part.read_text(encoding="utf-8"))
    return lines


def _line(one: ToScore) -> dict:
    given = one.given
    origin = {"row": one.number, "source": given.source, "number": given.number, "cut": given.cut}
    return {**origin, "prompt": written(one.row["prompt"]), "completion": given.text}


def _digest(decisive: dict, chunk: list[ToScore]) -> str:
    from ..text.encode import asked

    rows = [
        [asked(one.row), getattr(one.given.text, "messages", one.given.text), one.number, one.given.source]
        + [one.given.number, one.given.cut]
        for one in chunk
    ]
    return hashlib.sha256(json.dumps({**decisive, "rows": rows}, sort_keys=True).encode()).hexdigest()[:16]


def with_other_columns(scored: list[dict], split: Dataset) -> tuple[Dataset, list[str]]:
    """
    The scored completions beside the columns of the rows that they are from. A column whose name is one of ours is
    kept as `input_...`, unless it is the very prompt or completion.

    Returns:
        `tuple[Dataset, list[str]]`: the table, and the columns that were renamed.
    """
    from datasets import Dataset, concatenate_datasets

    table = Dataset.from_list(scored)
    others = split.select([line["row"] for line in scored])
    own = [name for name in ("prompt", "completion") if name in others.column_names]
    others = others.remove_columns(
        [name for name in own if all(map(_is_same, others[name], (line[name] for line in scored)))]
    )
    renamed = [name for name in others.column_names if name in table.column_names]
    for name in renamed:
        new = f"input_{name}"
        while new in (*others.column_names, *table.column_names):  # of a file that was scored before
            new = f"input_{new}"
        others = others.rename_column(name, new)
    return concatenate_datasets([table, others], axis=1) if others.column_names else table, renamed


def _is_same(value, told: str) -> bool:
    """Whether a cell of the data, text or messages, is what a line tells."""
    return (
        value is not None
        and told in (value, written(value))
        or (is_messages(value) and told == written(as_messages(value)))
    )


def summary(scored: list[dict], of: str) -> list[str]:
    """
    What a terminal is told: how many completions, their mean, of each column where there are several, and of
    preference pairs how often the chosen one gets more.
    """
    by_source: dict[str, list[float]] = {}
    known = [line for line in scored if line[of] is not None]
    for line in known:
        by_source.setdefault(line["source"], []).append(line[of])
    name = {"sum": "return"}.get(of, of)
    mean = f"{sum(line[of] for line in known) / len(known):+.3f}" if known else "not known"
    cut = sum(line["cut"] for line in scored)
    lines = [f"{len(scored)} completions{f' ({cut} of them cut)' if cut else ''}, mean {name} {mean}"]
    if len(known) < len(scored):
        lines.append(f"  of {len(scored) - len(known)} no token has a known {name}: they are in none of these numbers")
    if len(by_source) > 1:
        lines += [f"  {source}: {len(x)}, mean {sum(x) / len(x):+.3f}" for source, x in by_source.items()]
    if set(by_source) == {"chosen", "rejected"}:
        chosen, rejected = (
            {line["row"]: line[of] for line in known if line["source"] == side} for side in ("chosen", "rejected")
        )
        right = [(x > rejected[row]) + 0.5 * (x == rejected[row]) for row, x in chosen.items() if row in rejected]
        if right:
            lines.append(
                f"  chosen above rejected in {sum(right) / len(right):.1%} of {len(right)} pairs (a tie is half)"
            )
    return lines
