"""Every clause on the next state, against a reference that walks token by token."""

import pytest
import torch

from trl_irl.soft_q import soft_q_terms


STOP = {1, 3}


def plain_terms(q, v, labels, gamma, terminal_value):
    """The definition in DESIGN 2, one token at a time, in Python floats: `(nll, reward or None)` for scored tokens."""
    terms = {}
    for row, row_labels in enumerate(labels.tolist()):
        for t, label in enumerate(row_labels):
            if label == -100:
                continue
            if label in STOP:
                next_v = 0.0 if terminal_value == "zero" else None
            elif t + 1 < len(row_labels) and row_labels[t + 1] != -100:
                next_v = v[row, t + 1].item()
            else:
                next_v = None
            reward = None if next_v is None else q[row, t].item() - gamma * next_v
            terms[row, t] = (v[row, t].item() - q[row, t].item(), reward)
    return terms


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("terminal_value", ["zero", "mask"])
def test_terms_equal_the_definition(gamma, terminal_value):
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(2, 8, 17, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (8, 17), generator=generator)
    labels[torch.rand(8, 17, generator=generator) < 0.3] = -100
    terms = soft_q_terms(q, v, labels, STOP, gamma=gamma, terminal_value=terminal_value)
    expected = plain_terms(q, v, labels, gamma, terminal_value)
    assert terms.scored.sum() == len(expected)
    assert terms.has_reward.sum() == sum(reward is not None for _, reward in expected.values())
    for (row, t), (nll, reward) in expected.items():
        assert terms.nll[row, t].item() == pytest.approx(nll, rel=1e-12)
        assert terms.has_reward[row, t].item() == (reward is not None)
        assert terms.reward[row, t].item() == pytest.approx(0.0 if reward is None else reward, rel=1e-12)
        assert terms.is_terminal[row, t].item() == (labels[row, t].item() in STOP)


@pytest.mark.parametrize(
    "labels, expected",
    [
        # Q = 10, 20, 30, ... and V = 1, 2, 3, ... by position; gamma = 1; None where there is no reward.
        ([5, 6, 1, -100], [8, 17, 30, None]),  # ends: V' = 0
        ([5, 6, 7, -100], [8, 17, None, None]),  # cut by max_length: the last next state is unknown
        ([5, 1, 4, -100], [8, 20, None, None]),  # a scored newline after the stop token: it is no next state
        ([5, 1, 4, 6], [8, 20, 26, None]),  # two documents wrapped into one row: the stop token separates them
        ([-100, -100, 5, 1], [None, None, 26, 40]),  # prompt
        ([5, 3, -100, 6], [8, 20, None, None]),  # two turns: the user's turn between them is masked
        ([5, -100, 6, 1], [None, None, 26, 40]),  # the next label is masked
    ],
)
def test_next_state(labels, expected):
    q, v = torch.tensor([[10.0, 20, 30, 40]]), torch.tensor([[1.0, 2, 3, 4]])
    terms = soft_q_terms(q, v, torch.tensor([labels]), STOP, terminal_value="zero")
    actual = [
        r if has else None for r, has in zip(terms.reward[0].tolist(), terms.has_reward[0].tolist(), strict=True)
    ]
    assert actual == expected


def test_semi_gradient_stops_at_the_next_value():
    q, v = torch.ones(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    labels = torch.tensor([[5, 6, 1]])
    soft_q_terms(q, v, labels, STOP, td_target_grad=False).reward.sum().backward()
    assert v.grad is None
    soft_q_terms(q, v, labels, STOP).reward.sum().backward()
    assert v.grad.tolist() == [[0, -1, -1]]


def test_unscored_values_never_matter():
    """Infinite or NaN values at unscored positions reach neither the terms nor the gradients."""
    q, v = (
        torch.ones(1, 4, requires_grad=True),
        torch.tensor([[1.0, 2.0, float("inf"), float("nan")]]).requires_grad_(),
    )
    terms = soft_q_terms(q, v, torch.tensor([[5, 1, -100, -100]]), STOP, terminal_value="zero")
    (terms.nll + terms.reward.square()).sum().backward()
    assert terms.nll.tolist() == [[0, 1, 0, 0]]
    assert terms.reward.tolist() == [[-1, 1, 0, 0]]
    assert q.grad.isfinite().all() and v.grad.isfinite().all()


def test_undiscounted_return_telescopes_to_log_likelihood_plus_initial_value():
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(2, 1, 9, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6, 1]])
    terms = soft_q_terms(q, v, labels, STOP, terminal_value="zero")
    assert terms.reward.sum().item() == pytest.approx((-terms.nll.sum() + v[0, 0]).item(), rel=1e-12)


def test_unknown_terminal_value():
    with pytest.raises(ValueError, match="terminal_value"):
        soft_q_terms(
            torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.long), STOP, terminal_value="one"
        )
