"""The online objective against plain loops in float64, its offline limit, and what it telescopes to."""

import pytest
import torch

from trl_irl.soft_q import SoftQOutput
from trl_irl.soft_q.objectives import InverseSoftQ, OnlineInverseSoftQ
from trl_irl.soft_q.terms import soft_q_terms


STOP = 7
# Labels; -100 is the prompt, padding, or a masked turn. Lengths differ, one completion was cut, one turn masked.
EXPERT = [[-100, 3, 4, STOP, -100, -100], [-100, -100, 5, 2, 6, 1], [-100, 3, STOP, -100, 4, STOP]]
POLICY = [[-100, 3, 3, 2, 4, STOP], [-100, 6, STOP, -100, -100, -100], [-100, 1, 2, 2, -100, -100]]


@pytest.fixture
def values():
    torch.manual_seed(0)
    labels = torch.tensor(EXPERT + POLICY)
    scored = labels != -100
    q = (torch.randn(labels.shape, dtype=torch.float64) * scored).requires_grad_()
    v = ((torch.randn(labels.shape, dtype=torch.float64) + 3) * scored).requires_grad_()
    return q, v, labels, torch.tensor([False] * len(EXPERT) + [True] * len(POLICY))


def tokens_of(q, v, labels, gamma):
    """`(row, Q, V, V' or None, ends)` of every scored token, by the rules of DESIGN 2, one at a time."""
    found = []
    for row in range(len(labels)):
        for t in range(labels.size(1)):
            if labels[row, t] == -100:
                continue
            ends = labels[row, t] == STOP
            follows = t + 1 < labels.size(1) and labels[row, t + 1] != -100
            next_v = 0.0 if ends else v[row, t + 1] if follows else None
            found.append((row, q[row, t], v[row, t], next_v, bool(ends)))
    return found


def reference(q, v, labels, is_policy, w, lambda_td, gamma, terminal_value, chi2_on):
    """-E_E[Q - gamma V'] + E_M[V - gamma V'] + lambda_td E_M[r^2] as it is written, and NLL where V' is not known."""
    tokens = tokens_of(q, v, labels, gamma)
    counts = {side: sum(bool(is_policy[row]) == side for row, *_ in tokens) for side in (False, True)}
    total = 0.0
    for row, q_t, v_t, next_v, ends in tokens:
        of_policy = bool(is_policy[row])
        in_mixture = w / counts[True] if of_policy else (1 - w) / counts[False]
        if next_v is None:
            total = total + (0.0 if of_policy else (v_t - q_t) / counts[False])
            continue
        if not of_policy:
            total = total - (q_t - gamma * next_v) / counts[False]
        total = total + in_mixture * (v_t - gamma * next_v)
        if not (ends and terminal_value == "mask"):
            weight = in_mixture if chi2_on == "mixture" else (0.0 if of_policy else 1 / counts[False])
            total = total + lambda_td * weight * (q_t - gamma * next_v) ** 2
    return total


def loss_of(q, v, labels, is_policy, w, lambda_td, gamma, terminal_value, chi2_on="mixture"):
    terms = soft_q_terms(q, v, labels, [STOP], gamma, terminal_value)
    counts = [(terms.scored & (is_policy[:, None] == side)).sum() for side in (False, True)]
    objective = OnlineInverseSoftQ(w, gamma, chi2_on)
    return objective(terms, SoftQOutput(q=q, v=v), lambda_td, is_policy, counts[0] / counts[1].double()) / counts[0]


@pytest.mark.parametrize("w", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("gamma, lambda_td", [(1.0, 0.3), (0.9, 0.1), (1.0, 0.0)])
@pytest.mark.parametrize("terminal_value", ["zero", "mask"])
@pytest.mark.parametrize("chi2_on", ["mixture", "expert"])
def test_against_the_formula(w, gamma, lambda_td, terminal_value, chi2_on, values):
    q, v, labels, is_policy = values
    loss = loss_of(q, v, labels, is_policy, w, lambda_td, gamma, terminal_value, chi2_on)
    expected = reference(q, v, labels, is_policy, w, lambda_td, gamma, terminal_value, chi2_on)
    assert loss.item() == pytest.approx(float(expected), rel=1e-12)
    gradients = torch.autograd.grad(loss, (q, v))
    for found, wanted in zip(gradients, torch.autograd.grad(expected, (q, v)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_without_weight_on_the_policy_it_is_the_offline_objective(values):
    q, v, labels, is_policy = values
    expert = slice(0, len(EXPERT))
    terms = soft_q_terms(q[expert], v[expert], labels[expert], [STOP], 0.9, "zero")
    offline = (terms.nll.sum() + 0.3 * terms.reward.square().sum()) / terms.scored.sum()
    by_objective = InverseSoftQ()(terms, SoftQOutput(v=v[expert]), 0.3) / terms.scored.sum()
    assert by_objective.item() == pytest.approx(offline.item(), rel=1e-12)
    assert loss_of(q, v, labels, is_policy, 0.0, 0.3, 0.9, "zero").item() == pytest.approx(offline.item(), rel=1e-12)


def test_finished_completions_leave_the_value_of_the_prompt_alone(values):
    """With gamma = 1: what the policy's tokens add to the likelihood is w (1 / |policy| - 1 / |expert|) V(s_0)."""
    q, v, *_ = values
    labels = torch.tensor([[-100, 3, 4, STOP, -100, -100], [-100, 6, 2, 2, 1, STOP]])
    is_policy, rows = torch.tensor([False, True]), slice(0, 2)
    value_of_prompt = v[0, 1]
    v_shared = v[rows].clone()
    v_shared[:, 1] = value_of_prompt
    loss = loss_of(q[rows], v_shared, labels, is_policy, 0.4, 0.0, 1.0, "mask")
    likelihood = soft_q_terms(q[:1], v_shared[:1], labels[:1], [STOP]).nll.sum() / 3
    assert loss.item() == pytest.approx(likelihood.item() + 0.4 * (1 / 5 - 1 / 3) * value_of_prompt.item(), rel=1e-12)


def test_an_unknown_choice(values):
    with pytest.raises(ValueError, match="`chi2_on` must be one of"):
        loss_of(*values, 0.5, 0.1, 1.0, "zero", "policy")
