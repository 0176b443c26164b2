"""A reward model as the judge of an evaluation: what it gives completions, and how often more than the reference."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..evaluation.statistics import Statistic


def unanswered(rows: Sequence[dict], metrics: Sequence[str], marker: str | None = None) -> list[str]:
    """
    Notes on the references that `accuracy` cannot compare with and on those it takes whole, if there are any.

    Raises:
        `ValueError`: it can compare with none of them.
    """
    from ..tasks.final_answer import final_answer, is_correct, reference_answer

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


class ReferenceJudge:
    """
    Args:
        path (`str`):
            A reward model: folder, Hub id or adapter.
        rows (`Sequence[dict]`):
            With `prompt` and, if there are any, `completion`, the reference that others are compared with.
        batch_size (`int`), dtype (`str`)
    """

    def __init__(self, path: str, rows: Sequence[dict], batch_size: int, dtype: str):
        from ..rewards import PreferenceReward
        from ..text.encode import asked

        self.reward = PreferenceReward(path, batch_size, dtype)
        self.prompts = [asked(row) for row in rows]
        self.of_references = None
        if all("completion" in row for row in rows):
            self.of_references = self.reward(self.prompts, [row["completion"] for row in rows])

    def pair_accuracy(self, rows: Sequence[dict]) -> Statistic | None:
        """Over preference pairs, whether `chosen` gets more (1, 0, for a tie a half); `None` if rows are no pairs."""
        from ..evaluation.statistics import mean_of

        if not all({"chosen", "rejected"} <= row.keys() for row in rows):
            return None
        pairs = zip(*self.reward.of_pairs(rows), strict=True)
        return mean_of([(chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in pairs])

    def returns(self, groups: Sequence[Sequence[dict]]) -> list[list[float]]:
        """What the reward model gives each completion; see [`statistics`]."""
        prompts = [prompt for prompt, group in zip(self.prompts, groups, strict=True) for _ in group]
        texts, ids, ended = (
            [completion[key] for group in groups for completion in group] for key in ("text", "token_ids", "ended")
        )
        ids = None if None in ids else ids  # of completions that a file gives there are none
        given = iter(self.reward(prompts, texts, ids, ended))
        return [[next(given) for _ in group] for group in groups]

    def statistics(self, groups: Sequence[Sequence[dict]]) -> dict[str, Statistic]:
        """
        Args:
            groups (`Sequence[Sequence[dict]]`):
                For each row its completions: dicts of [`~evaluation.sampling.Completion`]'s attributes. One that was
                cut is judged without the EOS that it never had. What is read is the text, in the judge's own tokens,
                unless its tokenizer is the policy's.

        Returns:
            `dict[str, Statistic]`: `reward` and, where there are references, `win_rate`, over prompts.
        """
        from ..evaluation.statistics import mean_of

        values = self.returns(groups)
        found = {"reward": mean_of([fmean(of_prompt) for of_prompt in values])}
        if self.of_references is not None:
            pairs = zip(values, self.of_references, strict=True)
            wins = [
                fmean((value > right) + 0.5 * (value == right) for value in of_prompt) for of_prompt, right in pairs
            ]
            found["win_rate"] = mean_of(wins)
        return found
