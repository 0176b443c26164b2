"""Demonstrations as token ids beside the prompts that a policy samples for, in the very tokens that it would write."""

from __future__ import annotations

from collections.abc import Collection

from accelerate import PartialState
from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase

from ..rewards.held_out import completion_text, encode, prompt_ids


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
    columns = set(dataset.column_names or next(iter(dataset)))
    missing = [column for column in ("prompt", "completion") if column not in columns]
    if missing:
        raise ValueError(
            f"The {name} dataset has the columns {', '.join(sorted(columns))}, and no `{missing[0]}`. The policy "
            "samples completions of `prompt`, and the discriminator compares them with `completion`, the expert's: "
            "rename the columns, or split the text into both (`trl-irl prepare`)."
        )


def expert_ids(
    tokenizer: PreTrainedTokenizerBase, row: dict, stop_tokens: Collection[int], max_length: int, template: dict
) -> tuple[list[int], list[int]]:
    """
    Token ids of a row's prompt and completion, such that nothing but what is said tells them from a policy's: they go
    on from the prompt's own tokens (tokenised as one, the last of the prompt may merge with what follows), and end
    after the stop token (a chat template may write a newline there) or where the policy would be cut.

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
    text = completion_text(row["completion"])
    prompt = prompt_ids(tokenizer, row["prompt"], **template)
    ids, _ = encode(tokenizer, {"prompt": row["prompt"], "completion": text}, **template)
    completion = ids[len(prompt) :]
    if isinstance(row["prompt"], str) and ids[: len(prompt)] != prompt:
        completion = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    end = next((i + 1 for i, token in enumerate(completion) if token in stop_tokens), len(completion))
    return prompt, completion[: min(end, max_length)]


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

    def add(row: dict) -> dict:
        prompt, completion = expert_ids(tokenizer, row, stop_tokens, max_length, template)
        return {PROMPT: prompt, COMPLETION: completion}

    told = {} if isinstance(dataset, IterableDataset) else {"desc": f"Tokenizing {name} dataset"}
    with PartialState().main_process_first():
        return dataset.map(add, remove_columns=["completion"], **told)
