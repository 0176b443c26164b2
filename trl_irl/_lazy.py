"""Names of a package that are imported when they are first asked for: what one does not use costs no time."""

import sys
from collections.abc import Callable
from importlib import import_module


def names_from(package: str, homes: dict[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """
    A package's `__getattr__`, and its `__dir__`, by which an editor or a notebook completes names.

    Args:
        package (`str`):
            Its `__name__`.
        homes (`dict[str, str]`):
            By name, the module that defines it, relative to the package, such as `.trainer.irl.trainer`.
    """

    def get(name: str):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name], package), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
