"""The Triton kernels and the float32 sums of bfloat16 products, against float64 full logits. Needs a GPU."""

import itertools
import warnings
from pathlib import Path

import pytest
import torch

import trl_irl
from tests.conftest import make_model
from tests.soft_q.test_head import TINY_BUFFER
from tests.soft_q.test_statistics import EACH, compare, make_inputs
from trl_irl.soft_q import Reference, attach_soft_q_head, soft_q_terms, soft_q_values
from trl_irl.soft_q.projection import Projection


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TOKENS, HIDDEN, VOCABULARY = 137, 72, 5003


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    "dtype, scale, softcap, buffer",
    itertools.product([torch.float32, torch.bfloat16], [1.0, 0.3], [None, 4.0], [0.05, 64]),
)
def test_values_gradients_and_kl(dtype, scale, softcap, buffer):
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

    hidden, weight, bias = randn(TOKENS, HIDDEN), randn(VOCABULARY, HIDDEN) / 3, randn(VOCABULARY)
    ref_hidden, ref_weight = randn(TOKENS, HIDDEN), randn(VOCABULARY, HIDDEN) / 3
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator, device="cuda")
    upstream = torch.randn(3, TOKENS, generator=generator, device="cuda")

    def full_logits(hidden, weight, bias=None):
        logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
        return logits * scale if softcap is None else softcap * torch.tanh(logits * scale / softcap)

    expected = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    logits = full_logits(*expected)
    q, v, log_pi = logits.gather(1, labels[:, None])[:, 0], logits.logsumexp(1), logits.log_softmax(1)
    log_ref = full_logits(ref_hidden.double(), ref_weight.double()).log_softmax(1)
    kl = (log_pi.exp() * (log_pi - log_ref)).sum(1)
    (torch.stack([q, v, kl]) * upstream.double()).sum().backward()

    actual = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    policy = Projection(actual[1], actual[2], scale, softcap)
    reference = Reference(ref_hidden, Projection(ref_weight, None, scale, softcap))
    values = soft_q_values(actual[0], policy, labels, buffer, reference=reference)
    our_q, our_v, entropy, is_top1, our_kl = values.q, values.v, values.entropy, values.is_top1, values.kl
    (torch.stack([our_q, our_v, our_kl]) * upstream).sum().backward()

    assert our_q.dtype == our_v.dtype == torch.float32
    for ours, reference in ((our_q, q), (our_v, v), (our_kl, kl), (entropy, -(log_pi.exp() * log_pi).sum(1))):
        assert relative_error(ours, reference) < 1e-5
    assert torch.equal(is_top1, logits.argmax(1) == labels)
    for ours, reference in zip(actual, expected, strict=True):
        assert relative_error(ours.grad, reference.grad) < (1e-5 if dtype == torch.float32 else 2**-7)


def test_ties_go_to_the_lowest_id():
    weight = torch.zeros(VOCABULARY, HIDDEN, device="cuda")
    weight[[3, 5000]] = 1.0
    labels = torch.tensor([3, 5000, 0], device="cuda")
    for buffer in (0.05, 64):
        is_top1 = soft_q_values(torch.ones(3, HIDDEN, device="cuda"), Projection(weight), labels, buffer).is_top1
        assert is_top1.tolist() == [True, False, False]


@pytest.mark.parametrize("device", [f"cuda:{i}" for i in range(torch.cuda.device_count() or 1)])
@pytest.mark.parametrize("buffer", [0.05, 64])
def test_forbidden_tokens_and_gradients_that_share_memory(device, buffer):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(TOKENS, HIDDEN, generator=generator), torch.randn(VOCABULARY, HIDDEN) / 3
    bias = torch.zeros(VOCABULARY)
    bias[: VOCABULARY // 2] = bias[-1] = float("-inf")
    labels = torch.randint(VOCABULARY // 2, VOCABULARY - 1, (TOKENS, 2), generator=generator)[:, 0]
    plain = hidden.double().requires_grad_()
    logits = plain @ weight.double().T + bias
    q, v = logits.gather(1, labels[:, None])[:, 0], logits.logsumexp(1)
    (q.sum() + 2 * v.sum()).backward()

    ours = hidden.to(device).requires_grad_()
    our_q, our_v, entropy, *_ = soft_q_values(
        ours, Projection(weight.to(device), bias.to(device)), labels.to(device), buffer
    )
    (our_q.sum() + 2 * our_v.sum()).backward()  # the gradient of a sum is one number, expanded
    log_pi = logits.log_softmax(1).detach()
    right = -torch.special.xlogy(log_pi.exp(), log_pi.exp()).sum(1)
    for found, expected in ((our_q, q), (our_v, v), (entropy, right), (ours.grad, plain.grad)):
        assert relative_error(found.cpu(), expected.detach()) < 1e-5


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    hidden, weight = torch.randn(64, 256, device="cuda"), torch.randn(1000, 256, device="cuda")
    labels = torch.arange(64, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        q, v, *_ = soft_q_values(hidden, Projection(weight), labels)
    logits = hidden.bfloat16().double() @ weight.bfloat16().double().T
    assert relative_error(q, logits.gather(1, labels[:, None])[:, 0]) < 1e-5
    assert relative_error(v, logits.logsumexp(1)) < 1e-5


@pytest.fixture
def no_waiting():
    """Whatever makes the host wait for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("buffer", [0.05, 64])
def test_values_and_their_gradients_do_not_wait_for_the_device(buffer, no_waiting):
    hidden = torch.randn(TOKENS, HIDDEN, device="cuda", requires_grad=True)
    projection = Projection(torch.randn(VOCABULARY, HIDDEN, device="cuda", requires_grad=True))
    labels = torch.randint(VOCABULARY, (TOKENS,), device="cuda")
    for _ in range(2):  # the first also compiles
        values = soft_q_values(hidden, projection, labels, buffer)
        terms = soft_q_terms(values.q[None], values.v[None], labels[None], {1, 2})
        (terms.nll.sum() + terms.reward.square().sum()).backward()
        no_waiting()


def test_a_micro_batch_waits_once(no_waiting):
    """For the number of its scored tokens, on which the shapes of everything after it hang."""
    model = make_model("qwen2").cuda()
    attach_soft_q_head(model)
    input_ids = torch.randint(5, 200, (4, 16), device="cuda")
    labels = input_ids.masked_fill(torch.arange(16, device="cuda") < 5, -100)
    mask = torch.ones_like(input_ids)

    def step():
        output = model(input_ids=input_ids, attention_mask=mask, labels=labels, soft_q="values")
        terms = soft_q_terms(output.q, output.v, output.labels, {1, 2})
        (terms.nll.sum() + terms.reward.square().sum()).backward()

    step()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        step()
    package = str(Path(trl_irl.__file__).parent)  # a checkout may have the same name
    ours = [one for one in waits if "synchroniz" in str(one.message) and one.filename.startswith(package)]
    assert len(ours) <= 1, [f"{one.filename}:{one.lineno}" for one in ours]


@pytest.mark.parametrize("asked", EACH, ids=str)
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("buffer", [TINY_BUFFER, 64])
def test_statistics_against_full_logits(asked, softcap, buffer):
    inputs = [x.cuda() for x in make_inputs()]
    compare(inputs, asked, torch.float32, 1e-5, 0.3, softcap, buffer)
