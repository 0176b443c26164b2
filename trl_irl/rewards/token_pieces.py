"""The text that each token of a completion stands for."""

import itertools
import os
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def token_pieces(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """
    A completion's text, cut into its tokens. Decoded one by one, SentencePiece's would lose their spaces, and those
    that hold only some bytes of a character would be replacement signs.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        token_ids (`Sequence[int]`)

    Returns:
        `list[str]` of the same length, which joined are the decoded completion, special tokens and all. A character of
        several tokens is the last one's; the others have an empty text.
    """
    ids = [int(token) for token in token_ids]

    def text(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    whole, pieces = text(0, len(ids)), _pieces(text, len(ids))
    if "".join(pieces) == whole:
        return pieces
    # Bytes that are no text can change how those before them are shown. Then each token ends where the text up to it
    # is the whole one's: right always, and slow for a long completion.
    ends = [len(os.path.commonprefix([whole, text(0, i)])) for i in range(1, len(ids))]
    ends = [*itertools.accumulate(ends, max), len(whole)]
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _pieces(text, count: int) -> list[str]:
    """By decoding each token with the ones told before it, those since the last one but one that ended a character."""
    pieces, start, done = [], 0, 0
    for i in range(count):
        before, now = text(start, done), text(start, i + 1)
        if now.endswith("\ufffd") and i + 1 < count:  # an unfinished character
            pieces.append("")
            continue
        pieces.append(now[len(before) :])
        start, done = done, i + 1
    return pieces
