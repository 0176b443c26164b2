"""What every subcommand is beside its arguments and its work: a parser, and a process that ends well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def goes_on_from(folder: str | Path, done: str) -> str:
    """What an interrupted command says that keeps in a folder what it has `done`, such as "scored"."""
    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return f"Nothing was {done}."
    return f"The same command goes on from what was {done}, which is in {folder}."


def command(
    name: str,
    arguments: type,
    doc: str,
    main: Callable,
    kept: Callable[..., str] = lambda arguments: "Nothing was written.",
) -> tuple[Callable, Callable]:
    """
    A command of one process.

    Args:
        name (`str`):
            As in `trl-irl NAME`.
        arguments (`type`):
            The dataclass of its keys.
        doc (`str`):
            What it does, and examples: for `--help`.
        main (`Callable`):
            The work, from the parsed arguments.
        kept (`Callable`, *optional*):
            From the parsed arguments to a sentence: what an interrupted command has saved, and how to go on.

    Returns:
        `tuple[Callable, Callable]`: `make_parser()`, and `run(argv=None)`, which returns the exit status: see
        [`~commands.console.failures.run_reporting`].
    """

    def make_parser():
        from .parser import RecipeParser

        return RecipeParser((arguments,), doc, prog=f"trl-irl {name}")

    def run(argv: list[str] | None = None) -> int:
        """The command: what is wrong becomes one message; the exit status is 0, or 2 then."""
        from .failures import run_reporting

        return run_reporting(make_parser(), main, argv, kept)

    return make_parser, run
