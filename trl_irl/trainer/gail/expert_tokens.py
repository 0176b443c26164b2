"""Demonstrations as token ids: they stand beside the policy's prompts, in the tokens that it would write itself."""

from __future__ import annotations

from collections.abc import Collection

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase

from ...text.encode import Encoded, encode_row
from ...text.messages import naming_row
from ...text.stop_tokens import cut_at_stop
from ..runtime.generation_watch import check_prompt
from ..runtime.row_checks import AS_SFT, check_not_empty, check_rows, checked_row, warned_of_seams


logger = get_logger(__name__)
PROMPT, COMPLETION = "expert_prompt_ids", "expert_completion_ids"


def check_completions(dataset, name: str) -> None:
    """
    Raises:
        `ValueError`: a dataset (or one of several by their names) has no prompts, or nothing to imitate.
    """
    if isinstance(dataset, dict):
        for key, value in dataset.items():
            check_completions(value, f"{name} ({key})")
        return
    if dataset is None:
        return
    check_not_empty(dataset, name)
    columns = set(dataset.column_names or next(iter(dataset)))
    missing = [column for column in ("prompt", "completion") if column not in columns]
    if missing:
        raise ValueError(
            f"The {name} dataset has the columns {', '.join(sorted(columns))}, and no `{missing[0]}`. The policy "
            "samples completions of `prompt`, and the discriminator compares them with `completion`, the expert's: "
            "rename the columns, or split the text into both (`trl-irl prepare`)."
        )
    check_rows(dataset, "text", name)


def expert_ids(
    tokenizer: PreTrainedTokenizerBase, row: dict, stop_tokens: Collection[int], max_length: int, template: dict
) -> Encoded:
    """
    Token ids of a row's prompt and completion, and whether they are SFT's: nothing but what is said tells them from a
    policy's, since they go on from the prompt's own tokens, and end after the first stop token (a chat template may
    write a newline there, or more turns) or where the policy would be cut.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        row (`dict`):
            `prompt` and `completion`, text or messages.
        stop_tokens (`Collection[int]`):
            Tokens that end a completion.
        max_length (`int`):
            Longest completion of the policy, in tokens.
        template (`dict`):
            Arguments of the chat template.
    """
    # Without the row's own `tools`: RLOO asks the policy without them.
    encoded = encode_row(tokenizer, {key: row[key] for key in ("prompt", "completion")}, answers=True, **template)
    return encoded._replace(completion=cut_at_stop(encoded.completion, stop_tokens)[:max_length])


def with_expert_ids(dataset, name: str, tokenizer, stop_tokens, max_length: int, template: dict):
    """
    The dataset with the columns `expert_prompt_ids` and `expert_completion_ids` in place of `completion`, which TRL
    would not pass on to reward functions; other columns stay. Several datasets by their names are taken as well, and
    none at all.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):  # as DatasetDict is
        several = {
            key: with_expert_ids(value, f"{name} ({key})", tokenizer, stop_tokens, max_length, template)
            for key, value in dataset.items()
        }
        return type(dataset)(several)

    is_stream = isinstance(dataset, IterableDataset)
    dataset = dataset.with_format(None)  # as numpy's arrays, messages are no lists

    def add(row: dict, i: int) -> dict:
        where = f"Row {i} of the {name} dataset"
        with naming_row(where):
            checked = checked_row(row, where)
            found = expert_ids(tokenizer, checked, stop_tokens, max_length, template)
        check_prompt(len(found.prompt), where)
        # RLOO writes the prompt itself: from what the expert's is written from, with the parts of a text joined.
        ids = {"prompt": checked["prompt"], PROMPT: found.prompt, COMPLETION: found.completion}
        return ids if is_stream else {**ids, AS_SFT: found.as_sft}

    shown = {} if is_stream else {"desc": f"Tokenizing {name} dataset"}
    with PartialState().main_process_first():
        with_ids = dataset.map(add, with_indices=True, remove_columns=["completion"], **shown)
    if is_stream:
        return with_ids
    return warned_of_seams(with_ids, name)
