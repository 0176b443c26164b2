"""What PPO starts from: prompts as token ids, a tokenizer that pads, what the reward needs, and demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


_DEMONSTRATIONS = 256  # to calibrate a reward on
TRIED = 256  # rows that a task's own score is tried on before anything loads


def load_prompts(script_args, tokenizer, training_args) -> dict[str, list[dict]]:
    """
    The rows of the training split and, if there is one, of the test split: each with `input_ids`, the prompt's tokens,
    beside its columns. Prompts longer than `max_prompt_length` are dropped, and counted on the terminal.

    Raises:
        `ValueError`: a split is missing, has no prompts, or none that is short enough.
    """
    from ..tasks.columns import format_row
    from ..tasks.data import load_task
    from ..tasks.rows import BadRows
    from ..text.encode import asked, prompt_ids
    from ..text.messages import naming_row

    data = script_args.task_data(needs_target=False)
    splits = load_task(data, script_args.dataset_train_split, formatted=False)
    if script_args.dataset_train_split not in splits:
        raise ValueError(
            f"`dataset_train_split: {script_args.dataset_train_split}` is not among the dataset's splits, which are "
            f"{', '.join(splits)}."
        )
    found = {}
    for name in (script_args.dataset_train_split, script_args.dataset_test_split):
        if name not in splits:
            continue
        rows, dropped, bad = [], 0, BadRows(script_args.on_bad_row, f"`{name}`")
        for i, row in enumerate(splits[name]):
            where = f"Row {i} of `{name}`"
            with bad.reading(i):
                if "input_ids" not in row or "prompt" in row:
                    row = format_row(row, data, where, reference=False)
                with naming_row(where):
                    ids = row["input_ids"] if "input_ids" in row else prompt_ids(tokenizer, asked(row))
                if 0 < len(ids) <= training_args.max_prompt_length:
                    rows.append({**row, "input_ids": list(ids)})
                else:
                    dropped += 1
        left_out = bad.tell(len(splits[name]))
        if left_out and training_args.process_index == 0:
            print(f"Note: {left_out}")
        if dropped and training_args.process_index == 0:
            print(f"{name}: {dropped} of {dropped + len(rows)} prompts are empty or longer than "
                  f"`max_prompt_length: {training_args.max_prompt_length}` tokens, and left out.")  # fmt: skip
        if not rows:
            raise ValueError(
                f"Not one of the {dropped} prompts of `{name}` has at most `max_prompt_length: "
                f"{training_args.max_prompt_length}` tokens. Raise it, or shorten prompts with `trl-irl prepare`."
            )
        found[name] = rows
    return found


def load_tokenizer(path: str, config, use_peft: bool, eos_token: str | None = None):
    """
    The policy's tokenizer, padding on the left, with a padding token that ends no response: PPO tells the end of a
    response by its first padding token, so that otherwise the policy would never learn to end. It may be one more than
    the model's vocabulary has.

    Raises:
        `ValueError`: there is no such token, and no room for one in a model that an adapter leaves as it is.
    """
    from ..rewards.adapters import tokenizer_of
    from ..text.stop_tokens import stop_token_ids

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


def metric_reward(metric: str, score, rows: Sequence[dict], tokenizer, tried: int = 1):
    """
    A function of token ids, for [`~rewards.RewardFunctionModel`]: what `score(response, row)` gives as `metric`. Of
    rows with the same prompt, and other columns that differ, the first is taken for the first such prompt in a call,
    the second for the second, and so on: right for batches in the order of the rows. PPO shuffles them, see
    [`check_one_row_a_prompt`]. An empty response to the first `tried` rows is scored at once: one, since a function of
    the user's may be dear, or count its calls.

    Raises:
        `ValueError`: one of these cannot be scored so.
    """
    from ..tasks.own_task import OneNumber

    by_prompt = _rows_by_prompt(rows)

    def one(response: str, row: dict) -> float:
        found = score(response, row)
        if isinstance(found, OneNumber):  # it has no name but the function's
            return next(iter(found.values()))
        if metric not in found:
            raise ValueError(f"it gives {', '.join(found) or 'nothing'}, and not `reward_metric: {metric}`")
        return float(found[metric])

    def function(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
        texts, seen, rewards = tokenizer.batch_decode(responses, skip_special_tokens=True), Counter(), []
        for prompt, text in zip(map(tuple, prompts), texts, strict=True):
            candidates = by_prompt[prompt]
            rewards.append(one(text, candidates[seen[prompt] % len(candidates)]))
            seen[prompt] += 1
        return rewards

    for i, row in enumerate(rows[:tried]):
        try:
            one("", row)
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
    ambiguous = [(prompt, found) for prompt, found in _rows_by_prompt(rows).items() if len(found) > 1]
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
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        of_prompt = found.setdefault(tuple(row["input_ids"]), [])
        if row not in of_prompt:
            of_prompt.append(row)
    return found


def after_eos(tokenizer, row: dict) -> list[int]:
    """What the chat template writes after the EOS token of an answer; nothing for a prompt that is text or ids."""
    from ..text.encode import encode

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
    from ..text.encode import encode_rows
    from ..text.stop_tokens import cut_at_stop

    if not all("completion" in row and "prompt" in row for row in rows[:_DEMONSTRATIONS]):
        raise ValueError("`normalize_reward` needs demonstrations: a column `completion` beside `prompt`.")
    found = []
    for prompt, completion, _ in encode_rows(tokenizer, rows[:_DEMONSTRATIONS], "the demonstrations"):
        # As PPO cuts a response: a chat template may put a newline after the end of a turn.
        found.append((prompt, cut_at_stop(completion, {tokenizer.eos_token_id})))
    return found
