"""The interval of a step's cost where processes took turns."""

import numpy as np
import pytest

from benchmarks.irl_step import paired_ratio, time_against


@pytest.mark.parametrize("rounds, rank", [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (30, 10)])
def test_the_ranks_are_those_of_the_sign_test(rounds, rank):
    """As in Conover's tables (Practical Nonparametric Statistics): the 6th and the 15th of 20 hold 95.9 %."""
    base = np.random.default_rng(0).uniform(1, 3, rounds)
    ratios = np.arange(1.0, rounds + 1)
    middle, low, high = paired_ratio(list(ratios * base), list(base))
    assert (middle, low, high) == pytest.approx(((rounds + 1) / 2, rank, rounds + 1 - rank))


def test_the_interval_holds_the_cost_whatever_else_the_machine_does():
    """Rounds that take three times as long for both, and now and then one of the two alone."""
    rng, held, wide = np.random.default_rng(1), 0, 0
    for _ in range(500):
        base = rng.uniform(1, 3, 12)
        times = 1.05 * base * np.exp(0.02 * rng.standard_t(2, 12))
        _, low, high = paired_ratio(list(times), list(base))
        held, wide = held + (low <= 1.05 <= high), wide + (high - low > 0.2)
    assert held / 500 > 0.93 and wide / 500 < 0.02


def test_too_few_rounds_have_no_interval():
    with pytest.raises(ValueError, match="take 6 or more"):
        paired_ratio([1.0] * 5, [1.0] * 5)
    cells = [{"seconds": x, "times": [x] * 5, "in_turns": True} for x in (2.0, 3.0)]
    assert time_against(cells[1], cells[0]) == "1.50"
