"""Rows of users' files one by one: those that cannot be read, and the completions that are given in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..text.messages import checked, is_messages
from .columns import NoSuchColumn, format_row, nested, one_text
from .data import TaskData


ON_BAD_ROW = ("stop", "skip")
_NAMED = 5  # rows that are named one by one

# What says in a row, or in one of its completions, whether a completion was cut at a limit.
_SAYS_ENDED, _SAYS_CUT = "ended", "cut"
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}  # CSV has text


@dataclass
class BadRows:
    """
    What becomes of rows that cannot be read or do not fit: the first one stops the command, or all are left out,
    counted and named.

    Args:
        on_bad_row (`str`):
            Among [`ON_BAD_ROW`].
        of (`str`):
            What the rows are of, for messages, such as "`test`".
    """

    on_bad_row: str
    of: str
    left_out: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def reading(self, number: int) -> Iterator[None]:
        """
        Around all that may go wrong with row `number`.

        Raises:
            `ValueError`: as raised inside, with the way out, unless such rows are skipped.
        """
        try:
            yield
        except ValueError as error:
            if self.on_bad_row != "skip":
                if isinstance(error, NoSuchColumn) and number == 0:  # then all rows of a file lack it
                    raise
                raise ValueError(f"{error} Or leave such rows out: `on_bad_row: skip`.") from error
            self.left_out[number] = str(error)

    def tell(self, total: int) -> str | None:
        """
        A sentence on the rows that were left out of `total`, or `None`.

        Raises:
            `ValueError`: there is no other row.
        """
        if not self.left_out:
            return None
        first = next(iter(self.left_out.values()))
        if len(self.left_out) == total:
            raise ValueError(f"Not one of the {total} rows of {self.of} can be used. The first: {first}")
        named = ", ".join(map(str, sorted(self.left_out)[:_NAMED]))
        more = ", ..." if len(self.left_out) > _NAMED else ""
        return (
            f"{len(self.left_out)} of {total} rows of {self.of} are left out (`on_bad_row: skip`): {named}{more}. The "
            f"first: {first}"
        )


@dataclass(frozen=True)
class Given:
    """
    A completion that a file gives.

    Attributes:
        text (`str`): as [`~tasks.task.as_prompt_completion`] has it.
        source (`str`): the column that it is in.
        number (`int`): which of that column's, from 0.
        cut (`bool`): whether it was cut, and did not end by itself.
    """

    text: str
    source: str
    number: int
    cut: bool


def given_completions(
    row: Mapping, columns: Sequence[str] = (), where: str = "A row", all_cut: bool = False
) -> list[Given]:
    """
    The completions of a row.

    Args:
        row (`Mapping`)
        columns (`Sequence[str]`, *optional*):
            Where they are; a dot reaches into a nested column. If none is named, `completions`, or `chosen` and
            `rejected`, or `completion`, whichever is there first. Each holds a completion (text, messages, or a
            mapping with one in `text`) or a list of them.
        where (`str`, *optional*):
            Which row, for the message of an error.
        all_cut (`bool`, *optional*, defaults to `False`):
            Whether all were cut. Otherwise `cut: true`, `ended: false` or `finish_reason: length` says so, beside the
            text or, as one value or a list, in the row.

    Raises:
        `ValueError`: there is none, or something that is no completion.
    """
    if not columns:
        known = (("completions",), ("chosen", "rejected"), ("completion",))
        columns = next((names for names in known if set(names) <= row.keys()), ())
    if not columns:
        raise NoSuchColumn(
            f"{where} has no completion: its columns are {', '.join(row)}. Name those that hold some with "
            "`completion_columns`, or sample some with `trl-irl evaluate`."
        )
    given = []
    for column in columns:
        try:
            value = row[column] if column in row else nested(row, column)
        except ValueError as error:
            raise type(error)(f"{where}: {error}") from error
        several = isinstance(value, Sequence) and not isinstance(value, str) and not is_messages(value)
        values = list(value) if several else [value]
        if not values:
            raise ValueError(f"{where} has an empty list as its `{column}`: there is nothing to judge.")
        for number, one in enumerate(values):
            at = f"{where}, number {number} of its {len(values)}," if several else where
            cut = all_cut or _is_cut(row, number, len(values), where)
            if isinstance(one, Mapping) and "text" in one:
                cut, one = cut or _is_cut(one, 0, 1, at), one["text"]
            given.append(Given(one_text(checked(one, column, at)), column, number, cut))
    return given


def _is_cut(source: Mapping, number: int, count: int, where: str) -> bool:
    for key, sign in ((_SAYS_CUT, True), (_SAYS_ENDED, False)):
        value = _of(source.get(key), key, number, count, where)
        if value is None:
            continue
        truth = _TRUTH.get(str(value).lower())
        if truth is None:
            raise ValueError(
                f"{where} has {value!r} as its `{key}`, which says whether a completion was cut: it must be true or "
                "false. Give a column of another kind another name."
            )
        if truth is sign:
            return True
    return _of(source.get("finish_reason"), "finish_reason", number, count, where) == "length"


def _of(value, key: str, number: int, count: int, where: str):
    if not isinstance(value, list):
        return value
    if len(value) != count:
        raise ValueError(f"{where} has {count} completions and {len(value)} values as its `{key}`.")
    return value[number]


def readable(split: Iterable[dict], data: TaskData, bad: BadRows, reference: bool = True) -> dict[int, dict]:
    """
    By number, the rows of a split that can be read, with `prompt` and, where `reference` or the data has them,
    `completion`.

    Raises:
        `ValueError`: one cannot be read; see [`BadRows`].
    """
    rows = {}
    for i, row in enumerate(split):
        with bad.reading(i):
            rows[i] = format_row(row, data, f"Row {i} of {bad.of}", reference)
    return rows
