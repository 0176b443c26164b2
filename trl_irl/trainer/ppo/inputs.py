"""What PPO starts from beside its models: a tokenizer that pads, a reward of rows, and demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ...rewards.adapters import tokenizer_of
from ...text.encode import encode, encode_rows
from ...text.stop_tokens import cut_at_stop, stop_token_ids


_DEMONSTRATIONS = 256  # to calibrate a reward on


def load_tokenizer(path: str, config, use_peft: bool, eos_token: str | None = None):
    """
    The policy's tokenizer, padding on the left, with a padding token that ends no response: PPO tells the end of a
    response by its first padding token, so that otherwise the policy would never learn to end. It may be one more than
    the model's vocabulary has.

    Raises:
        `ValueError`: there is no such token, and no room for one in a model that an adapter leaves as it is.
    """
    tokenizer = tokenizer_of(path, "model_name_or_path", eos_token, padding_side="left")
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of {path} has no EOS token, so no response ever ends. Name one with `eos_token`."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stop_token_ids(path, tokenizer):
        if use_peft and len(tokenizer) >= config.get_text_config().vocab_size:
            raise ValueError(
                f"The tokenizer of {path} has no padding token beside EOS and what else ends a response, and the "
                f"model's vocabulary of {config.get_text_config().vocab_size} has no room for one, which an adapter "
                "could not make. Give the tokenizer a `pad_token` that prompts and responses never have, and save it, "
                "or train all weights."
            )
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def reward_of_rows(number: Callable[[str, dict], float], rows: Sequence[dict], tokenizer, tried: int = 1):
    """
    A function of token ids, for [`~trainer.ppo.ppo_reward_model.RewardFunctionModel`]: what `number(response, row)`
    gives. Of rows with the same prompt, and other columns that differ, the first is taken for the first such prompt in
    a call, the second for the second, and so on: right for batches in the order of the rows. PPO shuffles them, see
    [`check_one_row_a_prompt`]. An empty response to the first `tried` rows is scored at once: one, since a function of
    the user's may be dear, or count its calls.

    Raises:
        `ValueError`: one of these cannot be scored so.
    """
    by_prompt = _rows_by_prompt(rows)

    def function(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
        texts, seen, rewards = tokenizer.batch_decode(responses, skip_special_tokens=True), Counter(), []
        for prompt, text in zip(map(tuple, prompts), texts, strict=True):
            candidates = by_prompt[prompt]
            rewards.append(number(text, candidates[seen[prompt] % len(candidates)]))
            seen[prompt] += 1
        return rewards

    for i, row in enumerate(rows[:tried]):
        try:
            number("", row)
        except Exception as error:  # it may be a user's function
            raise ValueError(
                "The task's scoring function cannot be the reward: for an empty response to "
                f"{'the first prompt' if i == 0 else f'prompt {i}'}, {type(error).__name__}: {error}."
            ) from error
    return function


def check_one_row_a_prompt(rows: Sequence[dict]) -> None:
    """
    PPO hands a reward token ids in an order of its own, from which it cannot be known whose prompt one is of several
    rows'.

    Raises:
        `ValueError`: rows with the same prompt differ in another column.
    """
    ambiguous = [
        (prompt, rows_of_prompt) for prompt, rows_of_prompt in _rows_by_prompt(rows).items() if len(rows_of_prompt) > 1
    ]
    if ambiguous:
        first, second, *_ = ambiguous[0][1]
        differ = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
        raise ValueError(
            f"`reward_metric` judges a response by its prompt's row, and {len(ambiguous)} prompts have several rows "
            f"that differ, the first {str(first.get('prompt', ambiguous[0][0]))[:60]!r} in {', '.join(differ)}: PPO "
            "does not tell which of them a response is for. Keep one row of each prompt, or drop the columns that the "
            "score does not need."
        )


def _rows_by_prompt(rows: Sequence[dict]) -> dict[tuple, list[dict]]:
    """By the prompt's token ids its rows that differ in some column, in order."""
    by_prompt: dict[tuple, list[dict]] = {}
    for row in rows:
        of_prompt = by_prompt.setdefault(tuple(row["input_ids"]), [])
        if row not in of_prompt:
            of_prompt.append(row)
    return by_prompt


def after_eos(tokenizer, row: dict) -> list[int]:
    """What the chat template writes after the EOS token of an answer; nothing for a prompt that is text or ids."""
    prompt = row.get("prompt")
    if not prompt or isinstance(prompt, str) or isinstance(prompt[0], int):
        return []
    ids, _ = encode(tokenizer, {**row, "completion": "x"})
    return ids[::-1][: ids[::-1].index(tokenizer.eos_token_id)][::-1] if tokenizer.eos_token_id in ids else []


def demonstrations_of(rows: Sequence[dict], tokenizer) -> list[tuple[list[int], list[int]]]:
    """
    Token ids of prompts and of the completions that come with them, ended by EOS.

    Raises:
        `ValueError`: there are no completions.
    """
    if not all("completion" in row and "prompt" in row for row in rows[:_DEMONSTRATIONS]):
        raise ValueError("`normalize_reward` needs demonstrations: a column `completion` beside `prompt`.")
    demonstrations = []
    for prompt, completion, _ in encode_rows(tokenizer, rows[:_DEMONSTRATIONS], "the demonstrations", answers=True):
        # As PPO cuts a response: a chat template may put a newline after the end of a turn.
        demonstrations.append((prompt, cut_at_stop(completion, {tokenizer.eos_token_id})))
    return demonstrations
