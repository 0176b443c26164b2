"""The `#### 72` that closes a GSM8K solution."""

import re
from collections.abc import Sequence
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


def accuracy_reward(
    completions: Sequence[str | list[dict]], reference: Sequence[str | list[dict]] | None = None, **kwargs
) -> list[float]:
    """
    The checker as a reward function of `trl grpo` and `trl rloo`: 1 where a completion ends in the final answer of its
    row's `reference`, else 0.

    ```yaml
    reward_funcs:
    - trl_irl.tasks.final_answer.accuracy_reward
    ```

    Args:
        completions (`Sequence[str]` or `Sequence[list[dict]]`):
            Text or messages.
        reference (as `completions`):
            The dataset's column of that name, which `trl-irl prepare --reference_column reference` makes: TRL keeps
            the column `completion` from reward functions.

    Raises:
        `ValueError`: there is no such column.
    """
    if reference is None:
        raise ValueError(
            "`accuracy_reward` compares with the dataset's column `reference`, which is not there. Make the dataset "
            "with `trl-irl prepare --reference_column reference`."
        )
    return [
        float(is_correct(_text(completion), {"completion": _text(right)}))
        for completion, right in zip(completions, reference, strict=True)
    ]


def _text(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]
