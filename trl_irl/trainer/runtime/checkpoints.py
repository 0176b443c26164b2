"""Checkpoints on disk: which of them are whole, and what happens when one cannot be written."""

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.trainer_utils import sort_checkpoints


_OF_A_DISK = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "ENOTDIR", "ENOENT", "ESTALE")
    if hasattr(errno, name)
}


class CheckpointError(OSError):
    """A checkpoint or the final model could not be written."""


def newest_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest whole checkpoint in a folder, that of the most steps, or `None`; a warning says if another one was
    written later, such as by a run that began anew in the same folder. `trainer_state.json` is a checkpoint's last
    file (IRLTrainer waits for the other ranks' files before it): one that has none, or half of one, was cut off while
    it was written, and is skipped with a warning.
    """
    if not Path(output_dir).is_dir():
        return None
    checkpoints = list(reversed(sort_checkpoints(str(output_dir))))
    for i, checkpoint in enumerate(checkpoints):
        if _is_whole(checkpoint):
            later = [one for one in checkpoints[i + 1 :] if _is_whole(one) and _written(one) > _written(checkpoint)]
            if later:
                warnings.warn(
                    f"{checkpoint} has the most steps, and {later[0]} was written after it: the folder has those of "
                    f"several runs. `resume_from_checkpoint: {later[0]}` goes on from the other one."
                )
            return checkpoint
        warnings.warn(f"{checkpoint} was not written to its end, so it is skipped. Delete it when you like.")
    return None


def _is_whole(checkpoint: str | os.PathLike) -> bool:
    try:
        json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))
        return True
    except (OSError, ValueError):
        return False


def _written(checkpoint: str | os.PathLike) -> float:
    """When its last file was, in whole seconds: copies of a folder differ by less."""
    return Path(checkpoint, "trainer_state.json").stat().st_mtime // 1


def load_weights_only() -> None:
    """
    From here on `torch.load` takes tensors and plain values from a file, and never runs what a pickle says.
    transformers and accelerate ask for that themselves; DeepSpeed would unpickle the checkpoints it resumes from.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        # All that its checkpoints hold beside tensors: records of numbers.
        torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])


def how_to_go_on(output_dir: str | os.PathLike) -> str:
    """A sentence for error messages: where a run that ended here can be taken up again."""
    checkpoint = newest_checkpoint(output_dir)
    if checkpoint is None:
        return "There is no earlier checkpoint."
    return f"The newest checkpoint is {checkpoint}; `resume_from_checkpoint: true` goes on from there."


def _remove(folder: Path, half_written: str) -> None:
    """
    Remove what matches. With several ranks, again and again for two seconds: those that still write put files, and the
    folder itself, back.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    end = time.monotonic() + (2 if several else 0)
    while True:
        for path in [folder] if half_written == "." else list(folder.glob(half_written)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(IsADirectoryError):  # another rank made it just now: next time
                    path.unlink(missing_ok=True)
        if time.monotonic() >= end:
            return
        time.sleep(0.05)


@contextmanager
def one_error_if_disk_fails(folder: str | os.PathLike, half_written: str) -> Iterator[None]:
    """
    Around what writes to `folder`: if the disk is full or refuses, what matches the glob `half_written` in it (`"."`:
    the folder itself) is removed, and the error says so. A checkpoint that is whole stays: what failed then came after
    it, such as a push to the Hub. Other errors pass.

    Raises:
        `CheckpointError`
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # safetensors and torch.save have errors of their own for what the system refused, and an OSError can be of the
        # network as well: a checkpoint that could not be pushed is none the worse.
        of_torch_save = ("inline_container", "Parent directory")  # the disk is full; another rank removed the folder
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in of_torch_save):
            raise
        if isinstance(error, OSError) and error.errno not in _OF_A_DISK:
            raise
        folder = Path(folder)
        free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
        whole = half_written == "." and _is_whole(folder)
        if not whole:
            _remove(folder, half_written)
        removed = f"{folder} is whole and stays" if whole else "What was half-written has been removed"
        run = folder.parent if half_written == "." else folder
        raise CheckpointError(
            f"{'What follows' if whole else 'Writing'} {folder} failed: {str(error).splitlines()[0]}. "
            f"{free / 2**20:.0f} MiB are free on that disk. {removed}. {how_to_go_on(run)} Free some space, lower "
            "`save_total_limit`, or set another `output_dir`."
        ) from error
