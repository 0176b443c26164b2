"""The subcommands of `trl-irl`, one file each: `accelerate launch -m trl_irl.commands.NAME --config recipe.yaml`."""
