"""How a command ends when something is wrong: one message on each rank, and a status other than 0."""

import io
import locale
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress


def report(prog: str, error: BaseException | str) -> None:
    """
    Print an error as one message on stderr, with the rank where there are several, and after the traceback of the
    exception at hand if the environment has `TRL_IRL_TRACEBACK`.
    """
    if os.environ.get("TRL_IRL_TRACEBACK") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    where = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(f"{where}{prog}: error: {error}", file=sys.stderr, flush=True)


def write_any_text() -> None:
    """
    Whatever the locale: files that a library opens without naming an encoding (TRL reads recipes so) are UTF-8, and a
    character that the terminal does not have is printed as a question mark, rather than the end of a run.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if locale.getencoding().lower().replace("-", "") != "utf8":
        for name in ("C.UTF-8", "en_US.UTF-8"):  # the second where the first is not known, such as on macOS
            with suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                break


def run_reporting(parser, main: Callable, argv: list[str] | None) -> int:
    """Run a command of one process: what is wrong becomes one message. The exit status is 0, or 2 then."""
    write_any_text()
    (arguments,) = parser.parse(argv)
    try:
        main(arguments)
        return 0
    except (ValueError, OSError, ImportError) as error:
        report(parser.prog, error)
        return 2


def run_training(
    parser, make: Callable, train: Callable, argv: list[str] | None, under_way: tuple[type[Exception], ...] = ()
) -> int:
    """
    Run a command of one or many processes: what is wrong becomes one message on each rank that can still speak (the
    traceback as well, with `TRL_IRL_TRACEBACK=1`).

    Args:
        parser ([`RecipeParser`]):
            Its second dataclass is of training arguments.
        make (`Callable`):
            From the parsed arguments to a trainer, or what else `train` needs first.
        train (`Callable`):
            From what `make` made and the parsed arguments: trains and saves.
        argv (`list[str]`, *optional*)
        under_way (`tuple[type[Exception], ...]`, *optional*):
            Errors that `train` is known to end in, beside a loss that is not finite and a disk that is full.

    Returns:
        Exit status: 0, 1 if the run failed under way, 2 if something was wrong before it began. Errors of which
        nothing is known pass, with their traceback.
    """
    from ..tasks.files import remove_if_empty
    from ..trainer.checkpoints import CheckpointError, how_to_go_on, load_weights_only

    write_any_text()
    parsed = parser.parse(argv)
    training_args = parsed[1]
    existed = os.path.exists(training_args.output_dir)
    load_weights_only()
    status, known = 2, (ValueError, TypeError, OSError, ImportError)
    try:
        made = make(*parsed)
        status, known = 1, (FloatingPointError, CheckpointError, *under_way)
        train(made, *parsed)
        return 0
    except Exception as error:
        lost = is_lost_rank(error)
        if not (lost or isinstance(error, known)):
            raise
        message = str(error)
        if lost:
            message = (
                "another process of this run died, or did not answer for "
                f"`ddp_timeout: {training_args.ddp_timeout}` seconds; if it could say why, that is printed too. "
                f"{how_to_go_on(training_args.output_dir)} (Seen here: {message.splitlines()[0]})"
            )
        report(parser.prog, message)
        if not existed:
            remove_if_empty(training_args.output_dir)
        return status


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error is what a rank sees of another that died or hangs."""
    from torch.distributed import DistError

    # gloo has no error class of its own, and several ways to say it.
    of_gloo = ("gloo", "closed by peer", "reset by peer", "pair closure", "Timed out waiting", "Broken pipe")
    return isinstance(error, DistError) or (
        type(error) is RuntimeError and any(words in str(error) for words in of_gloo)
    )


def leave(status: int = 0) -> None:
    """
    End this process with a status. A rank of a distributed run ends without Python's shutdown, where communication
    threads that torch 2.13 (gloo) or DeepSpeed still hold now and then abort ("terminate called without an active
    exception"), so that the launcher would report a run that has saved everything as failed, or wait for other ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if status:
            time.sleep(2)  # the launcher ends the other ranks as soon as one is gone, and they may have a word to say
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
