"""
Preference pairs for `trl reward`, from a task whose answers can be checked: references against corrupted ones, or a
model's own right samples against its wrong ones.

```bash
trl-irl reward-data --task gsm8k --output_dir data/gsm8k_pairs
trl-irl reward-data --task gsm8k --model outputs/gsm8k/mle --num_samples 8 --output_dir data/gsm8k_pairs
trl reward --model_name_or_path outputs/gsm8k/mle --dataset_name data/gsm8k_pairs --output_dir outputs/gsm8k/reward
```
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.loaded_models import LoadedModel, check_lengths
from ..tasks.arguments import BadRowArguments, EndArguments, TaskArguments
from ..tasks.rows import BadRows, readable
from ..tasks.scoring import completion_score, default_metrics, has_completion_score, has_own_score
from .console.command import command


@dataclass
class RewardDataArguments(BadRowArguments, EndArguments, TaskArguments):
    """
    Arguments of the `reward-data` command beside those of the task.

    Args:
        num_train_rows (`int`, *optional*):
            Training rows to generate, or to keep.
        model (`str`, *optional*):
            Folder, Hub id or adapter whose samples make the pairs; if unset, references are set against corrupted
            ones, which needs a task with a final answer (`arithmetic`, `gsm8k`).
        reward_model_path (`str`, *optional*):
            A reward model (of `trl reward`) whose judgement says which sample is better, in place of the task's score;
            prompts then need no references.
        num_samples (`int`, *optional*, defaults to `8`), temperature (`float`, *optional*, defaults to `1.0`),
        max_new_tokens (`int`, *optional*, defaults to `256`), batch_size (`int`, *optional*, defaults to `64`),
        dtype (`str`, *optional*, defaults to `"auto"`):
            Of the sampling.
        pairs_per_prompt (`int`, *optional*, defaults to `1`):
            At most so many.
        seed (`int`, *optional*, defaults to `0`)
        output_dir (`str`, *optional*, defaults to `"outputs/pairs"`):
            Gets a Parquet file per split: `prompt`, `chosen`, `rejected`.
    """

    num_train_rows: int | None = field(default=None, metadata={"help": "Training rows to generate, or to keep."})
    model: str | None = field(default=None, metadata={"help": "Whose samples make the pairs; references if unset."})
    reward_model_path: str | None = field(
        default=None, metadata={"help": "A model of `trl reward` that says which sample is better."}
    )
    num_samples: int = field(default=8, metadata={"help": "Completions per prompt."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampling, above 0."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    batch_size: int = field(default=64, metadata={"help": "Sequences generated together."})
    dtype: str = field(
        default="auto",
        metadata={"help": "The model's data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    pairs_per_prompt: int = field(default=1, metadata={"help": "Pairs of one prompt, at most."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling, corruption and choice."})
    output_dir: str = field(default="outputs/pairs", metadata={"help": "Gets a Parquet file per split."})

    def __post_init__(self):
        self.task_data(needs_target=False)  # is the task one?
        for name in ("num_train_rows", "num_samples", "max_new_tokens", "batch_size", "pairs_per_prompt"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}: {getattr(self, name)}` is out of range. Set it to 1 or more.")
        if self.model is None and "accuracy" not in default_metrics(self.task):
            raise ValueError(
                f"`task: {self.task}` has no final answer that could be made wrong. Set `model`, whose better and "
                "worse samples make the pairs, or `task` to arithmetic or gsm8k."
            )
        if self.model is not None and self.reward_model_path is None and not has_completion_score(self.task):
            raise ValueError(
                f"`task: {self.task}` is judged over a whole corpus, so no number says which of two samples is "
                "better. Set `reward_model_path`, or `task` to a function of your own (`my_module:score`)."
            )
        if self.reward_model_path is not None and self.model is None:
            raise ValueError("`reward_model_path` judges samples. Set `model`, whose samples it is to judge.")
        if self.model is not None and (self.temperature <= 0 or self.num_samples < 2):
            raise ValueError("Pairs of samples need a `temperature` above 0 and two `num_samples` or more.")


def values_by_score(scorer) -> Callable[[list[str], dict], list[float | None]]:
    """
    One number of a [`Scorer`] for each of a row's completions, `None` where it does not give it: that of the first
    name that it gives, for all rows.
    """
    name = None

    def values(texts: list[str], row: dict) -> list[float | None]:
        nonlocal name
        scored = [scorer.scores_of(text, row) for text in texts]
        name = name or next((next(iter(one)) for one in scored if one), None)
        return [one.get(name) if one else None for one in scored]

    return values


def values_by_model(path: str, dtype: str) -> Callable[[list[str], dict], list[float]]:
    """What a reward model gives each of a row's completions, all of which ended by themselves."""
    from ..rewards import PreferenceReward
    from ..text.encode import asked

    reward = PreferenceReward(path, dtype=dtype)
    return lambda texts, row: reward([asked(row)] * len(texts), texts)


def pairs_of(arguments: RewardDataArguments, rows: list[dict], model, values_of) -> list[dict]:
    """The pairs of one split; `model` is [`~evaluation.loaded_models.LoadedModel`] or `None`."""
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
    values = [values_of(group, row) for group, row in zip(texts, rows, strict=True)]
    return sampled_pairs(rows, texts, values, arguments.pairs_per_prompt, arguments.seed)


def main(arguments: RewardDataArguments) -> None:
    """Make the pairs of every split and save them."""
    from ..evaluation.scoring import Scorer
    from ..rewards.frozen_models import check_language_model
    from ..rewards.preference_reward import check_one_label
    from ..tasks.files import check_local_model, check_no_other_splits, check_writable
    from ..tasks.prepare import as_dataset, save_splits
    from ..tasks.splits import load_task

    model = None
    judged = arguments.reward_model_path is not None or has_own_score(arguments.task)
    if arguments.reward_model_path is not None:
        check_local_model(arguments.reward_model_path, "reward_model_path")
        check_one_label(arguments.reward_model_path, "reward_model_path")
    if arguments.model is not None:
        check_local_model(arguments.model, "model")
        check_language_model(arguments.model, "model")
        model = LoadedModel(
            arguments.model, arguments.dtype, arguments.batch_size, eos_token=arguments.eos_token, key="model"
        )
    check_writable(arguments.output_dir, "output_dir")
    scorer = Scorer(completion_score(arguments.task))  # is a function of the user's there?
    data, pairs_by_split, by_split = arguments.task_data(needs_target=False), {}, {}
    for name, split in load_task(data, formatted=False).items():
        bad = BadRows(arguments.on_bad_row, f"`{name}`")
        rows = readable(split, data, bad, reference=not judged)
        if arguments.model is not None:
            check_lengths(arguments.model, model, rows, arguments.max_new_tokens, False, bad)
        if left_out := bad.tell(len(split)):
            print(f"Note: {left_out}")
        by_split[name] = [row for i, row in rows.items() if i not in bad.left_out]
    check_no_other_splits(arguments.output_dir, "output_dir", by_split)
    if arguments.reward_model_path is not None:
        values_of = values_by_model(arguments.reward_model_path, arguments.dtype)
    else:
        values_of = values_by_score(scorer)
    for name, rows in by_split.items():
        pairs = pairs_of(arguments, rows, model, values_of)
        print(f"{name}: {len(pairs)} pairs of {len({str(pair['prompt']) for pair in pairs})} of {len(rows)} prompts.")
        if pairs:
            pairs_by_split[name] = as_dataset(pairs, f"the pairs of `{name}`")
        elif name == "train":  # which comes first: without it, others need not be sampled
            break
    failed = scorer.failures
    if failed.count:
        print(f"Note: {failed.count} samples could not be scored and are left out. The first: {failed.first}")
    if "train" not in pairs_by_split:
        how = (
            f"{failed.count} samples could not be scored, the first since {failed.first}"
            if failed.count
            else "Raise `max_new_tokens`, `num_samples` or `temperature`, or take a model that is right sometimes"
        )
        what = "no prompt of the train split has finished completions of different scores"
        if arguments.model is None:
            what = "no solution of the train split ends in an answer to get wrong, such as `#### 72`"
            how = "Write references so, or set `model`, whose samples are then judged"
        raise ValueError(f"Not one pair: {what}. {how}.")
    save_splits(pairs_by_split, Path(arguments.output_dir))
    for name in by_split.keys() - pairs_by_split.keys():  # of an earlier run
        (Path(arguments.output_dir) / f"{name}.parquet").unlink(missing_ok=True)
    print(f"Pairs: {arguments.output_dir}")


make_parser, run = command("reward-data", RewardDataArguments, __doc__, main)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
