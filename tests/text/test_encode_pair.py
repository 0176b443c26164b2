"""A row as an encoder-decoder reads it, where tokenizers write the ends of texts each in their own way."""

import pytest
from transformers import MBart50Tokenizer, MBartTokenizer

from trl_irl.text.encode_pair import encode_pair
from trl_irl.text.messages import Turns


LETTERS = [(piece, -1.0) for piece in "▁abcdefghijklmnopqrstuvwxyz"]
SPECIAL = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
LANGUAGES = {"src_lang": "en_XX", "tgt_lang": "de_DE"}


@pytest.fixture(params=[MBartTokenizer, MBart50Tokenizer], ids=["mbart-25", "mbart-50"])
def mbart(request):
    return request.param(vocab=[*SPECIAL, *LETTERS], **LANGUAGES)


@pytest.mark.parametrize("row", [{"prompt": "ab", "completion": "cd"}, {"prompt": "ab", "completion": " cd"}])
def test_a_target_is_what_the_tokenizer_makes_of_it(mbart, row):
    """mBART-25 writes its language behind the end, from where the model takes what its decoder begins with."""
    prompt, answer = encode_pair(mbart, row, stop_tokens={mbart.eos_token_id})
    assert prompt == mbart("ab")["input_ids"]
    assert answer == mbart(text_target="cd")["input_ids"]


@pytest.mark.parametrize("role", ["user", "system", "tool", "developer", "human"])
def test_a_target_is_what_the_assistant_says(mbart, role):
    turns = [{"role": role, "content": "ef"}, {"role": "assistant", "content": "cd"}]
    for completion in (turns, Turns.of(turns)):
        with pytest.raises(ValueError, match=f"begins with a turn of the role '{role}'"):
            encode_pair(mbart, {"prompt": "ab", "completion": completion})


def test_a_target_that_was_cut_or_is_to_be(mbart):
    row, whole = {"prompt": "ab", "completion": "cdefgh"}, mbart(text_target="cdefgh")["input_ids"]
    end = whole.index(mbart.eos_token_id)
    assert encode_pair(mbart, row, ended=False)[1] == whole[:end]  # no language behind a cut
    assert encode_pair(mbart, row, max_completion=4)[1] == whole[:4]
    assert encode_pair(mbart, row, max_completion=len(whole))[1] == whole
