"""How much memory the tiles of logits get: what the user says, or what is free."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import torch

from .projection import Projection


AUTO = "auto"
# On a CPU 32, 64 and 128 MiB take the same time within 15 %, 32 the least; on an H200 32, 128 and 512 take 0.204,
# 0.134 and 0.132 s per step of 0.5 B weights (docs/results.md). 128 is half of what TRL 1.16's head takes.
DEFAULT_LOGIT_BUFFER_MB = 128

BYTES = 8  # per logit: float32, and its working copy


def read_logit_buffer(value: float | str) -> float | str:
    """
    The setting `logit_buffer_mb` as a number, or `"auto"`.

    Raises:
        `ValueError`: it is neither.
    """
    try:
        if value == AUTO or 0 < float(value) < float("inf"):
            return AUTO if value == AUTO else float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"`logit_buffer_mb={value}` must be positive, or 'auto': it is the memory in MiB for one tile of logits. 128 "
        "suits most models."
    )


def buffer_bytes(logit_buffer_mb: float | str, hidden: torch.Tensor, projection: Projection, keeps: bool) -> int:
    """
    Memory for the tile of logits at work and its working copy.

    Args:
        logit_buffer_mb (`float` or `"auto"`):
            In MiB; `"auto"` is what all logits of these tokens take where they can be kept for the backward and half
            of the free memory holds them beside the gradient of the weight. Elsewhere it is 128: a tile that is
            computed again gains nothing from more.
        hidden (`torch.Tensor` of shape `(tokens, hidden)`)
        projection ([`Projection`])
        keeps (`bool`):
            Whether a tile of all logits would be kept.
    """
    if logit_buffer_mb != AUTO:
        return int(logit_buffer_mb * 2**20)
    default, weight = DEFAULT_LOGIT_BUFFER_MB * 2**20, projection.weight
    trained = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    wanted = BYTES * len(hidden) * projection.tile_columns
    if not (keeps and trained and default < wanted):
        return default
    # The gradient of the weight is new memory at the first micro-batch of a step, in float32 while it is summed.
    gradient = 4 * projection.columns * hidden.size(1) if weight.requires_grad else 0
    return wanted if wanted <= (free_memory(hidden.device) - gradient) / 2 else default


def free_memory(device: torch.device) -> int:
    """
    Bytes that this process can take on a device: on CUDA with what torch holds and does not use, on a CPU its part of
    what is available, if several processes train there. 0 on other devices, where nobody has tried.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "cpu":
        available = min(psutil.virtual_memory().available, *_left_in_groups())
        return int(available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), told: Path = Path("/proc/self/cgroup")) -> list[float]:
    """What a container or a scheduler leaves to this process, of each control group (version 2) that has a limit."""
    left = [math.inf]
    try:
        own = next(line for line in told.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
        group = root / own.removeprefix("0::").lstrip("/")
        for folder in (group, *group.parents):
            limit = folder / "memory.max"
            if limit.is_file() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                used = int((folder / "memory.current").read_text(encoding="utf-8"))
                left.append(int(most) - used + int(stat["inactive_file"]))  # the kernel drops such pages first
            if folder == root:
                break
    except (OSError, StopIteration, ValueError, KeyError):
        pass  # no Linux, or groups of version 1: what the machine has
    return left
