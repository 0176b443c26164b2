"""Rows made ready for training: over-long prompts cut at a boundary, lengths in tokens measured and checked."""

import bisect
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from pyarrow import ArrowInvalid, ArrowNotImplementedError, ArrowTypeError
from tqdm.auto import tqdm

from ..text.messages import last_text
from .columns import as_chat, as_prompt_completion, nested, prompt_from_columns, with_nested
from .data import TaskData


def as_dataset(rows: Sequence[dict], of: str) -> Dataset:
    """
    Rows as a dataset, which a Parquet file can hold: each column of one kind, and every column of every row. Objects
    within it, such as the arguments of tools, keep the keys that they have.

    Raises:
        `ValueError`: a column is of several kinds, such as text here and messages there; `of` says what the rows are
            of.
    """
    kinds: dict[str, dict[str, int]] = {}
    for i, row in enumerate(rows):
        for key, value in row.items():
            of_column = kinds.setdefault(key, {})
            if value is not None:
                of_column.setdefault("number" if type(value) in (int, float) else type(value).__name__, i)
    mixed = next(((key, rows_of_kind) for key, rows_of_kind in kinds.items() if len(rows_of_kind) > 1), None)
    if mixed is not None:
        listed = " and ".join(f"{kind} in row {i}" for kind, i in mixed[1].items())
        raise ValueError(
            f"The rows of {of} cannot be saved as a table, since `{mixed[0]}` is {listed}. Make all of one kind, or "
            "prepare them apart."
        )
    try:
        return Dataset.from_list([{key: row.get(key) for key in kinds} for row in rows], on_mixed_types="use_json")
    except (ArrowInvalid, ArrowTypeError, ArrowNotImplementedError, OverflowError) as error:
        raise ValueError(f"The rows of {of} cannot be saved as a table: {error}") from error


def cut_at_boundary(
    text: str, boundary: str, over: Callable[[str], int], near: int | None = None, per_token: float = 4.0
) -> str:
    """
    The longest start of `text` that fits and ends before a `boundary`; if none does, before a word; else before a
    character.

    Args:
        text (`str`)
        boundary (`str`):
            Such as a newline; what stands before one stays whole.
        over (`Callable[[str], int]`):
            How many tokens a start of the text is too long; 0 or less fits. Shorter ones fit wherever a longer one
            does.
        near (`int`, *optional*):
            About how many characters fit. Only the time that it takes depends on it: counting tokens is all of that,
            and of a long document the few hundred that are near the limit are enough.
        per_token (`float`, *optional*, defaults to `4.0`):
            About how many characters a token has, for the second guess.

    Returns:
        `str`: `text` itself if it fits; empty if nothing does.
    """
    known: dict[int, int] = {}

    def over_at(end: int) -> int:
        if end not in known:
            known[end] = over(text[:end])
        return known[end]

    def fits(end: int) -> bool:
        return over_at(end) <= 0

    if near is None or near >= 0.9 * len(text):
        if fits(len(text)):
            return text
        near = round(len(text) - over_at(len(text)) * per_token)
    elif near > 0:
        near -= round(over_at(near) * per_token)
    ends = [match.start() for match in re.finditer(re.escape(boundary), text)] if boundary else []
    words = [match.start() for match in re.finditer(r"(?<=\S)(?=\s)", text)]
    for starts in (ends, words, range(len(text))):
        kept = _count_that_fit(starts, fits, near)
        if kept == len(starts) and fits(len(text)):
            return text
        while kept and not fits(starts[kept - 1]):
            kept -= 1  # tokens join and split: a shorter text has now and then one more
        if kept and starts[kept - 1]:
            return text[: starts[kept - 1]]
    return ""


def _count_that_fit(starts: Sequence[int], fits: Callable[[int], bool], near: int) -> int:
    """How many of the first starts fit: steps that double, away from the one near the guess, then by halves."""
    low, high, step = 0, len(starts), 1  # it is in [low, high]
    at = min(bisect.bisect_left(starts, near), high - 1)
    if high and fits(starts[at]):
        low = at + 1
        while low < high:
            at = min(low + step - 1, high - 1)
            if not fits(starts[at]):
                high = at
                break
            low, step = at + 1, 2 * step
    elif high:
        high = at
        while low < high:
            at = max(high - step, low)
            if fits(starts[at]):
                low = at + 1
                break
            high, step = at, 2 * step
    return low + bisect.bisect_left(starts[low:high], True, key=lambda end: not fits(end))


def split_closing_line(prompt: str) -> tuple[str, str]:
    """A prompt and what follows its last blank line, such as `TL;DR:` or `SOLUTION:`, which asks for the answer."""
    body, blank, closing = prompt.rpartition("\n\n")
    return (body, blank + closing) if blank and len(closing) <= 40 else (prompt, "")


@dataclass(frozen=True)
class Lengths:
    """
    Tokens of a split's rows.

    Attributes:
        prompt (`np.ndarray` of shape `(rows,)`, int64)
        completion (`np.ndarray` of shape `(rows,)`, int64): EOS included.
    """

    prompt: np.ndarray
    completion: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.prompt + self.completion

    def too_long(self, limits: dict[str, int | None]) -> dict[str, list[int]]:
        """For each of `prompt`, `completion` and `total` that has a limit, the rows above it."""
        return {
            part: np.flatnonzero(getattr(self, part) > limit).tolist()
            for part, limit in limits.items()
            if limit is not None
        }

    def distribution(self, limits: dict[str, int | None]) -> list[list[str]]:
        """Rows of a table, without header: part, mean, quantiles, the longest, the limit and how many are above it."""
        above = self.too_long(limits)
        return [
            [
                part,
                f"{lengths.mean():.1f}",
                *(f"{q:.0f}" for q in np.quantile(lengths, [0.5, 0.9, 0.99])),
                str(lengths.max()),
                str(limits.get(part) or ""),
                str(len(above[part])) if part in above else "",
            ]
            for part, lengths in (("prompt", self.prompt), ("completion", self.completion), ("total", self.total))
        ]


DISTRIBUTION_HEADER = ("split", "part", "mean", "median", "90 %", "99 %", "longest", "limit", "above")


def measure(rows: Sequence[dict], encode: Callable[[int, dict], tuple[list[int], list[int]]]) -> Lengths:
    """
    Lengths of rows in tokens.

    Args:
        rows (`Sequence[dict]`)
        encode (`Callable`):
            From a row's number and the row to its token ids and its labels, -100 on the prompt.
    """
    pairs = [encode(i, row) for i, row in enumerate(tqdm(rows, desc="Counting tokens", leave=False, disable=None))]
    prompts = [sum(label == -100 for label in labels) for _, labels in pairs]
    totals = [len(ids) for ids, _ in pairs]
    return Lengths(np.array(prompts, dtype=np.int64), np.subtract(totals, prompts, dtype=np.int64))


@dataclass
class Pace:
    """Characters per token of the prompts so far, from which the place to cut the next one is guessed."""

    per_token: float = 4.0


def shorten(
    row: dict,
    data: TaskData,
    column: str,
    boundary: str,
    limits: Mapping[str, int | None],
    lengths: Callable[[dict], tuple[int, int]],
    pace: Pace,
) -> dict:
    """
    The row with its prompt cut at a boundary, if it is too long; as it is, if no text of the column would be left.

    Args:
        row (`dict`)
        data ([`~tasks.data.TaskData`]):
            How prompts are made of columns.
        column (`str`):
            What to cut: `prompt`, whose closing line stays, or a column that it is made from.
        boundary (`str`):
            See [`cut_at_boundary`].
        limits (`Mapping[str, int | None]`):
            Of `prompt` and of `total`, in tokens; `None` is none.
        lengths (`Callable`):
            From a row to the tokens of its prompt and, where there is a limit for both, of prompt and completion.
        pace ([`Pace`]): of the rows before, brought up to date.

    Raises:
        `ValueError`: the column is not there, or is no text.
    """
    value = row.get("prompt") if column == "prompt" else nested(row, column)
    if not isinstance(value, str):
        raise ValueError(
            f"`truncate_field: {column}` is not a text column of the dataset, whose columns are {', '.join(row)}."
        )
    body, closing = split_closing_line(value) if column == "prompt" else (value, "")

    def with_field(text: str) -> dict:
        if column == "prompt":
            return {**row, "prompt": text + closing}
        changed = with_nested(row, column, text)
        made = {"prompt": prompt_from_columns(changed, data)}
        return {**changed, **(as_chat(made) if data.chat_format else made)}

    def characters(changed: dict) -> int:
        return len(last_text(changed["prompt"]))

    def over(text: str) -> int:
        changed = with_field(text)
        prompt, total = lengths(changed)
        if prompt:
            pace.per_token = max(characters(changed) / prompt, 0.1)
        return max(prompt - (limits["prompt"] or prompt), total - (limits["total"] or total))

    tokens = min(limit for limit in (limits["prompt"], limits["total"]) if limit)
    near = max(round(tokens * pace.per_token) - characters(with_field("")), 1)
    cut = cut_at_boundary(body, boundary, over, near, pace.per_token)
    if cut == body or not cut.strip():  # nothing of it would be left: a row that is too long
        return row
    return with_field(cut.rstrip() if column == "prompt" else cut)


def check_filled(rows: list[dict], split: str) -> None:
    """
    Raises:
        `ValueError`: a row has nothing in one of the columns that are trained on.
    """
    for i, row in enumerate(rows):
        empty = [key for key in ("prompt", "completion", "messages") if key in row and row[key] is None]
        if empty:
            raise ValueError(
                f"Row {i} of `{split}` has nothing (null) in the column `{empty[0]}`. Leave such rows out of the "
                "data, or fill them."
            )


def check_carving(rows: int, fraction: float) -> None:
    """
    Raises:
        `ValueError`: a validation split of this share would leave no row to train on.
    """
    if math.ceil(rows * fraction) >= rows:
        raise ValueError(
            f"`validation_fraction: {fraction}` of {rows} row{'s' * (rows != 1)} leaves none to train on. Set it to "
            "0, or bring more rows."
        )


def carved(rows: Dataset, fraction: float, seed: int) -> dict[str, Dataset]:
    """
    `train` and, of about this share, `validation`: whole prompts, so that what is held out was not trained on with
    another completion; or rows, where all have one prompt.
    """
    prompts = [_prompt_of(row, i) for i, row in enumerate(rows)]
    different = list(dict.fromkeys(prompts))
    if len(different) in (1, len(prompts)):
        split = rows.train_test_split(fraction, seed=seed)
        return {"train": split["train"], "validation": split["test"]}
    left, held_out, counts = math.ceil(len(prompts) * fraction), set(), Counter(prompts)
    for i in np.random.default_rng(seed).permutation(len(different))[:-1]:  # one is left to train on
        if counts[different[i]] <= left:
            held_out.add(different[i])
            left -= counts[different[i]]
    if not held_out:  # each prompt has more rows than are to be held out: the one with the fewest
        held_out.add(min(different, key=counts.__getitem__))
    numbers: dict[str, list[int]] = {"train": [], "validation": []}
    for i, prompt in enumerate(prompts):
        numbers["validation" if prompt in held_out else "train"].append(i)
    return {name: rows.select(of_part) for name, of_part in numbers.items()}


def _prompt_of(row: Mapping, i: int) -> str:
    """What tells whether two rows ask the same; of text without a prompt each row does not."""
    if row.get("prompt") is not None:
        return repr(row["prompt"])
    turns = next((row[key] for key in ("messages", "conversations", "chosen") if row.get(key)), None)
    return repr(turns[:-1]) if isinstance(turns, list) and len(turns) > 1 else f"row {i}"


def with_reference(row: dict, column: str | None) -> dict:
    """
    The row with its completion, as text, in this column too.

    Raises:
        `ValueError`: there is another column of that name.
    """
    if column is None:
        return row
    if column in row:
        raise ValueError(f"`reference_column: {column}` is a column of the dataset already. Name it otherwise.")
    return {**row, column: as_prompt_completion(row)["completion"]}


def save_splits(splits, output_dir: Path) -> None:
    """A Parquet file per split; all are written before the first takes its place."""
    output_dir.mkdir(parents=True, exist_ok=True)
    parts = {name: output_dir / f".{name}.part" for name in splits}
    try:
        for name, split in splits.items():
            split.to_parquet(parts[name])
        for name, part in parts.items():
            os.replace(part, output_dir / f"{name}.parquet")
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
