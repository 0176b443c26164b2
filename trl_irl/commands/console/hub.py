"""Pushing to the Hub: whether it can be, before anything is trained, and what is kept if it then fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PushError(OSError):
    """Something could not be pushed to the Hub; it is on the disk."""


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def repository_of(args) -> str:
    """Where training arguments push to: `hub_model_id`, or the name of `output_dir`."""
    return args.hub_model_id or Path(args.output_dir).absolute().name


_LOG_IN = "Check the connection, and that you are logged in (`hf auth login`) with a token that may write there"


def check_repository(name: str, key: str, private: bool | None, repo_type: str = "model") -> None:
    """
    Make the repository that will be pushed to, if it is not there.

    Args:
        name (`str`):
            `user/name`, or the name alone for one's own.
        key (`str`):
            What the user set, for the message.
        private (`bool`, *optional*):
            Whether a new one is private; `None` is the account's default.
        repo_type (`str`, *optional*, defaults to `"model"`)

    Raises:
        [`PushError`]: the Hub cannot be reached, or does not let the user.
    """
    import huggingface_hub

    try:
        huggingface_hub.create_repo(name, private=private, exist_ok=True, repo_type=repo_type)
    except Exception as error:  # of several libraries: no network, no token, no right, no such name
        raise PushError(
            f"`{key}: {name}` cannot be pushed to: {_reason(error)}. {_LOG_IN}. Or leave `push_to_hub` out, and "
            f"upload what is saved later: `hf upload {name} FOLDER`."
        ) from error


@contextmanager
def without_push(args) -> Iterator[None]:
    """Around `save_model`, which would push at once, and before all is saved."""
    asked, args.push_to_hub = args.push_to_hub, False
    try:
        yield
    finally:
        args.push_to_hub = asked


@contextmanager
def pushing(name: str, folder: str) -> Iterator[None]:
    """
    Around a push of what is saved in `folder`.

    Raises:
        [`PushError`]: it failed, and what to do.
    """
    try:
        yield
    except Exception as error:  # of several libraries: no network, no token, no right, no such name
        raise PushError(
            f"Everything is saved in {folder}, but it could not be pushed to {name}: {_reason(error)}. {_LOG_IN}, and "
            f"then: `hf upload {name} {folder}`."
        ) from error
