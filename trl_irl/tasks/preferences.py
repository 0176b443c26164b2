"""Preference pairs for a reward model from a task whose answers can be checked, without annotators or a download."""

import random
import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import product

from ..text.encode import as_row, asked
from .final_answer import final_answer, is_correct


_NUMBER = re.compile(r"(?<![\d.,])(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


def corrupted_solution(row: dict, rng: random.Random) -> str | None:
    """
    The row's solution with a slip: one of its numbers is off by a little from some place on, wherever it stands again,
    and so the answer is wrong. Where the slip does not reach the answer, the answer slips too, from the last place on
    where it was found.

    Args:
        row (`dict`):
            `completion` is a solution that ends in `#### 72`.
        rng (`random.Random`)

    Returns:
        `str` or `None`: the solution, or nothing where there is no answer to get wrong.
    """
    solution = row["completion"]
    if final_answer(solution) is None:
        return None
    numbers = list(_NUMBER.finditer(solution))
    if not any(number.start() >= solution.rfind("####") for number in numbers):
        return None  # its answer has digits of another kind, such as ½
    number, answer = rng.choice(numbers), _answer(solution)
    if _value(number) == _value(answer) and number.start() > answer.start():
        number = answer
    changed = _slip(solution, number, rng)
    if is_correct(changed, row):
        changed = _slip(changed, _answer(changed), rng)
    return None if is_correct(changed, row) else changed


def _answer(solution: str) -> re.Match:
    """
    The number of the answer, at the place where it was found: the last behind a `=`, or the last of all. If it slipped
    behind that, say in the last line alone, it would contradict what stands before, and tell the wrong solution by it.
    """
    numbers, last = list(_NUMBER.finditer(solution)), solution.rfind("####")
    answer = next(number for number in numbers if number.start() >= last)
    stands = [number for number in numbers if number.start() < last and _value(number) == _value(answer)]
    found = [number for number in stands if solution[: number.start()].rstrip(" $").endswith("=")]
    return [answer, *stands, *found][-1]


def _value(number: re.Match) -> Decimal:
    return Decimal(number[0].replace(",", ""))


def _slip(solution: str, number: re.Match, rng: random.Random) -> str:
    """Another number from there on, in whatever form it stands again: with commas, with zeros behind its point."""
    value = _value(number)
    # A sign before it stays the only one, and there is no -0, which would give the slip away.
    same = (found for found in _NUMBER.finditer(solution, number.start()) if _value(found) == value)
    least = Decimal(any(solution[: found.start()].endswith("-") for found in same))
    if "." in number[0]:
        by = rng.choice((-1, 1)) * Decimal(rng.randint(1, 9)) / 10
        other = value + (abs(by) if value + by < least / 10 else by)
    else:
        whole = int(value)
        other = Decimal(rng.choice([x for x in range(whole - 9, whole + 10) if x >= least and x != whole]))

    def again(found: re.Match) -> str:
        return _as_written(other, found[0]) if _value(found) == value else found[0]

    return solution[: number.start()] + _NUMBER.sub(again, solution[number.start() :])


def _as_written(value: Decimal, like: str) -> str:
    """A number in another's form, or a reward model would learn to tell the wrong one by it."""
    digits = max(len(like.partition(".")[2]), -value.normalize().as_tuple().exponent)
    text = f"{value:{',' if ',' in like else ''}.{digits}f}"
    return text.removeprefix("0") if like.startswith(".") else text


def reference_pairs(rows: Sequence[dict], pairs_per_prompt: int = 1, seed: int = 0) -> list[dict]:
    """
    Each row's own solution against corrupted ones ([`corrupted_solution`]).

    Returns:
        `list[dict]`: `prompt`, `chosen` and `rejected` (and the row's `tools`, `chat_template_kwargs`); rows without a
        final answer are left out.
    """
    rng = random.Random(seed)
    pairs = []
    for row in rows:
        wrong = {corrupted_solution(row, rng) for _ in range(pairs_per_prompt)} - {None}
        pairs += [_pair(row, row["completion"], text) for text in sorted(wrong)]
    return pairs


def sampled_pairs(
    rows: Sequence[dict],
    completions: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float | None]],
    pairs_per_prompt: int = 1,
    seed: int = 0,
) -> list[dict]:
    """
    For each prompt, sampled completions of a higher score against such of a lower one; of several pairs, some drawn at
    random. Completions that differ in score but not in words say nothing, and are no pair.

    Args:
        rows (`Sequence[dict]`)
        completions (`Sequence[Sequence[str]]`):
            For each row its completions.
        scores (`Sequence[Sequence[float | None]]`):
            Of each completion; `None` leaves it out.

    Returns:
        `list[dict]`: `prompt`, `chosen` and `rejected`; a row whose completions all score alike gives none.
    """
    rng = random.Random(seed)
    pairs = []
    for row, texts, values in zip(rows, completions, scores, strict=True):
        scored = {text: value for text, value in zip(texts, values, strict=True) if value is not None}
        candidates = [(a, b) for (a, x), (b, y) in product(scored.items(), repeat=2) if x > y]
        for chosen, rejected in rng.sample(candidates, min(pairs_per_prompt, len(candidates))):
            pairs.append(_pair(row, chosen, rejected))
    return pairs


def _pair(row: dict, chosen: str, rejected: str) -> dict:
    """In TRL's preference format, after messages as messages, with what else the chat template gets."""
    row = as_row(asked(row))
    if isinstance(row["prompt"], str):
        return {**row, "chosen": chosen, "rejected": rejected}
    turns = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {**row, **dict(zip(("chosen", "rejected"), turns, strict=True))}
