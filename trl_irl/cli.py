"""The `trl-irl` command: finds the subcommand and launches it through accelerate."""

import difflib
import logging
import os
import signal
import sys
from pathlib import Path
from subprocess import CalledProcessError


COMMANDS = {
    "irl": "fine-tune on demonstrations with the inverse soft-Q loss",
    "online-irl": "the same, on the model's own completions as well",
    "gail": "train against a discriminator that learns to tell the model from the demonstrations",
    "ppo": "train on a reward with TRL's PPO: a reward model's, what IRL learned, or a task's own",
    "prepare": "format a dataset, cut over-long prompts, check lengths, and save it for training",
    "evaluate": "sample from models over temperatures and compare accuracy and diversity",
    "average": "average the weights of models that began as one, such as base and fine-tuned",
    "chat": "ask models side by side, and see the reward of every token",
    "score": "score completions with the reward inside a model, and show it token by token",
    "reward-data": "preference pairs for `trl reward`, from a task whose answers can be checked",
    "plan": "memory per GPU and time of a training, from a model's config alone",
    "recipes": "list the recipes that come with trl-irl, what they train and on what hardware",
    "demo": "build a tiny model, fine-tune it by MLE and by IRL, and compare them",
    "rlhf-demo": "take a tiny model through SFT, reward model and PPO, and through IRL and RLOO",
}
_DEMOS = {"demo", "rlhf-demo"}
# Of `accelerate launch`, and before what a file of `--accelerate_config` says.
_LAUNCH_KEYS = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
_LAUNCHED = {"irl", "online-irl", "gail", "ppo"}  # through accelerate, on as many processes as its config says

_HELP = """usage: trl-irl COMMAND [--config recipe.yaml] [--key value ...] [--accelerate_config NAME-or-path]

Inverse reinforcement learning for language models, on Hugging Face TRL.

Try it on a CPU, in some minutes; train on your own data; compare two models:
  trl-irl demo
  trl-irl irl --model_name_or_path MODEL --dataset_name data.jsonl --output_dir tuned --accelerate_config single_gpu
  trl-irl evaluate --models base=MODEL tuned=tuned --dataset_name data.jsonl --split train

commands:
{commands}

--accelerate_config is a file, or one of: {configs}. Without it, `accelerate launch` uses its own defaults.
`trl-irl COMMAND --help` lists the keys that matter, `--help-all` every one.
"""


def accelerate_config_path(name: str) -> Path:
    """
    File of an accelerate config given by path, or by the name of one that comes with the package.

    Raises:
        `FileNotFoundError`: neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = _shipped_configs()
    if name not in shipped:
        raise FileNotFoundError(
            f"`--accelerate_config {name}` is neither a file nor one of the configs that come with trl-irl: "
            f"{', '.join(shipped)}."
        )
    return shipped[name]


def _shipped_configs() -> dict[str, Path]:
    # In a wheel the configs lie inside the package, in a checkout beside it.
    package = Path(__file__).parent
    folders = (package / "accelerate_configs", package.parent / "accelerate_configs")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def split_accelerate_config(args: list[str]) -> tuple[str | None, list[str]]:
    """Take `--accelerate_config X` (or `=X`) out of a command line: `(X or None, the rest)`."""
    rest, config = [], None
    words = iter(args)
    for word in words:
        key, has_value, value = word.partition("=")
        if key != "--accelerate_config":
            rest.append(word)
        else:
            config = value if has_value else next(words, None)
            if not config:
                raise ValueError("`--accelerate_config` needs a name or a path after it.")
    return config, rest


def split_launch_keys(args: list[str]) -> tuple[list[str], list[str]]:
    """Take what is `accelerate launch`'s out of a command line: how many processes and machines, and which this is."""
    taken, rest, words = [], [], iter(args)
    for word in words:
        key, has_value, _ = word.partition("=")
        if not key.startswith("--") or key[2:].replace("-", "_") not in _LAUNCH_KEYS:
            rest.append(word)
        elif has_value:
            taken += word.split("=", 1)
        else:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"`{key}` needs a value after it.")
            taken += [word, value]
    return taken, rest


def _check_launch_keys(config: str | None, keys: list[str]) -> None:
    """
    Raises:
        `ValueError`: several processes or machines, with a file for one process, with which each would train alone,
            or without a file and without a GPU, where accelerate would start one process all the same.
    """
    import yaml

    several = [key for key, value in zip(keys[::2], keys[1::2], strict=False) if "num_" in key and value != "1"]
    if not several:
        return
    if config is None:
        import torch
        from accelerate.commands.config.config_args import default_config_file

        if torch.accelerator.is_available() or Path(default_config_file).is_file():
            return
        raise ValueError(
            f"`{several[0]}` without `--accelerate_config`, and there is no GPU: accelerate would start one process "
            "all the same. Take ddp, zero2, zero3 or fsdp2, with `--use_cpu true --bf16 false`."
        )
    told = yaml.safe_load(accelerate_config_path(config).read_text(encoding="utf-8"))
    if told.get("distributed_type", "NO") == "NO":
        raise ValueError(
            f"`{several[0]}` with `--accelerate_config {config}`, which is for one process. Take ddp, zero2, zero3 or "
            "fsdp2."
        )


def module_of(command: str) -> str:
    """The module that is run for a subcommand."""
    room = "demos" if command in _DEMOS else "commands"
    return f"trl_irl.{room}.{command.replace('-', '_')}"


def main(argv: list[str] | None = None) -> int:
    from .commands.console.failures import INTERRUPTED, print_nowhere, tell_interrupted, write_any_text

    write_any_text()
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        print_nowhere()
        return 0
    except KeyboardInterrupt:  # before a command that could say more has begun
        tell_interrupted("trl-irl", "Nothing was begun.")
        return INTERRUPTED


def _run(argv: list[str] | None) -> int:
    from .commands.console.failures import end_at_first_interrupt
    from .commands.console.noise import silence

    silence()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<13}{help_text}" for name, help_text in COMMANDS.items())
        print(_HELP.format(commands=commands, configs=", ".join(_shipped_configs())))
        return 0
    if argv[0] in ("-V", "--version"):
        from . import __version__

        print(__version__)
        return 0
    command, args = argv[0], argv[1:]
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command.replace("_", "-"), COMMANDS, n=1)
        meant = f" Did you mean `{nearest[0]}`?" if nearest else f" There are: {', '.join(COMMANDS)}."
        print(f"trl-irl: error: unknown command `{command}`.{meant}", file=sys.stderr)
        return 2
    try:
        config, args = split_accelerate_config(args)
        launch_args = [] if config is None else ["--config_file", str(accelerate_config_path(config))]
        if command in _LAUNCHED:
            keys, args = split_launch_keys(args)
            _check_launch_keys(config, keys)
            launch_args += keys
        elif config is not None:
            _run_in_this_process(command, config)
    except (ValueError, FileNotFoundError) as error:
        print(f"trl-irl: error: {error}", file=sys.stderr)
        return 2
    module = module_of(command)
    if command not in _LAUNCHED or {"-h", "--help", "--help-all"} & set(args):
        import runpy

        end_at_first_interrupt()
        sys.argv = [f"trl-irl {command}", *args]
        runpy.run_module(module, run_name="__main__")
        return 0

    return _launch([*launch_args, "-m", module, *args])


def _run_in_this_process(command: str, config: str) -> None:
    """
    What an accelerate config says to a command that is not launched: of one for a CPU, that no GPU is used.

    Raises:
        `ValueError`: it is for several processes.
    """
    import yaml

    told = yaml.safe_load(accelerate_config_path(config).read_text(encoding="utf-8"))
    if told.get("distributed_type", "NO") != "NO":
        raise ValueError(
            f"`--accelerate_config {config}` is for several processes, and `trl-irl {command}` is one: it takes `cpu` "
            "or `single_gpu`, or without any the GPU if there is one."
        )
    if told.get("use_cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _launch(args: list[str]) -> int:
    from .commands.console.failures import INTERRUPTED

    interrupts = []

    def pass_on(signum, frame):
        import psutil

        if signum == signal.SIGINT:
            interrupts.append(signum)
            logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # each rank's status, and a traceback
        children = psutil.Process().children()
        if interrupts and not children:
            raise KeyboardInterrupt
        for child in children:
            child.send_signal(signum if len(interrupts) < 2 else signal.SIGKILL)  # Ctrl-C again: now

    # A scheduler's SIGTERM reaches the training, which may save and end (`save_on_signal`), and this waits for it, as
    # after Ctrl-C, to which the training has something to say. By itself, accelerate's launcher of one process would
    # die and leave it behind, and torch's of several would kill what has not ended in 30 seconds.
    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = _accelerate(args)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return INTERRUPTED if interrupts else status


def _accelerate(args: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args(args)
    arguments.signals_to_handle = "SIGHUP,SIGQUIT"
    try:
        launch_command(arguments)
    except CalledProcessError as error:  # the process has said why; a traceback of ours would bury it
        return error.returncode
    except ChildFailedError as error:
        return max(failure.exitcode for failure in error.failures.values()) or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
