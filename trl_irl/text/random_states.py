"""Random numbers that are drawn on the way, and change none that are drawn after."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_states_kept() -> Iterator[None]:
    """What draws random numbers inside, of Python, numpy or torch on any device, does not change those drawn after."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def own_random_numbers(*of: int) -> Iterator[None]:
    """Inside, torch draws what these numbers decide, such as a seed, a step and a rank; after it as without it."""
    with random_states_kept():
        torch.manual_seed(random.Random(repr(of)).getrandbits(63))
        yield
