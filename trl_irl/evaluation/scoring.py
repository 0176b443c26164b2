"""From a cell's samples to its metrics: statistics over prompts, and what could not be scored."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from .metrics import corpus_statistics, distinct_n, distinct_share, pass_at_k, self_bleu
from .statistics import Statistic, mean_of


Score = Callable[[str, dict], dict[str, float]]


@dataclass
class Failures:
    """
    Completions that a scoring function could not score. They are left out of its means, and reported.

    Attributes:
        count (`int`)
        first (`str`): what the first one raised.
    """

    count: int = 0
    first: str = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self.first = self.first or reason


@dataclass
class Scorer:
    """
    Every metric of sampled completions.

    Args:
        score (`Callable[[str, dict], dict[str, float]]`):
            From a completion's text and its row to named numbers. `accuracy`, if there, is 0 or 1 and gives `pass@k`.
        corpus (`Sequence[str]`, *optional*):
            Among `"bleu"` and `"chrf"`: sacrebleu's corpus scores against `row["completion"]`.
    """

    score: Score
    corpus: Sequence[str] = ()
    failures: Failures = field(default_factory=Failures)

    def statistics(self, groups: Sequence[Sequence[dict]], rows: Sequence[dict]) -> dict[str, Statistic]:
        """
        Args:
            groups (`Sequence[Sequence[dict]]`):
                For each row its completions: dicts of [`~evaluation.sampling.Completion`]'s attributes.
            rows (`Sequence[dict]`)

        Returns:
            `dict[str, Statistic]`: the scores; `pass@1`, `pass@2`, `pass@4` and so on up to the number of samples;
            the corpus scores; `self_bleu`, `distinct` and `distinct_2` where there are two samples or more; `length`
            in tokens; `ended`, the share that stopped by itself; `empty`, the share that says nothing.
        """
        values: dict[str, list[float]] = {}
        for i, (group, row) in enumerate(zip(groups, rows, strict=True)):
            for name, value in self._of_prompt(group, row).items():
                # A row that gave no such number before counts as one that could not be scored.
                column = values.setdefault(name, [])
                column += [math.nan] * (i - len(column)) + [value]
        padded = {name: column + [math.nan] * (len(rows) - len(column)) for name, column in values.items()}
        found = {name: mean_of(column) for name, column in padded.items()}
        texts = [[completion["text"] for completion in group] for group in groups]
        for name in self.corpus:
            found[name] = corpus_statistics(name, texts, [row["completion"] for row in rows])
        return found

    def _of_prompt(self, group: Sequence[dict], row: dict) -> dict[str, float]:
        texts = [completion["text"] for completion in group]
        scores = [scored for text in texts if (scored := self.scores_of(text, row)) is not None]
        found = {name: fmean(scored[name] for scored in scores if name in scored) for name in _names(scores)}
        if "accuracy" in found:
            correct = [scored["accuracy"] for scored in scores]
            found |= {f"pass@{k}": pass_at_k(correct, k) for k in _powers_of_two(len(correct))}
        if len(texts) > 1:
            found |= {
                "self_bleu": self_bleu(texts),
                "distinct": distinct_share(texts),
                "distinct_2": distinct_n(texts, 2),
            }
        return found | {
            "length": fmean(completion["length"] for completion in group),
            "ended": fmean(completion["ended"] for completion in group),
            "empty": fmean(not text.strip() for text in texts),
        }

    def scores_of(self, text: str, row: dict) -> dict[str, float] | None:
        """The scores of one completion, or `None` and one more failure."""
        try:
            scored = {name: float(value) for name, value in self.score(text, row).items()}
        except Exception as error:  # it may be a user's function
            self.failures.add(f"{type(error).__name__}: {error}")
            return None
        wrong = [name for name, value in scored.items() if not math.isfinite(value)]
        if wrong:
            self.failures.add(f"`{wrong[0]}` is {scored[wrong[0]]}")
            return None
        return scored


def _names(scores: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(name for scored in scores for name in scored))


def _powers_of_two(n: int) -> list[int]:
    return [2**i for i in range(n.bit_length())]
