"""The subcommands of `trl-irl`, one file each: `accelerate launch -m trl_irl.commands.NAME --config recipe.yaml`."""

import sys


if sys.argv[0] == "-m":  # one of them is run (`python -m`, `accelerate launch -m`); none of its imports is done yet
    from .console.start import begin_process

    begin_process()
