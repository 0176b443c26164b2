"""Where a completion begins that begins with a turn other than the assistant's, such as a user's or a tool's."""

from __future__ import annotations

import bisect
import os
from typing import TYPE_CHECKING

from .messages import RowError
from .templates import from_template


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Roles whose turns nobody asks a policy for, whatever a template makes of them.
_OTHERS = {"user", "human", "system", "developer", "tool", "function", "ipython", "environment"}


def prompt_unasked(
    tokenizer: PreTrainedTokenizerBase, prompt: list[dict], completion: list[dict], options: dict
) -> str | None:
    """
    The prompt as it is written before a completion that begins with a turn other than the assistant's, which nobody
    asks for; `None` where an answer is asked for.

    Raises:
        `ValueError`: the template writes nothing for that turn, or it cannot be told where it begins.
    """
    first = completion[0]
    role = first.get("role")
    if role == "assistant":
        return None
    options = {**options, "tokenize": False}

    def write(said: dict) -> str:
        return from_template(tokenizer, [*prompt, said, *completion[1:]], **options)

    whole, alone = write(first), from_template(tokenizer, prompt, **options)
    # Some templates do not say where they ask, and some write a tool's result into the assistant's turn.
    if str(role).lower() not in _OTHERS and whole.startswith(
        from_template(tokenizer, prompt, add_generation_prompt=True, **options)
    ):
        return None  # the assistant by another name
    ending = before = alone
    if not whole.startswith(alone):
        # A template may write earlier turns otherwise where more follows, such as without their thoughts, and behind
        # the last of them EOS. What the prompt ends with is there all the same, before what the next turn says.
        reach = whole
        if isinstance(first.get("content"), str):
            reach = os.path.commonprefix([whole, *(write({**first, "content": letter}) for letter in "ab")])
        ends = (alone, alone.removesuffix(tokenizer.eos_token or ""))
        starts = [bisect.bisect_left(range(len(end)), True, key=lambda i, end=end: end[i:] in reach) for end in ends]
        ending = max((end[start:] for end, start in zip(ends, starts, strict=True)), key=len)
        before = whole[: reach.rfind(ending) + len(ending)]
    last = prompt[-1].get("content")
    calls = [call.get("function", call).get("name", "") for call in prompt[-1].get("tool_calls") or ()]
    told = last.split()[-1:] if isinstance(last, str) and last.strip() else calls
    if before == whole or not ending.strip() or not all(word in ending for word in told):
        what = "writes nothing for it" if before == whole else "writes the prompt otherwise where it follows"
        raise RowError(
            f"its `completion` begins with a turn of the role {role!r}, and the chat template {what}. Move that turn "
            "into the `prompt`, call the role `assistant`, or give `messages`."
        )
    return before
