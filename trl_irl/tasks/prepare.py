"""Rows made ready for training: over-long prompts cut at a boundary, lengths in tokens measured and checked."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from pyarrow import ArrowInvalid, ArrowTypeError
from tqdm.auto import tqdm


def as_dataset(rows: Sequence[dict], of: str) -> Dataset:
    """
    Rows as a dataset, which a Parquet file can hold: each column of one kind.

    Raises:
        `ValueError`: a column is of several kinds, such as text here and messages there; `of` says what the rows are
            of.
    """
    try:
        return Dataset.from_list(list(rows))
    except (ArrowInvalid, ArrowTypeError) as error:
        kinds: dict[str, dict[str, int]] = {}
        for i, row in enumerate(rows):
            for key, value in row.items():
                if value is not None:
                    kinds.setdefault(key, {}).setdefault(type(value).__name__, i)
        mixed = next(((key, found) for key, found in kinds.items() if len(found) > 1), None)
        if mixed is None:
            raise ValueError(f"The rows of {of} cannot be saved as a table: {error}") from error
        told = " and ".join(f"{kind} in row {i}" for kind, i in mixed[1].items())
        raise ValueError(
            f"The rows of {of} cannot be saved as a table, since `{mixed[0]}` is {told}. Make all of one kind, or "
            "prepare them apart."
        ) from error


def cut_at_boundary(text: str, boundary: str, fits: Callable[[str], bool]) -> str:
    """
    The longest start of `text` that fits and ends before a `boundary`; if none does, before a word; else before a
    character.

    Args:
        text (`str`)
        boundary (`str`):
            Such as a newline; what stands before one stays whole.
        fits (`Callable[[str], bool]`):
            Whether a start of the text is short enough. Shorter ones fit wherever a longer one does.

    Returns:
        `str`: `text` itself if it fits; empty if nothing does.
    """
    if fits(text):
        return text
    ends = [i for i in range(len(text)) if text.startswith(boundary, i)] if boundary else []
    words = [i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace()]
    for starts in (ends, words, list(range(len(text)))):
        # The first end that is too long is where the ones that fit stop.
        kept = bisect.bisect_left(starts, True, key=lambda end: not fits(text[:end]))
        while kept and not fits(text[: starts[kept - 1]]):
            kept -= 1  # tokens join and split: a shorter text has now and then one more
        if kept and starts[kept - 1]:
            return text[: starts[kept - 1]]
    return ""


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
    pairs = [encode(i, row) for i, row in enumerate(tqdm(rows, desc="Counting tokens", leave=False))]
    prompts = [sum(label == -100 for label in labels) for _, labels in pairs]
    totals = [len(ids) for ids, _ in pairs]
    return Lengths(np.array(prompts, dtype=np.int64), np.subtract(totals, prompts, dtype=np.int64))
