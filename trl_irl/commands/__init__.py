"""The subcommands of `trl-irl`, one file each: `accelerate launch -m trl_irl.commands.NAME --config recipe.yaml`."""

import sys


if (
    sys.argv[0] == "-m"
):  # one of them is run (`python -m`, `accelerate launch -m`), and none of its imports is done yet
    from .failures import end_at_first_interrupt
    from .noise import silence

    end_at_first_interrupt()
    silence()
