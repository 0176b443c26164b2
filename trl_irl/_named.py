"""What is the user's own and a recipe names, as `module:name`: a task, an objective."""

import importlib
import sys
from pathlib import Path


def named(key: str, name: str):
    """
    What `module:name` names, or `None` where the module has no such name. The module is looked for where Python looks,
    and in the folder that the command runs in.

    Args:
        key (`str`):
            The key that says so, for the error.
        name (`str`)

    Raises:
        `ValueError`: the module cannot be imported.
    """
    module_name, _, own_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:  # of an empty name it is a ValueError
        raise ValueError(
            f"`{key}: {name}` could not be imported: {error}. It is `module:name`, where `module` is as in "
            f"`import module`, run from {Path.cwd()}."
        ) from error
    return getattr(module, own_name, None)
