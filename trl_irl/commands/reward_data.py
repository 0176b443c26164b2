"""
Preference pairs for `trl reward`, from a task whose answers can be checked: references against corrupted ones, or a
model's own right samples against its wrong ones.

```bash
trl-irl reward-data --task gsm8k --output_dir data/gsm8k_pairs
trl-irl reward-data --task gsm8k --model outputs/gsm8k/mle --num_samples 8 --output_dir data/gsm8k_pairs
trl reward --config recipes/gsm8k/reward.yaml --dataset_name data/gsm8k_pairs
```
"""

from dataclasses import dataclass, field
from pathlib import Path

from .loaded_models import LoadedModel
from .task_arguments import TaskArguments, completion_score, default_metrics


@dataclass
class RewardDataArguments(TaskArguments):
    """
    Arguments of the `reward-data` command beside those of the task.

    Args:
        num_train_rows (`int`, *optional*):
            Training rows to generate, or to keep.
        model (`str`, *optional*):
            Folder, Hub id or adapter whose samples make the pairs; if unset, references are set against corrupted
            ones, which needs a task with a final answer (`arithmetic`, `gsm8k`).
        num_samples (`int`, *optional*, defaults to `8`), temperature (`float`, *optional*, defaults to `1.0`),
        max_new_tokens (`int`, *optional*, defaults to `256`), batch_size (`int`, *optional*, defaults to `64`),
        dtype (`str`, *optional*, defaults to `"auto"`):
            Of the sampling.
        pairs_per_prompt (`int`, *optional*, defaults to `1`):
            At most so many.
        seed (`int`, *optional*, defaults to `0`)
        output_dir (`str`, *optional*, defaults to `"outputs/pairs"`):
            Gets a Parquet file a split: `prompt`, `chosen`, `rejected`.
    """

    num_train_rows: int | None = field(default=None, metadata={"help": "Training rows to generate, or to keep."})
    model: str | None = field(default=None, metadata={"help": "Whose samples make the pairs; references if unset."})
    num_samples: int = field(default=8, metadata={"help": "Completions a prompt."})
    temperature: float = field(default=1.0, metadata={"help": "Of the sampling; above 0."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    batch_size: int = field(default=64, metadata={"help": "Sequences generated together."})
    dtype: str = field(
        default="auto",
        metadata={"help": "The model's data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    pairs_per_prompt: int = field(default=1, metadata={"help": "Pairs of one prompt, at most."})
    seed: int = field(default=0, metadata={"help": "Of sampling, corruption and choice."})
    output_dir: str = field(default="outputs/pairs", metadata={"help": "Gets a Parquet file a split."})

    def __post_init__(self):
        self.task_data()  # is the task one?
        for name in ("num_train_rows", "num_samples", "max_new_tokens", "batch_size", "pairs_per_prompt"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}: {getattr(self, name)}` is out of range. Set it to 1 or more.")
        if self.model is None and "accuracy" not in default_metrics(self.task):
            raise ValueError(
                f"`task: {self.task}` has no final answer that could be made wrong. Set `model`, whose better and "
                "worse samples make the pairs, or `task` to arithmetic or gsm8k."
            )
        if self.model is not None and (self.temperature <= 0 or self.num_samples < 2):
            raise ValueError("Pairs of samples need a `temperature` above 0 and two `num_samples` or more.")


def pairs_of(arguments: RewardDataArguments, rows: list[dict], model, score) -> list[dict]:
    """The pairs of one split; `model` is [`~commands.loaded_models.LoadedModel`] or `None`."""
    from ..evaluation.scoring import Scorer
    from ..tasks.preferences import reference_pairs, sampled_pairs
    from ..text.encode import asked

    if model is None:
        return reference_pairs(rows, arguments.pairs_per_prompt, arguments.seed)
    options = {name: getattr(arguments, name) for name in ("temperature", "num_samples", "max_new_tokens", "seed")}
    sampled = model.sample([asked(row) for row in rows], "Sampling", **options)
    # `trl reward` writes an EOS behind every text: one that was cut would be learnt as one that ended there.
    groups = [[completion for completion in group if completion.ended] for group in sampled]
    total, cut = sum(map(len, sampled)), sum(map(len, sampled)) - sum(map(len, groups))
    if cut:
        print(f"{cut} of {total} samples were cut at `max_new_tokens: {arguments.max_new_tokens}` and are left out.")
    texts = [[completion.text for completion in group] for group in groups]
    scorer = Scorer(score)
    scored = [[scorer.scores_of(text, row) for text in group] for group, row in zip(texts, rows, strict=True)]
    values = [[next(iter(one.values())) if one else None for one in group] for group in scored]
    return sampled_pairs(rows, texts, values, arguments.pairs_per_prompt, arguments.seed)


def main(arguments: RewardDataArguments) -> None:
    """Make the pairs of every split and save them."""
    from datasets import Dataset

    from ..rewards.loading import check_language_model
    from ..tasks.files import check_local_model, check_writable
    from ..tasks.task import as_prompt_completion, load_task
    from .prepare import save

    model = None
    if arguments.model is not None:
        check_local_model(arguments.model, "model")
        check_language_model(arguments.model, "model")
        model = LoadedModel(arguments.model, arguments.dtype, arguments.batch_size)
    check_writable(arguments.output_dir, "output_dir")
    score = completion_score(arguments.task)
    found = {}
    for name, split in load_task(arguments.task_data()).items():
        rows = [as_prompt_completion(row, f"Row {i} of `{name}`") for i, row in enumerate(split)]
        pairs = pairs_of(arguments, rows, model, score)
        print(f"{name}: {len(pairs)} pairs of {len({str(pair['prompt']) for pair in pairs})} of {len(rows)} prompts.")
        if pairs:
            found[name] = Dataset.from_list(pairs)
    if "train" not in found:
        raise ValueError(
            "Not one pair: no prompt of the train split has finished completions of different scores. Raise "
            "`max_new_tokens`, `num_samples` or `temperature`, or take a model that is right sometimes."
        )
    save(found, Path(arguments.output_dir))
    print(f"Pairs: {arguments.output_dir}")


def make_parser():
    from .parser import RecipeParser

    return RecipeParser((RewardDataArguments,), prog="trl-irl reward-data")


def run(argv: list[str] | None = None) -> int:
    """The command: what is wrong becomes one message; the exit status is 0, or 2 then."""
    from .failures import run_reporting

    return run_reporting(make_parser(), main, argv)


if __name__ == "__main__":
    from trl_irl.commands.failures import leave

    leave(run())
