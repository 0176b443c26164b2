"""A cache with room holds what transformers' own does, whatever is done to it, and copies it seldom."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from tests.conftest import ARCHITECTURES, make_model
from trl_irl.text.cache import RoomyLayer
from trl_irl.text.generation import generate


DONE = {
    "nothing": lambda layer: None,
    "rows chosen": lambda layer: layer.batch_select_indices(torch.tensor([2, 0, 2])),
    "rows repeated": lambda layer: layer.batch_repeat_interleave(2),
    "beams": lambda layer: layer.reorder_cache(torch.tensor([1, 1, 0])),
    "cut": lambda layer: layer.crop(-4),
    "emptied": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("done", DONE)
def test_it_holds_what_a_dynamic_layer_does(done):
    generator = torch.Generator().manual_seed(0)
    roomy, plain = RoomyLayer(), DynamicLayer()

    def more(rows, tokens):
        keys, values = (torch.randn(rows, 2, tokens, width, generator=generator) for width in (8, 4))
        for ours, theirs in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(ours, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)

    for tokens in (5, 1, 1, 70, 1):
        more(3, tokens)
    before = plain.keys.clone()
    for layer in (roomy, plain):
        DONE[done](layer)
    rows = 6 if done == "rows repeated" else 3
    for tokens in (1, 1, 80, 1):
        more(rows, tokens)
    if done == "nothing":
        assert torch.equal(roomy.keys[..., :78, :], before)


def test_a_token_is_written_behind_the_others():
    layer, places = RoomyLayer(), []
    for _ in range(200):
        keys, _ = layer.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
        places.append(keys.data_ptr())
    assert sum(a != b for a, b in zip(places, places[1:], strict=False)) <= 4  # a `DynamicLayer` moves at each


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompts_of_several_lengths(name, monkeypatch):
    """More tokens than there is room for at once, and no prompt twice."""
    model, drawn = make_model(name).eval(), []
    for own in (True, False):
        with monkeypatch.context() as patch:
            if not own:
                patch.setattr("trl_irl.text.generation.read_once", lambda model, batch: {})
            torch.manual_seed(0)
            drawn.append(generate(model, [[5, 6, 7, 8], [20, 21], [30]], set(), 0, 70, 1.0, 9))
    assert drawn[0] == drawn[1]


def rows_read(model, **ask):
    """What greedy decoding says to five prompts, and how many rows it computed for each token."""
    rows = []
    hook = model.register_forward_pre_hook(lambda m, args, kw: rows.append(len(kw["input_ids"])), with_kwargs=True)
    said = generate(model, [[5, 6, 7, 8], [20, 21], [30], [40, 41], [40, 41]], **ask)
    hook.remove()
    return said, rows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_have_ended_are_computed_no_more(name, monkeypatch):
    """Greedy decoding says the same whether they are left out or not."""
    model = make_model(name, seed=1).eval()
    ask = {"pad_token_id": 0, "max_new_tokens": 60, "temperature": 0.0, "batch_size": 5}
    endless, _ = rows_read(model, stop_tokens=set(), **ask)
    stops = {endless[0][3], endless[2][20]}  # some end soon
    said, rows = rows_read(model, stop_tokens=stops, **ask)
    with monkeypatch.context() as patch:
        patch.setattr("trl_irl.text.generation.read_once", lambda model, batch: {})
        whole, all_rows = rows_read(model, stop_tokens=stops, **ask)
    assert said == whole and min(map(len, said)) <= 4
    assert sum(rows) < sum(all_rows) or max(map(len, said)) <= 32


def test_samples_are_of_the_policy_whatever_has_ended():
    """The lengths of samples from a policy that ends with the same probability at each token."""
    model = make_model("llama").eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    vocabulary = model.config.vocab_size
    stops = set(range(vocabulary // 20))  # so 1 in 20 tokens ends it
    torch.manual_seed(0)
    drawn = generate(model, [[5, 6]] * 4000, stops, 0, 120, 1.0, 4000)
    assert all(set(row[:-1]).isdisjoint(stops) and (row[-1] in stops or len(row) == 120) for row in drawn)
    share = len(stops) / vocabulary
    for length in (20, 32, 33, 64, 65, 100):
        longer = sum(len(row) >= length for row in drawn) / len(drawn)
        assert longer == pytest.approx((1 - share) ** (length - 1), abs=0.03)  # four standard errors
