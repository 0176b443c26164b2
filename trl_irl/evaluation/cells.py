"""One model at one temperature and seed: its samples on disk, kept so that an evaluation can be taken up again."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from .metrics import distinct_n, distinct_share, pass_at_k, self_bleu
from .sampling import Completion


@dataclass(frozen=True)
class CellKey:
    """
    What decides a cell's samples. `settings` is all else that does (data, lengths, weights), as JSON can write it.
    """

    model: str
    temperature: float
    seed: int
    settings: dict

    def path(self, output_dir: Path) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.model)
        return output_dir / "cells" / f"{name}-T{self.temperature:g}-seed{self.seed}-{digest}.jsonl"


def load_or_sample(
    key: CellKey, output_dir: Path, rows: Sequence[dict], sample: Callable[[], list[list[Completion]]]
) -> list[dict]:
    """
    The samples of a cell: from disk if they were drawn before, else drawn now and written, whole or not at all.

    Returns:
        `list[dict]`: for each row `model`, `temperature`, `seed`, `prompt`, `reference` and `completions`, dicts of
        [`Completion`]'s attributes.
    """
    path = key.path(output_dir)
    if path.is_file():
        return [json.loads(line) for line in path.read_text().splitlines()]
    told = {"model": key.model, "temperature": key.temperature, "seed": key.seed}
    lines = [
        {**told, "prompt": row["prompt"], "reference": row["completion"], "completions": list(map(asdict, group))}
        for row, group in zip(rows, sample(), strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(part, path)
    return lines


def values_by_prompt(
    cell: Sequence[dict], rows: Sequence[dict], scores: dict[str, Callable[[str, dict], float]]
) -> dict[str, list[float]]:
    """
    Every metric's value for each prompt of a cell, averaged over its samples.

    Args:
        cell (`Sequence[dict]`):
            Of [`load_or_sample`].
        rows (`Sequence[dict]`):
            The task's rows, in the same order.
        scores (`dict[str, Callable]`):
            For each name a function of a completion's text and its row that gives a number; `accuracy`, if there, is 0
            or 1, and gives `pass@k` as well.

    Returns:
        `dict[str, list[float]]`: the scores; `pass@1`, `pass@2`, `pass@4` and so on up to the number of samples;
        `self_bleu`, `distinct` and `distinct_2` where there are two samples or more; `length` in tokens; `ended`.
    """
    values: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        values.setdefault(name, []).append(float(value))

    for line, row in zip(cell, rows, strict=True):
        completions = line["completions"]
        texts = [completion["text"] for completion in completions]
        for name, score in scores.items():
            of_samples = [score(text, row) for text in texts]
            add(name, fmean(of_samples))
            if name == "accuracy":
                for k in _powers_of_two(len(texts)):
                    add(f"pass@{k}", pass_at_k(of_samples, k))
        if len(texts) > 1:
            add("self_bleu", self_bleu(texts))
            add("distinct", distinct_share(texts))
            add("distinct_2", distinct_n(texts, 2))
        add("length", fmean(completion["length"] for completion in completions))
        add("ended", fmean(completion["ended"] for completion in completions))
    return values


def _powers_of_two(n: int) -> list[int]:
    return [2**i for i in range(n.bit_length()) if 2**i <= n]
