"""Values of tokens against a plain float64 reference, alone and in batches."""

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from trl_irl.rewards.token_values import token_values
from trl_irl.soft_q import attach_soft_q_head, soft_q_terms
from trl_irl.text.encode import encode
from trl_irl.text.stop_tokens import stop_token_ids


ROWS = [
    {"prompt": "What is the colour of the sky?", "completion": " It is blue."},
    {"prompt": "One", "completion": " two three"},
    {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog. 1 2 3"},
]


def plain(model, ids, labels, stop, gamma, terminal_value):
    """Token by token, from all logits in float64; `None` is a reward that is not known."""
    logits = model.double()(torch.tensor([ids])).logits[0]
    v = logits.logsumexp(-1).tolist()
    scored = [t for t in range(len(ids) - 1) if labels[t + 1] != -100]
    found = []
    for t in scored:
        q, next_v = logits[t, ids[t + 1]].item(), None
        if ids[t + 1] in stop:
            next_v = 0.0 if terminal_value == "zero" else None
        elif t + 1 in scored:
            next_v = v[t + 1]
        found.append((ids[t + 1], q, v[t], None if next_v is None else q - gamma * next_v))
    return found


@pytest.mark.parametrize("architecture", ["qwen2", "cohere", "gemma2", "gpt2"])
@pytest.mark.parametrize("gamma, terminal_value", [(1.0, "zero"), (0.9, "mask")])
def test_against_a_plain_reference(architecture, gamma, terminal_value, tokenizer):
    model = make_model(architecture)
    encoded = [encode(tokenizer, row) for row in ROWS]
    encoded.append((encoded[2][0][:-3], encoded[2][1][:-3]))  # a completion that was cut
    stop = stop_token_ids(model, tokenizer)
    expected = [plain(make_model(architecture), *row, stop, gamma, terminal_value) for row in encoded]
    for batch_size in (1, 3):
        found = token_values(model, encoded, stop, gamma, terminal_value, batch_size)
        for values, row in zip(found, expected, strict=True):
            assert values.token_ids.tolist() == [token for token, *_ in row]
            np.testing.assert_allclose(values.q, [q for _, q, _, _ in row], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(values.v, [v for _, _, v, _ in row], rtol=1e-4, atol=1e-4)
            assert values.has_reward.tolist() == [reward is not None for *_, reward in row]
            np.testing.assert_allclose(values.reward, [reward or 0.0 for *_, reward in row], rtol=1e-3, atol=1e-3)
    assert not found[3].has_reward[-1] and found[2].has_reward[-1] == (terminal_value == "zero")


@pytest.mark.parametrize("terminal_value", ["zero", "mask"])
def test_packed_rows_have_the_same_rewards(terminal_value, tokenizer):
    """As training packs them: documents one after another in a row, told apart by their positions alone."""
    model = make_model("llama")
    encoded = [encode(tokenizer, row) for row in ROWS]
    stop = stop_token_ids(model, tokenizer)
    alone = token_values(model, encoded, stop, 0.9, terminal_value, batch_size=1)
    padded = token_values(model, encoded, stop, 0.9, terminal_value, batch_size=3)
    packed = {
        "input_ids": [token for ids, _ in encoded for token in ids],
        "position_ids": [i for ids, _ in encoded for i in range(len(ids))],
        "labels": [label for _, labels in encoded for label in labels],
    }
    attach_soft_q_head(model)
    with torch.no_grad():
        output = model(**{name: torch.tensor([column]) for name, column in packed.items()}, soft_q="values")
    terms = soft_q_terms(output.q, output.v, output.labels, stop, 0.9, terminal_value)
    rewards, has_reward = (grid[terms.scored].numpy() for grid in (terms.reward, terms.has_reward))
    for found in (alone, padded):
        np.testing.assert_array_equal(np.concatenate([one.has_reward for one in found]), has_reward)
        np.testing.assert_allclose(np.concatenate([one.reward for one in found]), rewards, rtol=1e-4, atol=1e-4)


def test_ids_of_another_tokenizer(tokenizer):
    with pytest.raises(ValueError, match="Row 0 has the token id 300, and the model's vocabulary has 300"):
        token_values(make_model("qwen2"), [([5, 300], [-100, 300])], {1})


def test_a_completion_without_tokens():
    (values,) = token_values(make_model("qwen2"), [([5, 6], [-100, -100])], {1})
    assert values.token_ids.size == values.reward.size == 0
