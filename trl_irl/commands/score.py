"""
Score completions with the reward inside a model: returns, rewards of every token, and a page that shows them.

```bash
trl-irl score --model outputs/gsm8k/irl_full --dataset_name completions.jsonl --output rewards.parquet \
    --html rewards.html
```
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from .task_arguments import TaskArguments, load_rows


_CHUNK = 256  # rows between two saves
_SUFFIXES = (".parquet", ".jsonl")


@dataclass
class ScoreArguments(TaskArguments):
    """
    Arguments of the `score` command beside those of the task.

    Args:
        model (`str`):
            Folder, Hub id or adapter whose reward it is.
        kind (`str`, *optional*, defaults to `"soft_q"`), ref_model (`str`, *optional*), gamma (`float`, *optional*),
        terminal_value (`str`, *optional*), batch_size (`int`, *optional*, defaults to `8`), dtype (`str`, *optional*):
            See [`SoftQReward`].
        split (`str`, *optional*, defaults to `"train"`)
        num_rows (`int`, *optional*):
            Only the first so many rows.
        output (`str`, *optional*, defaults to `"outputs/rewards.parquet"`):
            A Parquet or JSONL file. A run that was killed goes on where it was.
        html (`str`, *optional*):
            A page to write, with the tokens of the first `html_rows` completions coloured by reward.
        html_rows (`int`, *optional*, defaults to `100`)
    """

    model: str | None = field(default=None, metadata={"help": "Folder, Hub id or adapter whose reward it is."})
    kind: str = field(
        default="soft_q", metadata={"help": "Which reward.", "choices": ["soft_q", "log_ratio", "advantage"]}
    )
    ref_model: str | None = field(default=None, metadata={"help": "The reference of log_ratio."})
    gamma: float | None = field(default=None, metadata={"help": "Discount; the model's own if unset."})
    terminal_value: str | None = field(
        default=None, metadata={"help": "The state after a stop token: zero or mask; the model's own if unset."}
    )
    split: str = field(default="train", metadata={"help": "The split to score."})
    num_rows: int | None = field(default=None, metadata={"help": "Only the first so many rows."})
    batch_size: int = field(default=8, metadata={"help": "Completions at a time."})
    dtype: str = field(
        default="auto",
        metadata={"help": "The model's data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    output: str = field(default="outputs/rewards.parquet", metadata={"help": "A .parquet or .jsonl file."})
    html: str | None = field(default=None, metadata={"help": "A page with tokens coloured by reward."})
    html_rows: int = field(default=100, metadata={"help": "Completions on that page."})

    def __post_init__(self):
        self.task_data()  # is the task one?
        if self.model is None:
            raise ValueError("No model. Set `model` to a folder, a Hub id or an adapter.")
        for name in ("num_rows", "batch_size", "html_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}: {getattr(self, name)}` is out of range. Set it to 1 or more.")
        if Path(self.output).suffix not in _SUFFIXES:
            raise ValueError(
                f"`output: {self.output}` is neither of {', '.join(_SUFFIXES)}: name a file of that kind."
            )
        if self.terminal_value not in (None, "zero", "mask"):
            raise ValueError(f"`terminal_value: {self.terminal_value}` must be zero or mask.")


def score_rows(arguments: ScoreArguments, rows: list[dict], parts: Path) -> list[dict]:
    """Every row with its numbers; those of finished chunks are read from `parts`, the others written there."""
    from functools import cache

    from tqdm.auto import tqdm

    from ..rewards import SoftQReward
    from ..rewards.token_pieces import token_pieces
    from ..text.encode import asked

    @cache
    def reward():
        keys = ("kind", "ref_model", "gamma", "terminal_value", "batch_size", "dtype")
        return SoftQReward(arguments.model, **{key: getattr(arguments, key) for key in keys})

    found = []
    for start in tqdm(range(0, len(rows), _CHUNK), desc="Scoring", unit=f"{_CHUNK} rows", leave=False):
        chunk = rows[start : start + _CHUNK]
        part = parts / f"{start}-{_digest(arguments, chunk)}.json"
        if not part.is_file():
            prompts, completions = ([row[key] for row in chunk] for key in ("prompt", "completion"))
            scored = [
                {
                    "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
                    "completion": completion,
                    "sum": one.sum,
                    "discounted": one.discounted,
                    "mean": one.mean,
                    "log_likelihood": one.log_likelihood,
                    "initial_value": one.initial_value if len(one.v) else None,
                    "tokens": token_pieces(reward().tokenizer, one.token_ids),
                    **{name: getattr(one, name).tolist() for name in ("token_ids", "rewards", "has_reward", "q", "v")},
                }
                for prompt, completion, one in zip(
                    prompts, completions, reward().score([asked(row) for row in chunk], completions), strict=True
                )
            ]
            unfinished = part.with_suffix(".part")
            unfinished.write_text(json.dumps(scored), encoding="utf-8")
            os.replace(unfinished, part)
        found += json.loads(part.read_text(encoding="utf-8"))
    return found


def _digest(arguments: ScoreArguments, chunk: list[dict]) -> str:
    from ..text.encode import asked
    from .loaded_models import weights_of

    keys = ("model", "kind", "ref_model", "gamma", "terminal_value", "dtype")
    told = {key: getattr(arguments, key) for key in keys}
    told |= {"format": 3, "weights": [weights_of(arguments.model), weights_of(arguments.ref_model or "")]}
    # Of several messages, the text is not all.
    told["rows"] = [[asked(row), getattr(row["completion"], "messages", row["completion"])] for row in chunk]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def main(arguments: ScoreArguments) -> None:
    """Score the rows and write them."""
    import shutil

    from datasets import Dataset
    from transformers import AutoTokenizer

    from ..rewards.heatmap import write_heatmap
    from ..tasks.files import check_local_model, check_writable, remove_if_empty
    from ..text.encode import encode_rows

    for key in ("model", "ref_model"):
        if getattr(arguments, key) is not None:
            check_local_model(getattr(arguments, key), key)
    output = Path(arguments.output)
    for key in ("output", "html"):
        if getattr(arguments, key) is not None:
            if Path(getattr(arguments, key)).is_dir():
                raise ValueError(f"`{key}: {getattr(arguments, key)}` is a folder. Name a file in it.")
            check_writable(str(Path(getattr(arguments, key)).parent), key)
    rows = load_rows(arguments, arguments.num_rows)
    encode_rows(AutoTokenizer.from_pretrained(arguments.model), rows, f"`{arguments.split}`")  # can each be read?
    parts = output.with_name(f"{output.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    try:
        scored = score_rows(arguments, rows, parts)
    except ValueError:
        remove_if_empty(str(parts))
        raise
    unfinished = output.with_name(f"{output.name}.part")
    table = Dataset.from_list(scored)
    table.to_parquet(unfinished) if output.suffix == ".parquet" else table.to_json(unfinished)
    os.replace(unfinished, output)
    if arguments.html is not None:
        title = f"{arguments.kind} rewards of {arguments.model}"
        write_heatmap(scored[: arguments.html_rows], Path(arguments.html), title)
    shutil.rmtree(parts)  # not before all is written
    print(f"{len(scored)} completions, mean return {sum(row['sum'] for row in scored) / len(scored):+.3f}: {output}")
    if arguments.html is not None:
        print(f"Page: {arguments.html}")


def make_parser():
    from .parser import RecipeParser

    return RecipeParser((ScoreArguments,), prog="trl-irl score")


def run(argv: list[str] | None = None) -> int:
    """The command: what is wrong becomes one message; the exit status is 0, or 2 then."""
    from .failures import run_reporting

    def kept(arguments: ScoreArguments) -> str:
        return f"The same command goes on from what was scored, which is in {arguments.output}.parts."

    return run_reporting(make_parser(), main, argv, kept)


if __name__ == "__main__":
    from trl_irl.commands.failures import leave

    leave(run())
