"""Local paths told from Hub ids before anything loads."""

from pathlib import Path


def check_is_there(name: str, key: str, suffixes: tuple[str, ...] = ()) -> None:
    """
    Args:
        name (`str`):
            A local path or a Hub id.
        key (`str`):
            What it was given as, for the message.
        suffixes (`tuple[str, ...]`, *optional*):
            With which a name is a file's.

    Raises:
        `FileNotFoundError`: `name` cannot be a Hub id (it is absolute, starts with a dot, has more than one slash or
            one of the suffixes) and is not there.
    """
    cannot_be_hub_id = name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.lower().endswith(suffixes)
    if cannot_be_hub_id and not Path(name).exists():
        raise FileNotFoundError(
            f"`{key}: {name}` is not there. Local paths are relative to where the command runs, which is {Path.cwd()}."
        )
