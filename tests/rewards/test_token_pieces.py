"""The pieces of a completion, joined, are the tokenizer's own decoding of it, and no character is cut in two."""

import html
import random
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trl_irl.rewards.heatmap import write_heatmap
from trl_irl.rewards.token_pieces import token_pieces


CORPUS = ["the fox sat by the river and ate seven apples, one by one. Then it slept"] * 3
TEXTS = [
    " the fox sat by the river.",
    "the fox\n\n\tate  apples",
    "ate 🦊👩‍🚀 it — “slept”",
    " الثعلب أكل التفاح",
    "狐狸吃了七个苹果。",
    "แอปเปิลเจ็ดผล",
    "né̃\u200d \ufffd end",
    "",
]


def sentencepiece_like():
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=["bytes", "sentencepiece"])
def either(request, tokenizer):
    return tokenizer if request.param == "bytes" else sentencepiece_like()


def whole(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_decoded_completion(text, either):
    ids = [*either(text)["input_ids"], either.eos_token_id]
    pieces = token_pieces(either, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == whole(either, ids)
    assert pieces[-1] == either.eos_token and text.strip() in "".join(pieces)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


def test_words_keep_their_spaces_and_characters_stand_at_their_last_token():
    tokenizer = sentencepiece_like()
    assert token_pieces(tokenizer, tokenizer("the fox sat")["input_ids"]) == ["the", " fox", " sat"]
    spread = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "狐a🦊".encode()]
    assert token_pieces(tokenizer, spread) == ["", "", "狐", "a", "", "", "", "🦊"]


def test_any_tokens_in_any_order(either):
    """As a poor model writes: bytes that never make a character, special tokens in the middle."""
    rng = random.Random(0)
    for _ in range(100):
        ids = rng.choices(range(len(either)), k=rng.randint(1, 30))
        pieces = token_pieces(either, ids)
        assert len(pieces) == len(ids) and "".join(pieces) == whole(either, ids)


def test_new_lines_and_parts_are_seen_on_the_page(tmp_path):
    tokens = ["", "🦊", "\n", "<b>\n\n"]
    numbers = {name: [0.5] * 4 for name in ("rewards", "q", "v")}
    row = {"prompt": "a\ud83d", "tokens": tokens, "has_reward": [True, True, True, False], **numbers}
    path = tmp_path / "page.html"
    write_heatmap([row | {"sum": 1.0, "log_likelihood": 0.0}], path, "t")
    page = path.read_text(encoding="utf-8")
    spans = re.findall(r'<span( class="[a-z ]+")?(?: style="[^"]+")? title="[^"]+">(.*?)</span>', page, re.S)
    assert [classes for classes, _ in spans] == [' class="part"', "", "", ' class="unknown"']
    assert [text.count('<i class="newline"></i>\n') for _, text in spans] == [0, 0, 1, 2]
    assert [html.unescape(re.sub("<i[^>]*></i>", "", text)) for _, text in spans] == tokens
