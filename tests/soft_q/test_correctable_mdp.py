"""The toy of benchmarks/correctable_mdp.py: its world against exact probabilities, and what it is there to show."""

import numpy as np
import pytest

from benchmarks.correctable_mdp import FARTHEST, SLIP, STEPS, expert_q, score, train


def exact_expert_score(correctable):
    """The expected share of steps on the track, by the transition matrix of the expert in the world that slips."""
    move = np.zeros((FARTHEST + 1, FARTHEST + 1))
    for state in range(FARTHEST + 1):
        meant = state - 1 if correctable and state > 0 else state  # stay on the track, and go back to it
        move[state, meant] += 1 - SLIP
        move[state, min(state + 1, FARTHEST)] += SLIP
    where, shares = np.eye(FARTHEST + 1)[0], []
    for _ in range(STEPS):
        shares.append(where[0])
        where = where @ move
    return np.mean(shares)


@pytest.mark.parametrize("correctable", [True, False])
def test_the_world_is_what_it_says(correctable):
    assert score(expert_q(correctable), correctable, count=20_000) == pytest.approx(
        exact_expert_score(correctable), abs=0.01
    )


@pytest.mark.any_trl
def test_over_the_expert_alone_the_squared_reward_lets_values_fall_without_an_end():
    values = {
        (chi2_on, updates): train("online IRL", True, 0, updates, chi2_on)[FARTHEST].logsumexp(-1).item()
        for chi2_on in ("mixture", "expert")
        for updates in (250, 500, 1000)
    }
    assert all(values["mixture", updates] > -10 for updates in (250, 500, 1000))
    assert values["expert", 1000] < 1.7 * values["expert", 500] < 1.7**2 * values["expert", 250] < -10


@pytest.mark.any_trl
def test_own_data_help_where_there_is_a_way_back_and_only_there():
    scores = {
        (method, correctable): score(train(method, correctable, seed=0), correctable)
        for method in ("MLE", "online IRL")
        for correctable in (True, False)
    }
    expert = {correctable: exact_expert_score(correctable) for correctable in (True, False)}
    assert scores["online IRL", True] > scores["MLE", True] + 0.15
    assert scores["online IRL", True] > expert[True] - 0.06
    assert abs(scores["online IRL", False] - scores["MLE", False]) < 0.02
    assert abs(scores["MLE", False] - expert[False]) < 0.02
