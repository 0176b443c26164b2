"""By what a completion is judged: the task's metrics, those that the user names, and functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from .columns import references_of
from .final_answer import NoFinalAnswer, answer_text, is_correct, judge_answer
from .known import task_of
from .rouge import rouge


METRICS = ("accuracy", "accuracy_math", "rouge", "bleu", "chrf", "nll", "td_loss")


def exact_answer(prediction: str, row: dict, marker: str | None = None) -> dict[str, float]:
    """
    `accuracy`, 0 or 1: whether the number after `####` (or `marker`) is the one in the row's completion; and
    `answered`, 0 or 1: whether there is such a number at all.
    """
    right, answered = judge_answer(prediction, row, marker)
    return {"accuracy": float(right), "answered": float(answered)}


def default_metrics(task: str | None) -> tuple[str, ...]:
    """Those of a task; none for a function of the user's; ROUGE for a dataset without a task."""
    return task_of(task).metrics


def has_own_score(task: str | None) -> bool:
    """Whether a task scores completions by a function of its own, which may need no reference."""
    return task_of(task).score is not None


def completion_score(task: str | None) -> Callable[[str, dict], dict[str, float]]:
    """
    The task's own score of one completion, for those who reward or compare completions one by one: without what is of
    a whole corpus, and without math-verify, a process of its own.
    """
    return make_score(task, _of_one_completion(task))


def has_completion_score(task: str | None) -> bool:
    """Whether [`completion_score`] gives any number: BLEU and chrF alone are of a corpus."""
    return has_own_score(task) or bool(_of_one_completion(task))


def _of_one_completion(task: str | None) -> list[str]:
    return [name for name in default_metrics(task) if name not in ("accuracy_math", "bleu", "chrf", "nll", "td_loss")]


def make_score(
    task: str | None, metrics: Sequence[str], verifier=None, marker: str | None = None
) -> Callable[[str, dict], dict[str, float]]:
    """
    One function for all numbers of a completion: the named metrics, and those of the user's own function.

    Args:
        task (`str`, *optional*)
        metrics (`Sequence[str]`):
            Among `METRICS`; those of a whole corpus or of the model are left to others.
        verifier ([`~tasks.math_answer.MathVerifier`], *optional*):
            Judges `accuracy_math`.
        marker (`str`, *optional*):
            What stands before a final answer beside `####`.

    Raises:
        `ValueError`: the user's function is not there.
    """
    own = task_of(task).score
    parts = [] if own is None else [own]
    if "accuracy" in metrics:
        parts.append(partial(exact_answer, marker=marker))
    if "accuracy_math" in metrics:

        def math_answer(text: str, row: dict) -> dict[str, float]:
            # What is the same answer as it is read here need not be parsed as mathematics: `- 5`, `2 1/2`.
            with suppress(NoFinalAnswer):
                if is_correct(text, row, marker):
                    return {"accuracy_math": True}
            return {"accuracy_math": verifier.is_equal(*(answer_text(x, marker) for x in (text, row["completion"])))}

        parts.append(math_answer)
    if "rouge" in metrics:
        parts.append(lambda text, row: rouge(text, *references_of(row)))
    if len(parts) == 1:
        return parts[0]
    return lambda text, row: {name: value for part in parts for name, value in part(text, row).items()}
