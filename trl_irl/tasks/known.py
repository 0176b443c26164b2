"""The tasks that come with this package, by name, and any task by what the user calls it."""

from __future__ import annotations

from . import arithmetic, e2e, gsm8k, summarization, translation
from .own_task import own_task
from .task import Task


TASKS: dict[str, Task] = {
    "gsm8k": gsm8k.TASK,
    "arithmetic": arithmetic.TASK,
    "arithmetic_facts": arithmetic.FACTS,
    "e2e": e2e.TASK,
    "tldr": summarization.TLDR,
    "summarization": summarization.SUMMARIZATION,
    "translation": translation.TASK,
}
_ANY_DATASET = Task(metrics=summarization.ROUGE)


def task_of(name: str | None) -> Task:
    """
    The task of this name, one of [`TASKS`] or `module:name` for one of the user's own; without a name that of any
    dataset in TRL's formats.

    Raises:
        `ValueError`: it is unknown, or cannot be imported.
    """
    if name is None:
        return _ANY_DATASET
    if not isinstance(name, str):
        raise ValueError(
            f"`task` is a {type(name).__name__}. It is text: one of {', '.join(TASKS)}, or `module:function` for a "
            "function of your own, which a run that goes on can then find again."
        )
    if ":" in name:
        return own_task(name)
    if name not in TASKS:
        raise ValueError(
            f"`task: {name}` is unknown; the tasks are {', '.join(TASKS)}, or `module:function` for a function of "
            "your own that scores a completion, or `module:TASK` for a task of your own."
        )
    return TASKS[name]
