"""One model by one sampler and seed: its samples on disk, kept so that an evaluation can be taken up again."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers.utils import get_json_schema

from ..text.encode import asked
from ..text.samplers import Sampler
from ..text.sampling import Completion
from .comparison import of_sampler


@dataclass(frozen=True)
class CellKey:
    """
    What decides a cell's samples. `settings` is all else that does (data, lengths, weights), as JSON can write it.
    """

    model: str
    sampler: Sampler
    seed: int
    settings: dict

    def path(self, output_dir: Path) -> Path:
        # A temperature alone makes the key that it made when there was nothing else: its samples are found again.
        cuts = {name: value for name, value in self.sampler.options().items() if name not in ("temperature", "top_p")}
        settings = {**self.settings, "top_p": self.sampler.top_p, **cuts}
        key = {"model": self.model, "temperature": self.sampler.temperature, "seed": self.seed, "settings": settings}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
        how = str(self.sampler).replace("=", "").replace(",", "-")
        how = f"T{self.sampler.temperature:g}" if self.sampler.is_plain else how
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.model)
        return output_dir / "cells" / f"{name}-{how}-seed{self.seed}-{digest}.jsonl"


def said_of(row: dict) -> dict:
    """What a line has of its row: its prompt with the `tools` and `chat_template_kwargs` it was asked with, if any."""
    prompt = asked(row)
    found = {**(prompt if isinstance(prompt, dict) else {"prompt": prompt}), "reference": row.get("completion")}
    if found.get("tools"):  # which may be functions
        found["tools"] = [get_json_schema(tool) if callable(tool) else tool for tool in found["tools"]]
    return found


def load_or_sample(
    key: CellKey, output_dir: Path | None, rows: Sequence[dict], sample: Callable[[], list[list[Completion]]]
) -> list[dict]:
    """
    The samples of a cell: from disk if they were drawn before, else drawn now and written, whole or not at all.
    Without `output_dir` they are kept nowhere.

    Returns:
        `list[dict]`: for each row `model`, `temperature` (and `sampler`), `seed`, what [`said_of`] gives and
        `completions`, dicts of [`Completion`]'s attributes.
    """
    path = None if output_dir is None else key.path(output_dir)
    if path is not None and path.is_file():
        kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # The same prompts may have other references by now: samples do not hang on them, and the report shows them.
        return [{**line, **said_of(row)} for line, row in zip(kept, rows, strict=True)]
    of_cell = {"model": key.model, **of_sampler(key.sampler), "seed": key.seed}
    lines = [
        {
            **of_cell,
            **said_of(row),
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
