"""The online objective against plain loops in float64, its offline limit, and what it telescopes to."""

import pytest
import torch

from trl_irl.soft_q import SoftQOutput
from trl_irl.soft_q.objectives import InverseSoftQ, OnlineInverseSoftQ
from trl_irl.soft_q.objectives.online import value_drop
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
    """
    E_E[-log pi] + w (D_P - D_E) / l_E + lambda_td E_M[r^2], D = V_0 + (1 - gamma) (V_1 + ...) a mean over completions.
    """
    tokens = tokens_of(q, v, labels, gamma)
    counts = {side: sum(bool(is_policy[row]) == side for row, *_ in tokens) for side in (False, True)}
    rows = {side: int((is_policy == side).sum()) for side in (False, True)}
    per_expert = counts[False] / rows[False]
    total, begun = 0.0, set()
    for row, q_t, v_t, next_v, ends in tokens:
        of_policy = bool(is_policy[row])
        if not of_policy:
            total = total + (v_t - q_t) / counts[False]
        of_state = v_t if row not in begun else (1 - gamma) * v_t
        begun.add(row)
        total = total + (w if of_policy else -w) * of_state / rows[of_policy] / per_expert
        if next_v is not None and not (ends and terminal_value == "mask"):
            in_mixture = w / counts[True] if of_policy else (1 - w) / counts[False]
            weight = in_mixture if chi2_on == "mixture" else (0.0 if of_policy else 1 / counts[False])
            total = total + lambda_td * weight * (q_t - gamma * next_v) ** 2
    return total


def loss_of(q, v, labels, is_policy, w, lambda_td, gamma, terminal_value, chi2_on="mixture"):
    terms = soft_q_terms(q, v, labels, [STOP], gamma, terminal_value)
    tokens = [(terms.scored & (is_policy[:, None] == side)).sum().double() for side in (False, True)]
    rows = [(is_policy == side).sum().double() for side in (False, True)]
    objective = OnlineInverseSoftQ(w, gamma, chi2_on)
    ratios = tokens[0] / tokens[1], rows[0] / rows[1]
    return objective(terms, SoftQOutput(q=q, v=v), lambda_td, is_policy, *ratios) / tokens[0]


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


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_over_a_finished_completion_it_is_the_sum_of_v_minus_gamma_v_of_the_next_state(gamma, values):
    q, v, *_ = values
    labels = torch.tensor([[-100, 3, 4, STOP, -100, -100], [-100, 6, 2, 2, 1, STOP]])
    found = value_drop(v[:2], labels != -100, gamma).sum(1)
    for row in range(2):
        parts = [v_t - gamma * next_v for at, _, v_t, next_v, _ in tokens_of(q, v, labels, gamma) if at == row]
        assert found[row].item() == pytest.approx(sum(parts).item(), rel=1e-12)


def test_with_gamma_1_it_is_likelihood_and_squares(values):
    """Where expert and policy go on from one prompt, whatever the lengths and wherever the policy was cut."""
    q, v, *_ = values
    labels = torch.tensor([[-100, 3, 4, STOP, -100, -100], [-100, 6, 2, 2, 1, 3]])
    is_policy, v = torch.tensor([False, True]), v[:2].clone()
    v[:, 1] = v[0, 1]
    loss = loss_of(q[:2], v, labels, is_policy, 0.4, 0.0, 1.0, "mask")
    likelihood = soft_q_terms(q[:1], v[:1], labels[:1], [STOP]).nll.sum() / 3
    assert loss.item() == pytest.approx(likelihood.item(), rel=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1e-3])
def test_values_do_not_run_away(scale):
    """
    Lengths differ and the policy is cut: neither a constant in all values nor the last values of what was cut pay. A
    table of Q, a state for each position of each row but for the first, which the rows share.
    """
    labels = torch.tensor([[3, 4, STOP, -100, -100, -100], [6, 2, 2, 1, 5, 2]])
    is_policy = torch.tensor([False, True])
    table = torch.zeros(2, 6, 8, dtype=torch.float64, requires_grad=True)

    def loss_at(table):
        shared = torch.cat([table[:1, :1].expand(2, -1, -1), table[:, 1:]], 1)
        q = shared.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return loss_of(q, shared.logsumexp(-1), labels, is_policy, 0.5, scale, 1.0, "mask")

    assert loss_at(table + 1000).item() == pytest.approx(loss_at(table).item(), rel=1e-9)
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        loss_at(table).backward()
        optimizer.step()
    v = table.detach().logsumexp(-1)
    assert v.abs().max() < 15 and loss_at(table).item() > 0


def test_an_unknown_choice(values):
    with pytest.raises(ValueError, match="`chi2_on` must be one of"):
        loss_of(*values, 0.5, 0.1, 1.0, "zero", "policy")
