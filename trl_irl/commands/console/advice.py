"""What a command says that its user should act on: in yellow, and of a training below the table before it."""

import logging
import os
import sys
import warnings
from pathlib import Path


_PACKAGE = Path(__file__).parents[2]
_format_of_others = warnings.formatwarning


class _Advice(logging.Handler):
    """Keeps warnings of this package until there is a place to say them, then says each at once."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.held: list[str] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().removeprefix("[RANK 0] ")  # accelerate's; only the first rank says these
        if self.held is None:
            _say(message)
        else:
            self.held.append(message)


def hold_advice() -> None:
    """From here on, keep what this package logs as a warning, until [`give_advice`]."""
    drop_advice()
    logging.getLogger("trl_irl").addHandler(_Advice())


def give_advice() -> None:
    """Say what was kept, if something was; what comes later is said at once."""
    for handler in _handlers():
        held, handler.held = handler.held or [], None
        for message in held:
            _say(message)


def drop_advice() -> None:
    """Say what was kept, and leave what comes later to Python's logging."""
    give_advice()
    for handler in _handlers():
        logging.getLogger("trl_irl").removeHandler(handler)


def plain_warnings() -> None:
    """Python's own warnings by this package are one line, without the place in its source; others' are as ever."""
    warnings.formatwarning = _format_warning


def in_yellow(message: str) -> str:
    """As a warning, in colour where stderr is a terminal that has not been asked for none."""
    warning = f"Warning: {message}"
    return f"\033[33m{warning}\033[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else warning


def _handlers() -> list[_Advice]:
    return [handler for handler in logging.getLogger("trl_irl").handlers if isinstance(handler, _Advice)]


def _say(message: str) -> None:
    sys.stdout.flush()
    tqdm = sys.modules.get("tqdm.std")
    if tqdm is not None:  # on a line of its own, where a progress bar may be open
        tqdm.tqdm.write(in_yellow(message), file=sys.stderr)
    else:
        print(in_yellow(message), file=sys.stderr)
    sys.stderr.flush()


def _format_warning(message, category, filename, lineno, line=None) -> str:
    if issubclass(category, UserWarning) and _PACKAGE in Path(filename).parents:
        return in_yellow(str(message)) + "\n"
    return _format_of_others(message, category, filename, lineno, line)
