"""The demos, and what runs recipes in a row for them and for studies."""

import sys


if sys.argv[0] == "-m":  # as in `commands`
    from ..commands.console.start import begin_process

    begin_process()
