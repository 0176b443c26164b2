"""The space before a completion's first word, which decoders of SentencePiece's kind drop."""

import pytest
from transformers import LlamaTokenizer

from tests.conftest import make_model, make_tokenizer
from trl_irl import SoftQReward
from trl_irl.text.encode import encode_row
from trl_irl.text.messages import said_and_read, text_behind
from trl_irl.text.sampling import behind_text, completion_of, sample


PROMPT = "Q: 1?\nA:"


@pytest.fixture(scope="module")
def llama():
    """Built as Llama 2's: words begin with the space before them, and a decoder drops the first of a text."""
    words = ["▁", "▁y", "▁ye", "▁yes", "ye", "yes", "▁n", "▁no", "no"]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"QA:1?abcdefghijklmnopqrstuvwxyz",
        *words,
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = [("▁", "y"), ("▁y", "e"), ("▁ye", "s"), ("y", "e"), ("ye", "s"), ("▁", "n"), ("▁n", "o"), ("n", "o")]
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=False, pad_token="<unk>")


@pytest.mark.parametrize("completion", [" yes", "yes", " no yes", "  yes", " ", "\nyes"])
def test_what_is_sampled_is_read_as_it_was(completion, llama):
    ids = encode_row(llama, {"prompt": PROMPT, "completion": completion}).completion
    assert ids[-1] == llama.eos_token_id
    said = completion_of(llama, list(ids), True, goes_on=True)
    assert said.text == completion and said.length == len(ids)
    reward = SoftQReward(make_model("llama", vocab_size=len(llama)), llama)
    by_ids, by_text = reward.score([PROMPT], completion_ids=[ids])[0], reward.score([PROMPT], [said.text])[0]
    assert by_text.log_likelihood == pytest.approx(by_ids.log_likelihood)


def test_a_text_and_its_ids_go_together_with_and_without_it(llama):
    ids = encode_row(llama, {"prompt": PROMPT, "completion": " yes"}).completion
    for text, is_own in ((" yes", True), ("yes", True), ("no", False), ("  yes", False)):  # TRL's own has it not
        assert said_and_read(llama, text, ids, ended=True)[2] is is_own
    model = make_model("llama", vocab_size=len(llama))
    assert SoftQReward(model, llama).score([PROMPT], [" yes"], [ids])


def test_other_tokenizers_and_turns_of_a_chat_have_what_decode_gives(llama):
    tokenizer = make_tokenizer()
    for text in (" brown fox", "brown", "  fox", ".", "é", ""):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert text_behind(tokenizer, ids) == tokenizer.decode(ids) == text
    assert behind_text("one") and behind_text({"prompt": "one"})
    assert not behind_text([{"role": "user", "content": "one"}])
    ids = [llama.convert_tokens_to_ids("▁yes"), llama.eos_token_id]
    assert completion_of(llama, ids, True, goes_on=False).text == "yes"


def test_what_a_model_samples(llama):
    model = make_model("llama", vocab_size=len(llama))
    model.generation_config.eos_token_id = model.config.eos_token_id = llama.eos_token_id
    for group in sample(model, llama, [PROMPT, "Q:"], 12, temperature=1.5, num_samples=20):
        for one in group:
            said = one.token_ids[:-1] if one.ended else one.token_ids
            space = bool(said) and llama.convert_ids_to_tokens(said[0])[0] == "▁"
            assert one.text == " " * space + llama.decode(said, skip_special_tokens=True)
