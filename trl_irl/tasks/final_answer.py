"""The `#### 72` that closes a GSM8K solution."""

import re
from decimal import Decimal, InvalidOperation


_FINAL_ANSWER = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")


def final_answer(solution: str) -> Decimal | None:
    """The number after the last `####` of a solution, thousands separators and a dollar sign ignored, or `None`."""
    matches = _FINAL_ANSWER.findall(solution)
    try:
        return Decimal(matches[-1].replace(",", "")) if matches else None
    except InvalidOperation:
        return None


def answer_text(solution: str) -> str:
    """What follows the last `####` of a solution or, without one, all of it: what math-verify is to look at."""
    return solution.rpartition("####")[2]


def is_correct(prediction: str, row: dict) -> bool:
    """Whether a sampled completion ends in the same final answer as the row's own completion."""
    answer = final_answer(prediction)
    return answer is not None and answer == final_answer(row["completion"])
