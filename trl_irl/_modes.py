"""Training and evaluation mode, for as long as something runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """
    Inside, all of the model is in training mode or in evaluation mode; after it, and after an error, each of its
    modules is in the mode that it was in: parts that a user keeps from dropout stay so.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.training = before
