"""
Two decision processes whose optimum is worked out by hand, reached by gradient descent on the objective.

The vocabulary is three or four tokens, Q is a table with a row a state, and the demonstrations are counted out so that
their frequencies are the expert's probabilities exactly.
"""

import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw

from trl_irl.soft_q import soft_q_terms


def descend(table, batch_terms, steps=400):
    """Minimise the mean loss over Q in `table`, to convergence."""
    optimizer = torch.optim.LBFGS(
        [table], lr=0.5, max_iter=steps, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = batch_terms()
        loss.backward()
        return loss

    return optimizer.step(closure)


def test_two_step_process_with_zero_td_error():
    """
    Tokens: 0 stops, 1 goes on. At most two tokens; a second 1 is cut off (its next state is unknown).

    Expert: goes on first with probability 3/4, then stops with probability 1/3. With gamma = 1 both terms of the loss
    can be at their minimum at once: pi = expert, and every reward 0, that is

        Q(s1, stop) = 0          so V(s1) = -log pi(stop|s1) = log 3
        Q(s0, go) = V(s1) = log 3,  Q(s0, stop) = 0:  pi(go|s0) = 3 / (3 + 1), the expert's

    which is why these probabilities were chosen. Q(s1, go) = Q(s1, stop) + log 2.
    """
    # rows: [label, label], -100 where the sequence has ended; 12 demonstrations in the expert's proportions
    labels = torch.tensor([[0, -100]] * 3 + [[1, 0]] * 3 + [[1, 1]] * 6)
    table = torch.full((2, 2), 0.7, dtype=torch.float64, requires_grad=True)  # states by tokens

    def loss():
        q = torch.stack([table[0][labels[:, 0]], table[1][labels[:, 1].clamp(min=0)]], dim=1)
        v = table.logsumexp(1).expand(len(labels), 2)
        terms = soft_q_terms(q, v, labels, {0}, gamma=1.0, terminal_value="zero")
        return (terms.nll + 0.25 * terms.reward.square()).sum() / terms.scored.sum()

    descend(table, loss)
    expected = torch.tensor([[0.0, math.log(3)], [0.0, math.log(2)]], dtype=torch.float64)
    torch.testing.assert_close(table.detach(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lambda_td", [0.05, 0.5])
def test_bandit_matches_its_closed_form(lambda_td):
    """
    One step, three tokens that all stop, expert p. With reward Q - 0 the loss is sum_a p_a (V - q_a + lambda q_a^2),
    and

        dL/dq_a = pi_a - p_a + 2 lambda p_a q_a = 0    hence    sum_a p_a q_a = 0

    With x = 1 / (2 lambda) and Z = exp(V), pi_a = exp(q_a) / Z = p_a (1 - q_a / x) is solved by Lambert's W:
    q_a = x - W(x exp(x) / (Z p_a)), and Z follows from sum_a p_a q_a = 0.
    """
    p = [0.5, 0.3, 0.2]
    x = 1 / (2 * lambda_td)

    def q_of(z):
        return [x - lambertw(x * math.exp(x) / (z * probability)).real for probability in p]

    z = brentq(lambda z: sum(probability * q for probability, q in zip(p, q_of(z), strict=True)), 1e-3, 1e3)
    expected = torch.tensor(q_of(z), dtype=torch.float64)
    assert expected.exp().sum().item() == pytest.approx(z, rel=1e-9)  # the two conditions agree

    labels = torch.tensor([[0]] * 5 + [[1]] * 3 + [[2]] * 2)
    table = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def loss():
        terms = soft_q_terms(table[labels], table.logsumexp(0).expand(10, 1), labels, {0, 1, 2}, terminal_value="zero")
        return (terms.nll + lambda_td * terms.reward.square()).mean()

    descend(table, loss)
    torch.testing.assert_close(table.detach(), expected, rtol=0, atol=1e-5)
    # Regularised imitation: flatter than the expert, and more so the larger lambda_td is.
    pi = table.detach().softmax(0)
    assert pi.max() < max(p) and pi.min() > min(p)
