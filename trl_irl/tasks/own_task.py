"""Tasks of the user's own, `module:name`: a [`~tasks.task.Task`], or a function that scores a completion."""

import asyncio
import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace

from .._named import named
from .task import Score, Task


def own_task(name: str) -> Task:
    """
    What `module:name` names: a [`~tasks.task.Task`] or, as the task of any dataset, a function that scores a
    completion: `(prediction, row) -> {"metric": number}`, or `-> number`, which is then called by the function's name;
    it may be `async`. The module is looked for where Python looks, and in the folder that the command runs in.

    Raises:
        `ValueError`: there is no such module, or nothing of this kind in it.
    """
    found = named("task", name)
    if isinstance(found, Task):
        return found if found.score is None else replace(found, score=checked_score(found.score, name))
    if not callable(found):
        module_name, _, own_name = name.partition(":")
        raise ValueError(
            f"`task: {name}` names no function and no task: module `{module_name}` has no `{own_name}` of that kind."
        )
    return Task(score=checked_score(found, name))


def checked_score(function: Score, name: str) -> Score:
    """
    The function, which may be asynchronous or return one number, with what it returns looked at. `name` is
    `module:function`, or of a function that is given itself its own.
    """
    *_, of_number = name.split(":")
    said_by = f"`task: {name}`" if ":" in name else f"`{name}`"

    @functools.wraps(function)
    def score(prediction: str, row: dict) -> dict[str, float]:
        returned = function(prediction, row)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
        if isinstance(returned, Mapping) and all(isinstance(key, str) for key in returned):
            return dict(returned)
        if _is_number(returned):
            return OneNumber({of_number: float(returned)})
        shown = repr(returned)
        raise ReturnError(
            f"{said_by} returned {shown if len(shown) <= 80 else shown[:77] + '...'}, a "
            f"{type(returned).__name__}. A score is a number, or a mapping of names to numbers, such as "
            '{"reward": 1.0}.'
        )

    return score


class ReturnError(ValueError):
    """A scoring function returns something that is no score."""

    is_of_every_completion = True


class OneNumber(dict):
    """The score of a function that returns a number without a name; it is the function's."""


async def _awaited(value):
    return await value


def _is_number(value) -> bool:
    if isinstance(value, str | bytes):
        return False
    try:
        float(value)  # of numpy and torch as well, if it is one number
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def number_of(scores: Mapping[str, float], metric: str) -> float:
    """
    One number of what a scoring function gives; of [`OneNumber`], which has no name but the function's, that one.

    Raises:
        `ValueError`: it gives no such number.
    """
    if isinstance(scores, OneNumber):
        return next(iter(scores.values()))
    if metric not in scores:
        raise ValueError(f"it gives {', '.join(scores) or 'nothing'}, and not `reward_metric: {metric}`")
    return float(scores[metric])
