"""From a cell's samples to its metrics: statistics over prompts, and what could not be scored."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ..tasks.columns import references_of
from ..tasks.final_answer import NoFinalAnswer
from .metrics import bleu_tokenizer, corpus_statistics, distinct_n, distinct_share, pass_at_k, self_bleu, vendi_score
from .statistics import Statistic, mean_of


Score = Callable[[str, dict], dict[str, float]]

# Names that a scoring function may not give its own numbers: they are of every text, or of the models.
RESERVED = frozenset(
    "self_bleu distinct distinct_2 vendi unique_answers length ended empty unscored nll td_loss win_rate loss runtime "
    "epoch".split()
)
_RIGHT_OR_WRONG = ("accuracy", "accuracy_math")  # shown in percent, and pass@k counts the first


class MetricError(ValueError):
    """A scoring function gives a metric a name or a value that it cannot have."""


@dataclass
class Failures:
    """
    Completions that a scoring function could not score. They are left out of its means, and reported.

    Attributes:
        count (`int`)
        of_references (`int`): those among them whose reference has no answer to compare with.
        first (`str`): what the first one raised.
    """

    count: int = 0
    of_references: int = 0
    first: str = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self.first = self.first or reason


class AskedOnce:
    """
    A score that keeps what it said of each text of a row, or raised: the metrics and the analysis of rewards both ask,
    and a judge may cost.

    Args:
        score (`Callable[[str, dict], dict[str, float]]`): as in [`Scorer`]. It is asked about rows that stay alive.
    """

    def __init__(self, score: Score):
        self._score, self._said = score, {}

    def __call__(self, text: str, row: dict) -> dict[str, float]:
        key = text, id(row)
        if key not in self._said:
            try:
                self._said[key] = self._score(text, row)
            except Exception as error:
                self._said[key] = error
        if isinstance(said := self._said[key], Exception):
            raise said.with_traceback(None)
        return said


@dataclass
class Scorer:
    """
    Every metric of sampled completions.

    Args:
        score (`Callable[[str, dict], dict[str, float]]`):
            From a completion's text and its row to named numbers. `accuracy`, if there, is 0 or 1 and gives `pass@k`;
            a completion for which some number is not there is left out of that number's means.
        corpus (`Sequence[str]`, *optional*):
            Among `"bleu"` and `"chrf"`: sacrebleu's corpus scores against the row's references.
        taken (`Sequence[str]`, *optional*):
            Names of further metrics that others measure, such as `reward`.
        answers (`Callable[[str, dict], Hashable]`, *optional*):
            From a completion's text and its row to its final answer, or `None` where it gives none.

    Raises:
        [`MetricError`]: at a score, if a name is in [`RESERVED`], `corpus` or `taken`, or is `pass@k`, or if
            `accuracy` or `accuracy_math` is neither 0 nor 1.
    """

    score: Score
    corpus: Sequence[str] = ()
    taken: Sequence[str] = ()
    answers: Callable[[str, dict], Hashable] | None = None
    failures: Failures = field(default_factory=Failures)
    given: Counter[str] = field(default_factory=Counter)  # how many completions have got each number

    def check(self, rows: Sequence[dict]) -> None:
        """
        Score the first reference (or, without one, nothing) as if it had been sampled, so that what is wrong with the
        metrics is known before.

        Raises:
            [`MetricError`]: a name or value that cannot be.
            `ValueError`: what the function returns is no score, by the error's own `is_of_every_completion`.
        """
        try:
            text = rows[0].get("completion", "")
            scored = {name: float(value) for name, value in self.score(text, rows[0]).items()}
        except Exception as error:  # of a user's function; it is counted, and may be about this one completion
            if getattr(error, "is_of_every_completion", False):
                raise
        else:
            self._check(scored)

    def statistics(self, groups: Sequence[Sequence[dict]], rows: Sequence[dict]) -> dict[str, Statistic]:
        """
        Args:
            groups (`Sequence[Sequence[dict]]`):
                For each row its completions: dicts of [`~text.sampling.Completion`]'s attributes.
            rows (`Sequence[dict]`)

        Returns:
            `dict[str, Statistic]`: the scores; `pass@1`, `pass@2`, `pass@4` and so on up to the number of samples, of
            which one that could not be scored is wrong (a prompt whose reference has no answer is in no mean); the
            corpus scores; where there are two samples or more
            `self_bleu`, `distinct`, `distinct_2`, `vendi` and, with `answers`, `unique_answers`, how many different
            ones the samples of a prompt give; `length` in tokens; `ended`, the share that stopped by itself; `empty`,
            the share that says nothing.
        """
        values: dict[str, list[float]] = {}
        unscored: list[int] = []
        tokenizer = tokenizer_of(rows)
        for i, (group, row) in enumerate(zip(groups, rows, strict=True)):
            failures, of_references = self.failures.count, self.failures.of_references
            of_prompt = self._of_prompt(group, row, tokenizer)
            if self.failures.count - failures == len(group) and self.failures.of_references == of_references:
                unscored.append(i)
            for name, value in of_prompt.items():
                # A row that gave no such number before counts as one that could not be scored.
                column = values.setdefault(name, [])
                column += [math.nan] * (i - len(column)) + [value]
        padded = {name: column + [math.nan] * (len(rows) - len(column)) for name, column in values.items()}
        for name, column in padded.items():
            if name.startswith("pass@"):  # of a prompt none of whose samples could be scored as well
                for i in unscored:
                    column[i] = 0.0
        statistics = {name: mean_of(column) for name, column in padded.items()}
        texts = [[completion["text"] for completion in group] for group in groups]
        for name in self.corpus:
            statistics[name] = corpus_statistics(name, texts, [references_of(row) for row in rows])
        return statistics

    def _of_prompt(self, group: Sequence[dict], row: dict, tokenizer: str) -> dict[str, float]:
        texts = [completion["text"] for completion in group]
        scores = [scored for text in texts if (scored := self.scores_of(text, row)) is not None]
        self.given.update(name for scored in scores for name in scored)
        metrics = {name: fmean(scored[name] for scored in scores if name in scored) for name in _names(scores)}
        if "accuracy" in metrics:
            correct = [scored["accuracy"] for scored in scores if "accuracy" in scored]
            # One that cannot be scored solves nothing: without it, prompts with such ones would leave the larger k.
            correct += [0.0] * (len(texts) - len(scores))
            metrics |= {f"pass@{k}": pass_at_k(correct, k) for k in _powers_of_two(len(correct))}
        if len(texts) > 1:
            metrics |= {
                "self_bleu": self_bleu(texts, tokenizer),
                "distinct": distinct_share(texts),
                "distinct_2": distinct_n(texts, 2, tokenizer),
                "vendi": vendi_score(texts, tokenizer),
            }
            if self.answers is not None:
                metrics["unique_answers"] = float(len({self.answers(text, row) for text in texts} - {None}))
        return metrics | {
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
            self.failures.of_references += isinstance(error, NoFinalAnswer)
            return None
        self._check(scored)
        wrong = [name for name, value in scored.items() if not math.isfinite(value)]
        if wrong:
            self.failures.add(f"`{wrong[0]}` is {scored[wrong[0]]}")
            return None
        return scored

    def _check(self, scored: dict[str, float]) -> None:
        for name, value in scored.items():
            if name in RESERVED or name in (*self.corpus, *self.taken) or name.startswith("pass@"):
                raise MetricError(
                    f"The scoring function gives a metric `{name}`, a name that is taken: it is measured for every "
                    "text or model. Give yours another, such as "
                    f"`my_{name.replace('@', '_')}`."
                )
            if name in _RIGHT_OR_WRONG and math.isfinite(value) and value not in (0, 1):
                raise MetricError(
                    f"The scoring function gives `{name}` the value {value:g}, and it can only be 0 (wrong) or 1 "
                    "(right): it is shown in percent, and pass@k counts it. Give a score of another kind another "
                    "name, such as `score`."
                )


def tokenizer_of(rows: Sequence[dict]) -> str:
    """
    The [`~evaluation.metrics.bleu_tokenizer`] of all samples of these rows: that of the references or, where there are
    none or they have no letters, of the prompts. One for all models and temperatures, whatever they say, so that they
    compare.
    """
    texts = [row.get("completion", "") for row in rows]
    if not any(character.isalpha() for text in texts for character in text):
        prompts = [row.get("prompt") or "" for row in rows]
        messages = [[{"content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
        texts = [str(message.get("content") or "") for turns in messages for message in turns]
    return bleu_tokenizer(texts)


def _names(scores: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(name for scored in scores for name in scored))


def _powers_of_two(n: int) -> list[int]:
    return [2**i for i in range(n.bit_length())]
