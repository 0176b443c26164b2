"""What a forward gives of each row of logits beside Q and V, and its gradients, against float64 full logits."""

import itertools

import pytest
import torch

from tests.soft_q.test_head import TINY_BUFFER, TOKENS, VOCABULARY, plain_logits, relative_error
from trl_irl.soft_q import Statistics, soft_q_values
from trl_irl.soft_q.projection import Projection
from trl_irl.soft_q.reference_kl import Reference
from trl_irl.soft_q.tiles import LEAST, exp_of_difference


HIDDEN = 7
EACH = [
    Statistics(entropy=True),
    Statistics(mean=True),
    Statistics(temperature=0.7),
    Statistics(temperature=3.0),
    Statistics(temperature=0.7, gem="linear"),
    Statistics(temperature=0.7, gem="log_sigmoid"),
    Statistics(entropy=True, mean=True, temperature=2.0, gem="log_sigmoid"),
]
FIELDS = ("q", "v", "entropy", "mean_logit", "v_tempered", "gem")


def by_hand(logits, labels, asked):
    """Each statistic of full logits, by its definition; GEM as its paper has it, with its constants detached."""
    log_pi = logits.log_softmax(1)
    q = logits.gather(1, labels[:, None])[:, 0]
    found = {"q": q, "v": logits.logsumexp(1)}
    if asked.entropy:
        found["entropy"] = torch.special.entr(log_pi.exp()).sum(1)
    if asked.mean:
        found["mean_logit"] = logits.mean(1)
    if asked.temperature:
        found["v_tempered"] = asked.temperature * (logits / asked.temperature).logsumexp(1)
    if asked.gem:
        matching = (logits / asked.temperature).softmax(1).detach()
        if asked.gem == "log_sigmoid":
            matching = matching * torch.sigmoid(0.01 * (logits - q[:, None])).detach()
        log_pi_label = log_pi.gather(1, labels[:, None])
        found["gem"] = -(matching * (log_pi_label - log_pi).masked_fill(matching == 0, 0)).sum(1)
    return found


def make_inputs():
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return 3 * randn(TOKENS, HIDDEN), randn(VOCABULARY, HIDDEN), randn(VOCABULARY), labels, randn(6, TOKENS)


@pytest.fixture
def inputs():
    return make_inputs()


def gradients_of(found, weights, parameters):
    loss = sum((found[name] * weight.to(found[name])).sum() for name, weight in weights.items() if name in found)
    return torch.autograd.grad(loss, parameters)


def compare(inputs, asked, dtype, tolerance, scale, softcap, buffer, vocabulary=None):
    """Values and gradients of the inputs, which are float64 on any device, in `dtype` against full logits."""
    *numbers, labels, upstream = inputs
    weights = dict(zip(FIELDS, upstream, strict=True))
    expected = [x.clone().requires_grad_() for x in numbers]
    reference = by_hand(plain_logits(*expected, scale, softcap)[:, :vocabulary], labels, asked)

    actual = [x.to(dtype).requires_grad_() for x in numbers]
    values = soft_q_values(
        actual[0], Projection(actual[1], actual[2], scale, softcap, vocabulary), labels, buffer, asked
    )
    ours = {name: getattr(values, name) for name in reference}
    for name in FIELDS[3:]:
        assert (getattr(values, name) is None) == (name not in reference)
    for name, value in ours.items():
        assert value.dtype == dtype and value.requires_grad, name
        assert relative_error(value, reference[name]) < tolerance, name
    found, right = (gradients_of(x, weights, y) for x, y in ((ours, actual), (reference, expected)))
    for one, other in zip(found, right, strict=True):
        assert relative_error(one, other) < tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("asked", EACH, ids=str)
@pytest.mark.parametrize("scale, softcap, buffer", itertools.product([1.0, 0.3], [None, 2.5], [TINY_BUFFER, 64]))
@pytest.mark.usefixtures("chunk")
def test_against_full_logits(inputs, asked, dtype, tolerance, scale, softcap, buffer):
    compare(inputs, asked, dtype, tolerance, scale, softcap, buffer)


@pytest.mark.parametrize("asked", EACH, ids=str)
def test_of_the_vocabulary_alone(inputs, asked):
    """Rows of the weight that are no tokens count in no mean and no sum."""
    hidden, weight, bias, labels, upstream = inputs
    compare((hidden, weight, bias, labels % 90, upstream), asked, torch.float64, 1e-12, 0.3, None, TINY_BUFFER, 90)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("forbidding", [float("-inf"), -3e38, -1e30, -1e10, -1e8, -1e4])
@pytest.mark.parametrize("asked", [x for x in EACH if not x.mean], ids=str)
@pytest.mark.usefixtures("chunk")
def test_forbidden_tokens(inputs, asked, forbidding, dtype, tolerance):
    """A bias of -inf, or of what else one forbids by: all of the first tile and others, no label; nothing is NaN."""
    hidden, weight, bias, labels, upstream = (x.to(dtype) if x.is_floating_point() else x for x in inputs)
    bias = bias.clone()
    bias[[*range(16), 50, 100]] = forbidding
    labels = labels.clamp(min=20).masked_fill(labels == 50, 51).clamp(max=99)
    parameters = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    values = soft_q_values(parameters[0], Projection(*parameters[1:]), labels, TINY_BUFFER, asked)
    allowed = [x for x in range(VOCABULARY) if bias[x] > -1e3]
    where = {old: new for new, old in enumerate(allowed)}
    fewer = [hidden.clone().requires_grad_(), weight[allowed].requires_grad_(), bias[allowed].requires_grad_()]
    new_labels = torch.tensor([where[int(x)] for x in labels])
    reference = by_hand(plain_logits(*fewer, 1.0, None), new_labels, asked)
    weights = dict(zip(FIELDS, upstream, strict=True))
    ours = {name: getattr(values, name) for name in reference}
    for name in reference:
        assert relative_error(ours[name], reference[name]) < tolerance, name
    found, right = gradients_of(ours, weights, parameters), gradients_of(reference, weights, fewer)
    assert relative_error(found[0], right[0]) < tolerance
    for one, other in zip(found[1:], right[1:], strict=True):
        assert relative_error(one[allowed], other) < tolerance and not one.isnan().any()


def test_the_linear_form_is_a_softmax_less_the_label():
    """What its authors' loss comes to: the gradient is softmax(l / beta) - onehot, that of V_beta - Q."""
    logits = torch.randn(5, 30, dtype=torch.float64)
    labels = torch.arange(5)
    asked = Statistics(temperature=0.7, gem="linear")
    hidden = logits.clone().requires_grad_()
    soft_q_values(
        hidden, Projection(torch.eye(30, dtype=torch.float64)), labels, statistics=asked
    ).gem.sum().backward()
    expected = (logits / 0.7).softmax(1) - torch.nn.functional.one_hot(labels, 30)
    torch.testing.assert_close(hidden.grad, expected)


def test_no_tokens():
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    weight = torch.ones(9, HIDDEN)
    reference = Reference(hidden, Projection(weight), values=True)
    values = soft_q_values(hidden, Projection(weight), labels, statistics=EACH[-1], reference=reference)
    sum(value.sum() for value in values).backward()
    assert hidden.grad.shape == (0, HIDDEN)


def test_what_two_ask_for():
    assert Statistics(mean=True) | Statistics(entropy=True) == Statistics(entropy=True, mean=True)
    assert Statistics() | Statistics(temperature=0.7) == Statistics(temperature=0.7)
    assert Statistics().is_empty
    with pytest.raises(ValueError, match=r"one `temperature` beside 1.*0\.7 and 2"):
        Statistics(temperature=0.7) | Statistics(temperature=2.0)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials_are_those_of_float64(dtype, temperature):
    origins = torch.tensor([0.0, -31.3, 47.7], dtype=dtype)
    given = (torch.linspace(-20, 20, 20_001, dtype=dtype) * temperature + origins[:, None]).contiguous()
    found = exp_of_difference(given, origins, temperature, out=torch.empty_like(given))
    size = (given.double().abs() + origins.double().abs()[:, None]) / temperature
    rounding = torch.finfo(dtype).eps * (2 + 2 * size)  # of both arguments, and of the result
    expected = ((given.double() - origins.double()[:, None]) / temperature).exp()
    assert ((found.double() / expected - 1).abs() <= rounding).all()
    # In place, where nothing was allowed so far, and where a token is forbidden or a logit is not a number.
    special = [[float("-inf"), -1e30, 0.0, float("nan")], [float("-inf"), -1e4, 0.0, 0.0]]
    special = torch.tensor(special, dtype=dtype)
    found = exp_of_difference(special, torch.tensor([LEAST, 0.0], dtype=dtype), temperature, out=special)
    assert torch.equal(found[0, :3], torch.tensor([0, 0, float("inf")], dtype=dtype)) and found[0, 3].isnan()
    assert torch.equal(found[1], torch.tensor([0, 0, 1, 1], dtype=dtype))


@pytest.mark.parametrize("offset", [0.0, 300.0, -2000.0])
def test_values_lose_no_more_than_a_rounding_to_where_the_logits_lie(offset):
    torch.manual_seed(0)
    hidden, weight = torch.randn(TOKENS, HIDDEN), torch.randn(VOCABULARY, HIDDEN) * 3
    bias, labels = torch.full((VOCABULARY,), offset), torch.arange(TOKENS) % VOCABULARY
    found = soft_q_values(hidden, Projection(weight, bias), labels)
    logits = (hidden @ weight.T + bias).double()  # rounded as the head's are
    assert ((found.v - logits.logsumexp(1)).abs() <= 3 * torch.finfo(torch.float32).eps * found.v.abs() + 1e-6).all()
    p = logits.softmax(1)
    entropy = -(p * p.log()).sum(1)
    assert ((found.entropy - entropy).abs() <= 6 * torch.finfo(torch.float32).eps * found.v.abs() + 1e-5).all()
