"""One token replaced: where, by what, and what the rewards make of it."""

import numpy as np
import pytest

from trl_irl.rewards.corruption import corrupt, sensitivity
from trl_irl.rewards.soft_q_reward import CompletionReward


STOP = {1}


def scored(rewards, has_reward=None):
    rewards = np.array(rewards, dtype=np.float32)
    there = np.ones(len(rewards), bool) if has_reward is None else np.array(has_reward)
    zeros = np.zeros_like(rewards)
    return CompletionReward(np.arange(len(rewards)), rewards, there, zeros, zeros, 1.0)


def test_exactly_one_token_changes_and_never_a_stop_token():
    rng = np.random.default_rng(0)
    completions = [[*rng.integers(2, 9, size=rng.integers(1, 6)).tolist(), 1] for _ in range(200)] + [[1]]
    found = corrupt(completions, STOP)
    assert found.rows == list(range(200))  # the last has nothing to replace
    for row, ids, position in zip(found.rows, found.token_ids, found.positions, strict=True):
        differ = [i for i, (a, b) in enumerate(zip(ids, completions[row], strict=True)) if a != b]
        assert differ == [position] and ids[position] != 1
    assert corrupt(completions, STOP) == found and corrupt(completions, STOP, seed=1) != found
    assert set(found.positions) == set(range(5))  # everywhere


@pytest.mark.parametrize("completions", [[[1], []], [[5, 5, 1], [5]]])
def test_nothing_to_replace(completions):
    with pytest.raises(ValueError, match="no token to replace"):
        corrupt(completions, STOP)


def test_sensitivity_by_hand():
    before = [scored([1, 1, 1, 1])] * 4
    after = [
        scored([1, -5, 1, 1]),  # the lowest, and the return falls
        scored([-9, 0, 1, 20]),  # one of the three others is lower; the return rises
        scored([0, 1, 1, 2]),  # one lower, one equal; the return is as it was
        scored([0, 1, 1, 2], [True, False, True, True]),  # its reward is not known
    ]
    found = sensitivity(before, after, [1, 1, 1, 1])
    np.testing.assert_array_equal(found["lowest"], [1, 0, 0, np.nan])
    np.testing.assert_allclose(found["place"], [0, 1 / 3, 0.5, np.nan])
    np.testing.assert_array_equal(found["falls"], [1, 0, 0, np.nan])
    np.testing.assert_allclose(found["chance"], [0.25, 0.25, 0.25, np.nan])
