"""GPUs by name: memory, and what their makers say of dense bfloat16 products."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """
    Attributes:
        memory (`float`): in GiB, about as much as a process sees, which is less than the label says.
        tflops (`float`, *optional*): 10^12 operations per second of dense bfloat16 products with float32 sums.
    """

    memory: float
    tflops: float | None = None


GPUS = {
    "rtx-3090": GPU(23.5, 71),
    "rtx-4090": GPU(23.5, 165),
    "rtx-5090": GPU(31, 210),
    "l4": GPU(22, 121),
    "l40s": GPU(44, 362),
    "a100-40gb": GPU(39, 312),
    "a100-80gb": GPU(79, 312),
    "h100": GPU(79, 989),
    "h200": GPU(139, 989),
    "b200": GPU(178, 2250),
}


def gpu_of(name: str) -> GPU:
    """
    A GPU by its name or by its memory in GiB, such as `"24"`.

    Raises:
        `ValueError`: neither.
    """
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    try:
        memory = float(name)
    except ValueError:
        memory = 0.0
    if not 0 < memory < float("inf"):
        raise ValueError(f"`gpu={name!r}` is neither a memory in GiB, such as 24, nor one of {', '.join(GPUS)}.")
    return GPU(memory)
