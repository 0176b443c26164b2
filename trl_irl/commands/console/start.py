"""What a process of one command does first, before its imports."""

from .failures import end_at_first_interrupt, open_closed_streams
from .noise import silence


def begin_process() -> None:
    """Ctrl-C ends it once and in one line, and other packages are quiet from here on."""
    open_closed_streams()
    end_at_first_interrupt()
    silence()
