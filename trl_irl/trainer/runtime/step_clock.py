"""Where the seconds of a training step go."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """
    Seconds of optimiser steps, from the first micro-batch to the end of the update, and of parts of them. What lies
    between steps (data, evaluation, checkpoints) is left out.
    """

    def __init__(self):
        self._start: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._steps, self._total = 0, 0.0
        self._parts: dict[str, float] = defaultdict(float)

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._total += time.perf_counter() - self._start
        self._steps += 1
        self._start = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._start is not None:  # and not in an evaluation
            self._parts[name] += time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """`time_NAME` of each part and `time_update` of the rest, in seconds per step since the last call."""
        seconds_of = {}
        if self._steps:
            parts = {**self._parts, "update": self._total - sum(self._parts.values())}
            seconds_of = {f"time_{name}": seconds / self._steps for name, seconds in parts.items()}
        self._clear()
        return seconds_of
