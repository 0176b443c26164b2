"""One model at one temperature and seed: its samples on disk, kept so that an evaluation can be taken up again."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..text.sampling import Completion


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
    key: CellKey, output_dir: Path | None, rows: Sequence[dict], sample: Callable[[], list[list[Completion]]]
) -> list[dict]:
    """
    The samples of a cell: from disk if they were drawn before, else drawn now and written, whole or not at all.
    Without `output_dir` they are kept nowhere.

    Returns:
        `list[dict]`: for each row `model`, `temperature`, `seed`, `prompt`, `reference` and `completions`, dicts of
        [`Completion`]'s attributes.
    """
    path = None if output_dir is None else key.path(output_dir)
    if path is not None and path.is_file():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    of_cell = {"model": key.model, "temperature": key.temperature, "seed": key.seed}
    lines = [
        {
            **of_cell,
            "prompt": row["prompt"],
            "reference": row.get("completion"),
            "completions": list(map(asdict, group)),
        }
        for row, group in zip(rows, sample(), strict=True)
    ]
    if path is None:
        return lines
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(part, path)
    return lines
