"""How a command ends when something is wrong: one message on each rank, and a status other than 0."""

import io
import locale
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress

from .advice import give_advice, plain_warnings


INTERRUPTED = 130  # what shells say of a command that Ctrl-C ended


def report(prog: str, error: BaseException | str) -> None:
    """
    Print an error as one message on stderr, with the rank where there are several, after warnings that were kept for
    later (they may say why), and after the traceback of the exception at hand if the environment has
    `TRL_IRL_TRACEBACK`.
    """
    give_advice()
    if os.environ.get("TRL_IRL_TRACEBACK") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    where = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    line, tqdm = f"{where}{prog}: error: {error}", sys.modules.get("tqdm.std")
    if tqdm is not None:  # on a line of its own, where a progress bar may be open
        tqdm.tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)
    sys.stderr.flush()


def open_closed_streams() -> None:
    """Python has None for a standard stream that was closed before it began, as a daemon's; nobody looks for that."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)  # processes that are started have them closed too
            setattr(sys, name, stream)


def write_any_text() -> None:
    """
    Whatever the locale: files that a library opens without naming an encoding (TRL reads recipes so) are UTF-8, and a
    character that the terminal does not have is printed as a question mark, rather than the end of a run.
    """
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if locale.getencoding().lower().replace("-", "") != "utf8":
        for name in ("C.UTF-8", "en_US.UTF-8"):  # the second where the first is not known, such as on macOS
            with suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                break


def print_nowhere() -> None:
    """From here on: whoever read what is printed has seen enough, such as `| head`."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def end_at_first_interrupt() -> None:
    """
    For a process of its own: Ctrl-C raises `KeyboardInterrupt` once, and further signals do not get into the way of
    what is still to be said (a terminal sends one to every process, and a launcher passes its own on). Where nobody
    catches it, such as during the imports, it is one line instead of a traceback.
    """

    def first(signum, frame):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    def one_line(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            tell_interrupted("trl-irl", "Nothing was begun.")
            leave(INTERRUPTED)
        sys.__excepthook__(kind, error, trace)

    # Not where signals go elsewhere, such as behind `nohup` or in a test.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, first)
        sys.excepthook = one_line


def tell_interrupted(prog: str, how_to_go_on: str) -> None:
    """
    The one line that an interrupted command ends with, below a progress bar: by one of its ranks, and not by those
    that another command runs and speaks for (`TRL_IRL_PART_OF`).
    """
    if os.environ.get("RANK", "0") == "0" and "TRL_IRL_PART_OF" not in os.environ:
        print(f"\n{prog}: interrupted. {how_to_go_on}", file=sys.stderr, flush=True)


def run_reporting(
    parser, main: Callable, argv: list[str] | None, kept: Callable[..., str] = lambda arguments: "Nothing was written."
) -> int:
    """
    Run a command of one process: what is wrong becomes one message. The exit status is 0, 2 then, or 130 after Ctrl-C.

    Args:
        parser ([`RecipeParser`])
        main (`Callable`):
            From the parsed arguments.
        argv (`list[str]`, *optional*)
        kept (`Callable`, *optional*):
            From the parsed arguments to a sentence: what an interrupted command has saved, and how to go on.
    """
    write_any_text()
    plain_warnings()
    (arguments,) = parser.parse(argv)
    try:
        main(arguments)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        print_nowhere()
        return 0
    except (ValueError, OSError, ImportError) as error:
        report(parser.prog, error)
        return 2
    except KeyboardInterrupt:
        tell_interrupted(parser.prog, kept(arguments))
        return INTERRUPTED


def run_training(
    parser,
    make: Callable,
    train: Callable,
    argv: list[str] | None,
    under_way: tuple[type[Exception], ...] = (),
    resumes: bool = True,
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
        resumes (`bool`, *optional*, defaults to `True`):
            Whether the trainer can go on from a checkpoint.

    Returns:
        Exit status: 0, 1 if the run failed under way, 2 if something was wrong before it began, 130 after Ctrl-C.
        Errors of which
        nothing is known pass, with their traceback.
    """
    from ...tasks.files import remove_if_empty
    from ...trainer.runtime.checkpoints import CheckpointError, how_to_go_on, load_weights_only

    write_any_text()
    plain_warnings()
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
    except KeyboardInterrupt:
        return _interrupted(parser.prog, training_args.output_dir, existed, resumes)
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


def _interrupted(prog: str, output_dir: str, existed: bool, resumes: bool) -> int:
    from ...tasks.files import remove_if_empty
    from ...trainer.runtime.checkpoints import how_to_go_on, newest_checkpoint

    with warnings.catch_warnings():  # of a checkpoint that was not written to its end
        warnings.simplefilter("ignore")
        checkpoint = newest_checkpoint(output_dir)
        how = how_to_go_on(output_dir)
    if checkpoint is None:
        how = "No checkpoint was saved: the same command begins anew (`save_steps` saves more often)."
    elif not resumes:
        how = f"The newest checkpoint is {checkpoint}; as `model_name_or_path` a new run starts from it."
    tell_interrupted(prog, how)
    if not existed:
        remove_if_empty(output_dir)
    return INTERRUPTED


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error is what a rank sees of another that died or hangs."""
    from torch.distributed import DistError

    # gloo has no error class of its own, and several ways to say it.
    of_gloo = ("gloo", "closed by peer", "reset by peer", "pair closure", "Timed out waiting", "Broken pipe")
    return isinstance(error, DistError) or (
        type(error) is RuntimeError and any(words in str(error) for words in of_gloo)
    )


def _finish_tracker(status: int) -> None:
    """Weights & Biases closes a run's file when Python ends, which it does not here: the end of the log was lost."""
    tracker = sys.modules.get("wandb")
    if getattr(tracker, "run", None) is not None:
        with suppress(Exception):  # such as of a network that is gone: the training is done, and saved
            tracker.finish(exit_code=status)


def leave(status: int = 0) -> None:
    """
    End this process with a status. A rank of a distributed run ends without Python's shutdown, where communication
    threads that torch 2.13 (gloo) or DeepSpeed still hold now and then abort ("terminate called without an active
    exception"), so that the launcher would report a run that has saved everything as failed, or wait for other ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _finish_tracker(status)
        if status:
            time.sleep(2)  # the launcher ends the other ranks as soon as one is gone, and they may have a word to say
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
