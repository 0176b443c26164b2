"""
Make a dataset ready for training: format it, cut over-long prompts, check lengths, split off validation, save it.

```bash
trl-irl prepare --task summarization --dataset_name EdinburghNLP/xsum --source_column document \
    --target_column summary --tokenizer Qwen/Qwen2.5-0.5B --max_length 512 --truncate_field document \
    --output_dir data/xsum
trl-irl irl --config recipe.yaml --dataset_name data/xsum
```
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..tasks.arguments import EndArguments, TaskArguments
from ..tasks.columns import columns_of_prompt
from .console.command import command


@dataclass
class PrepareArguments(EndArguments, TaskArguments):
    """
    Arguments of the `prepare` command beside those of the task.

    Args:
        tokenizer (`str`):
            Folder or Hub id of the tokenizer (or of the model to train), by which lengths are counted.
        num_train_rows (`int`, *optional*):
            Training rows to generate, or to keep.
        max_prompt_length, max_completion_length, max_length (`int`, *optional*):
            Most tokens of a prompt, of a completion with its EOS, and of both together.
        truncate_field (`str`, *optional*):
            What to shorten where a prompt is too long: `prompt`, whose closing line (`TL;DR:`) stays, or one of the
            columns it is made from. If unset, nothing is.
        truncate_text (`str`, *optional*, defaults to a newline):
            Cut before one of these; where none is early enough, before a word.
        check_length_correctness (`bool`, *optional*, defaults to `True`):
            Whether a row that is still too long is an error. If `False`, it is kept, and training will cut or drop it.
        drop_too_long (`bool`, *optional*, defaults to `False`):
            Whether to leave such rows out instead, and count them.
        validation_fraction (`float`, *optional*, defaults to `0.1`):
            Part of the training rows to split off as `validation`, where there is none; 0 is none.
        reference_column (`str`, *optional*):
            A column to copy the completion to, for reward functions of `trl rloo` and `trl grpo`, from which TRL keeps
            the column `completion`.
        output_dir (`str`, *optional*, defaults to `"outputs/data"`):
            Gets a Parquet file per split; `dataset_name` of a recipe can name it. Refused if it holds other data.
        push_to_hub (`bool`, *optional*, defaults to `False`)
        hub_dataset_id (`str`, *optional*):
            `user/name` to push to.
        hub_private (`bool`, *optional*, defaults to `True`)
    """

    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id by which lengths are counted."})
    num_train_rows: int | None = field(default=None, metadata={"help": "Training rows to generate, or to keep."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Most tokens of a prompt."})
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Most tokens of a completion, its EOS included."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Most tokens of prompt and completion."})
    truncate_field: str | None = field(
        default=None, metadata={"help": "What to shorten in an over-long prompt: prompt, or a column it is made from."}
    )
    truncate_text: str = field(default="\n", metadata={"help": "Cut before one of these."})
    check_length_correctness: bool = field(
        default=True, metadata={"help": "Whether a row that is still too long is an error."}
    )
    drop_too_long: bool = field(default=False, metadata={"help": "Leave rows that are still too long out."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Part of the training rows to split off as validation, if there is none."}
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Copy the completion to this column, for reward functions of RLOO and GRPO."}
    )
    output_dir: str = field(default="outputs/data", metadata={"help": "Gets a Parquet file per split."})
    push_to_hub: bool = field(default=False, metadata={"help": "Whether to push it to the Hub."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "user/name to push to."})
    hub_private: bool = field(default=True, metadata={"help": "Whether the pushed dataset is private."})

    def __post_init__(self):
        self.task_data()  # is the task one?
        if self.tokenizer is None:
            raise ValueError("No tokenizer. Set `tokenizer` to the model to train: lengths are counted in its tokens.")
        for name in ("num_train_rows", "max_prompt_length", "max_completion_length", "max_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}: {getattr(self, name)}` is out of range. Set it to 1 or more.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"`validation_fraction: {self.validation_fraction}` must be from 0 (none) to below 1.")
        if self.truncate_field is not None and self.max_prompt_length is None and self.max_length is None:
            raise ValueError(
                f"`truncate_field: {self.truncate_field}` shortens prompts above a limit, and there is none. Set "
                "`max_prompt_length` or `max_length`."
            )
        if self.truncate_field == "prompt" and self.source_column is not None:
            raise ValueError(
                "`truncate_field: prompt` with `source_column`: a recipe with these columns would make the prompt "
                f"anew, as long as before. Name the column that is to be shortened, such as {self.source_column}."
            )
        if self.truncate_field not in (None, "prompt") and self.source_column is None:
            raise ValueError(
                f"`truncate_field: {self.truncate_field}` is a column that prompts are made from, and these are not "
                "made from columns. Set it to prompt, or set `source_column` and `target_column`."
            )
        if self.truncate_field is not None and self.truncate_field not in self.prompt_columns():
            raise ValueError(
                f"`truncate_field: {self.truncate_field}` is no column that prompts are made from "
                f"({', '.join(self.prompt_columns())}): shortening it would leave the prompt as long, and what is to "
                "be learned cut. Name one of those."
            )
        if self.reference_column in ("prompt", "completion", "completion_ids"):
            raise ValueError(
                f"`reference_column: {self.reference_column}` is a column that TRL keeps from reward functions. Name "
                "it otherwise, such as reference."
            )
        if self.push_to_hub and self.hub_dataset_id is None:
            raise ValueError("`push_to_hub` needs `hub_dataset_id: user/name` to push to.")

    def prompt_columns(self) -> list[str]:
        """What `truncate_field` may name: the prompt itself, or a column that it is made from."""
        if self.source_column is None:
            return ["prompt"]
        return list(dict.fromkeys(["prompt", *columns_of_prompt(self.task_data())]))

    def limits(self) -> dict[str, int | None]:
        return {
            "prompt": self.max_prompt_length,
            "completion": self.max_completion_length,
            "total": self.max_length,
        }


def _with_completion(row: dict, where: str) -> dict:
    """A row of `references` alone with the first of them as the completion, which is what trainers read."""
    from ..tasks.columns import as_chat, with_references

    if row.get("prompt") is None:
        return row
    filled = with_references(row, where)
    return filled if filled is row or isinstance(row["prompt"], str) else as_chat(filled)


def main(arguments: PrepareArguments) -> None:
    """Load, shorten, check, split and save."""
    from functools import partial

    from datasets import DatasetDict
    from tqdm.auto import tqdm

    from ..evaluation.rendering import print_rows
    from ..rewards.adapters import reads_apart, tokenizer_of
    from ..tasks.columns import as_prompt_completion
    from ..tasks.files import check_local_path, check_no_other_splits, check_writable
    from ..tasks.prepare import (
        DISTRIBUTION_HEADER,
        Pace,
        as_dataset,
        carved,
        check_carving,
        check_filled,
        measure,
        save_splits,
        shorten,
        with_reference,
    )
    from ..tasks.splits import load_task
    from ..text.encode import check_eos, encode_row, prompt_ids
    from ..text.messages import naming_row
    from .console.hub import check_repository, pushing

    check_local_path(arguments.tokenizer, "tokenizer")
    check_writable(arguments.output_dir, "output_dir")
    if arguments.push_to_hub:
        check_repository(arguments.hub_dataset_id, "hub_dataset_id", arguments.hub_private, "dataset")
    splits = load_task(arguments.task_data())
    carves = arguments.validation_fraction > 0 and "train" in splits and "validation" not in splits
    check_no_other_splits(arguments.output_dir, "output_dir", [*splits, *["validation"] * carves])
    if carves:
        check_carving(len(splits["train"]), arguments.validation_fraction)
    tokenizer = tokenizer_of(arguments.tokenizer, "tokenizer", arguments.eos_token)
    check_eos(tokenizer)
    apart = reads_apart(arguments.tokenizer)

    prepared, table, problems = {}, [list(DISTRIBUTION_HEADER)], []
    for name, split in splits.items():
        rows = [_with_completion(row, f"Row {i} of `{name}`") for i, row in enumerate(split)]
        check_filled(rows, name)

        def ids_and_labels(i: int, row: dict, name=name) -> tuple[list[int], list[int]]:
            where = f"Row {i} of `{name}`"
            with naming_row(where):
                return encode_row(tokenizer, as_prompt_completion(row, where), apart=apart).ids_and_labels

        if arguments.truncate_field is not None:

            def prompt_and_total(i: int, row: dict, encode=ids_and_labels, name=name) -> tuple[int, int]:
                if arguments.max_length is not None or not isinstance(row.get("prompt"), str):
                    ids, labels = encode(i, row)
                    return sum(label == -100 for label in labels), len(ids)
                where = f"Row {i} of `{name}`"
                with naming_row(where):
                    return len(prompt_ids(tokenizer, as_prompt_completion(row, where), apart)), 0

            pace, numbered = Pace(), enumerate(tqdm(rows, desc="Shortening prompts", leave=False, disable=None))
            how = (arguments.task_data(), arguments.truncate_field, arguments.truncate_text, arguments.limits())
            shortened = [shorten(row, *how, partial(prompt_and_total, i), pace) for i, row in numbered]
            cut = sum(new is not old for new, old in zip(shortened, rows, strict=True))
            print(f"{name}: {cut} of {len(rows)} prompts shortened.")
            rows = shortened
        lengths = measure(rows, ids_and_labels)
        table += [[name, *cells] for cells in lengths.distribution(arguments.limits())]
        too_long = lengths.too_long(arguments.limits())
        if arguments.drop_too_long:
            dropped = {i for above in too_long.values() for i in above}
            rows = [row for i, row in enumerate(rows) if i not in dropped]
            print(f"{name}: {len(dropped)} rows longer than the limits left out, {len(rows)} kept.")
            if not rows:
                raise ValueError(f"Every row of `{name}` is longer than the limits. Raise them.")
        for part, above in too_long.items():
            if above and not arguments.drop_too_long:
                size = getattr(lengths, part)[above[0]]
                problems.append(f"{len(above)} of {name} in their {part} (the first is row {above[0]}, {size} tokens)")
        whole = [with_reference(row, arguments.reference_column) for row in rows]
        prepared[name] = as_dataset(whole, f"`{name}`")
    print_rows(table, "Lengths in tokens")
    if problems and arguments.check_length_correctness:
        raise ValueError(
            f"Rows are longer than the limits: {'; '.join(problems)}. Raise `max_prompt_length`, "
            "`max_completion_length` or `max_length`, shorten prompts with `truncate_field`, set "
            "`drop_too_long: true` to leave them out, or `check_length_correctness: false` to keep them as they are."
        )
    if carves:
        check_carving(len(prepared["train"]), arguments.validation_fraction)
        prepared |= carved(prepared["train"], arguments.validation_fraction, arguments.task_seed)
    save_splits(DatasetDict(prepared), Path(arguments.output_dir))
    counts = ", ".join(f"{len(split)} {name}" for name, split in prepared.items())
    print(f"{counts}: {arguments.output_dir}")
    if arguments.push_to_hub:
        with pushing(arguments.hub_dataset_id, arguments.output_dir):
            DatasetDict(prepared).push_to_hub(arguments.hub_dataset_id, private=arguments.hub_private)
        print(f"Pushed to the Hub as {arguments.hub_dataset_id}.")


make_parser, run = command("prepare", PrepareArguments, __doc__, main)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
