"""A reward model as the judge of an evaluation: what it gives completions, and how often more than the reference."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..rewards import PreferenceReward
from ..text.encode import asked
from .statistics import Statistic, mean_of


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
        self.reward = PreferenceReward(path, batch_size, dtype)
        self.prompts = [asked(row) for row in rows]
        self.of_references = None
        if all("completion" in row for row in rows):
            self.of_references = self.reward(self.prompts, [row["completion"] for row in rows])

    def pair_accuracy(self, rows: Sequence[dict]) -> Statistic | None:
        """Over preference pairs, whether `chosen` gets more (1, 0, for a tie a half); `None` if rows are no pairs."""
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
        given = iter(self.reward.score(prompts, texts, ids, ended))
        return [[next(given) for _ in group] for group in groups]

    def statistics(self, groups: Sequence[Sequence[dict]]) -> dict[str, Statistic]:
        """
        Args:
            groups (`Sequence[Sequence[dict]]`):
                For each row its completions: dicts of [`~text.sampling.Completion`]'s attributes. One that was
                cut is judged without the EOS that it never had. What is read is the text, in the judge's own tokens,
                unless its tokenizer is the policy's.

        Returns:
            `dict[str, Statistic]`: `reward` and, where there are references, `win_rate`, over prompts.
        """
        values = self.returns(groups)
        statistics = {"reward": mean_of([fmean(of_prompt) for of_prompt in values])}
        if self.of_references is not None:
            pairs = zip(values, self.of_references, strict=True)
            wins = [
                fmean((value > right) + 0.5 * (value == right) for value in of_prompt) for of_prompt, right in pairs
            ]
            statistics["win_rate"] = mean_of(wins)
        return statistics
