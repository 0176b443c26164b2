"""Q, V, their gradients and the reference KL, against full logits in float64 and autograd."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import ARCHITECTURES, make_model
from trl_irl.soft_q import Reference, attach_soft_q_head, soft_q_values
from trl_irl.soft_q.projection import Projection


TOKENS, HIDDEN, VOCABULARY = 13, 7, 101  # odd on purpose
TINY_BUFFER = 0.001  # MiB: 131 logits a tile, so that the last rows and the last columns are partial tiles


def plain_logits(hidden, weight, bias, scale, softcap):
    logits = hidden @ weight.T * scale if bias is None else (hidden @ weight.T + bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    upstream = torch.randn(2, TOKENS, generator=generator, dtype=torch.float64)
    return hidden, weight, bias, labels, upstream


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "with_bias, scale, softcap, buffer",
    itertools.product([False, True], [1.0, 0.3], [None, 2.5], [TINY_BUFFER, 64]),
)
@pytest.mark.usefixtures("chunk")
def test_values_and_gradients_equal_full_logits(inputs, dtype, tolerance, with_bias, scale, softcap, buffer):
    hidden, weight, bias, labels, (g_q, g_v) = inputs
    expected = [hidden, weight] + ([bias] if with_bias else [])
    expected = [x.clone().requires_grad_() for x in expected]
    logits = plain_logits(expected[0], expected[1], expected[2] if with_bias else None, scale, softcap)
    expected_q, expected_v = logits.gather(1, labels[:, None])[:, 0], logits.logsumexp(1)
    (expected_q * g_q + expected_v * g_v).sum().backward()

    actual = [x.detach().to(dtype).requires_grad_() for x in expected]
    projection = Projection(actual[1], actual[2] if with_bias else None, scale, softcap)
    q, v, entropy, is_top1, *_ = soft_q_values(actual[0], projection, labels, buffer)
    (q * g_q.to(dtype) + v * g_v.to(dtype)).sum().backward()

    assert q.dtype == v.dtype == dtype
    assert relative_error(q, expected_q) < tolerance
    assert relative_error(v, expected_v) < tolerance
    log_pi = logits.log_softmax(1).detach()
    assert relative_error(entropy, -(log_pi.exp() * log_pi).sum(1)) < tolerance
    assert torch.equal(is_top1, logits.argmax(1) == labels)
    for x, reference in zip(actual, expected, strict=True):
        assert relative_error(x.grad, reference.grad) < tolerance


def masked(bias, *columns):
    """A bias that forbids some tokens: among the first tile's, all of a tile's, and the last."""
    bias = bias.clone()
    bias[list(columns)] = float("-inf")
    return bias


FIRST_TILE = range(16)  # of TINY_BUFFER


@pytest.mark.parametrize(
    "scale, softcap, buffer", itertools.product([1.0, 0.7], [None, 2.5], [TINY_BUFFER, 64])
)  # unscaled and in one tile, logits are kept for the backward
def test_forbidden_tokens_count_nothing(inputs, scale, softcap, buffer):
    hidden, weight, bias, labels, upstream = inputs
    labels = labels.clamp(min=17, max=99)
    bias = masked(bias, *FIRST_TILE, 50, 100)
    plain = [x.clone().requires_grad_() for x in (hidden, weight)]
    logits = plain_logits(*plain, bias, scale, softcap)
    q, v, log_pi = logits.gather(1, labels[:, None])[:, 0], logits.logsumexp(1), logits.log_softmax(1)
    entropy = -torch.special.xlogy(log_pi.exp(), log_pi.exp()).sum(1)
    ref_bias = masked(bias, 60)  # what only the reference cannot do costs infinitely much, and so is left out here
    ref_bias[60] = bias[60]
    ref_logits = plain_logits(hidden.flip(0), weight.flip(0), ref_bias, 1.0, softcap)
    difference = (logits - logits.logsumexp(1, True)) - (ref_logits - ref_logits.logsumexp(1, True))
    kl = (log_pi.exp() * torch.where(log_pi.exp() > 0, difference, 0.0)).sum(1)
    (q * upstream[0] + v * upstream[1] + kl).sum().backward()

    ours = [x.clone().requires_grad_() for x in (hidden, weight)]
    policy = Projection(ours[1], bias, scale, softcap)
    reference = Projection(weight.flip(0), ref_bias, 1.0, softcap)
    values = soft_q_values(ours[0], policy, labels, buffer, reference=Reference(hidden.flip(0), reference))
    our_q, our_v, our_entropy, is_top1, our_kl = values.q, values.v, values.entropy, values.is_top1, values.kl
    (our_q * upstream[0] + our_v * upstream[1] + our_kl).sum().backward()
    for found, right in ((our_q, q), (our_v, v), (our_entropy, entropy), (our_kl, kl)):
        assert relative_error(found, right.detach()) < 1e-12
    assert torch.equal(is_top1, logits.argmax(1) == labels)
    for found, right in zip(ours, plain, strict=True):
        assert relative_error(found.grad, right.grad) < 1e-12


def test_the_backward_multiplies_in_the_dtypes_of_the_forward(inputs, monkeypatch):
    """Autocast is over when the backward runs, and asked then it would name another dtype, for either policy."""
    hidden, weight, _, labels, _ = inputs
    ours = [x.clone().requires_grad_() for x in (hidden, weight)]
    reference = Reference(hidden.flip(0), Projection(weight.flip(0)))
    values = soft_q_values(ours[0], Projection(ours[1]), labels, TINY_BUFFER, reference=reference)
    for module in ("values", "reference_kl", "projection"):
        name = f"trl_irl.soft_q.{module}.product_dtype"
        monkeypatch.setattr(name, lambda *_: pytest.fail("asked in the backward"), raising=False)
    (values.q + values.kl).sum().backward()
    assert ours[1].grad.isfinite().all()


def test_an_adapter_without_a_head_of_its_own_beside_one_with():
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    model.add_adapter("plain", LoraConfig(target_modules=["q_proj"]))
    base, ids = model.get_base_model(), torch.randint(10, 290, (2, 9))
    with torch.no_grad():
        base.get_output_embeddings().modules_to_save["default"].weight.mul_(2)
    for name in ("plain", "default"):
        model.set_adapter(name)
        attach_soft_q_head(base)
        values = base(ids, labels=ids, soft_q="values")
        assert torch.allclose(values.v, base(ids).logits[:, :-1].logsumexp(-1), atol=1e-5), name


def test_a_model_that_forbids_tokens_by_its_bias():
    model = make_model("llama")
    model.lm_head.bias = torch.nn.Parameter(masked(torch.zeros(300), 7, 299))
    attach_soft_q_head(model)
    ids = torch.randint(10, 290, (2, 9))
    output = model(ids, labels=ids, soft_q="values")
    assert torch.allclose(output.v, model(ids).logits[:, :-1].logsumexp(-1), atol=1e-5)


def test_top1_breaks_ties_as_argmax_does():
    weight = torch.zeros(VOCABULARY, HIDDEN)
    weight[[3, 50]] = 1.0
    labels = torch.tensor([3, 50, 0])
    for buffer in (TINY_BUFFER, 64):
        is_top1 = soft_q_values(torch.ones(3, HIDDEN), Projection(weight), labels, buffer).is_top1
        assert is_top1.tolist() == [True, False, False]


def test_bfloat16_keeps_float32_statistics(inputs):
    hidden, weight, bias, labels, (g_q, g_v) = inputs
    actual = [x.to(torch.bfloat16).requires_grad_() for x in (hidden, weight, bias)]
    q, v, *_ = soft_q_values(actual[0], Projection(actual[1], actual[2]), labels, TINY_BUFFER)
    (q * g_q.float() + v * g_v.float()).sum().backward()
    expected = [x.detach().double().requires_grad_() for x in actual]
    logits = plain_logits(*expected, 1.0, None)
    expected_q, expected_v = logits.gather(1, labels[:, None])[:, 0], logits.logsumexp(1)
    (expected_q * g_q + expected_v * g_v).sum().backward()
    assert q.dtype == v.dtype == torch.float32
    # The inputs are bfloat16; nothing after them is, until a gradient is rounded to its parameter's dtype at the end.
    assert relative_error(q, expected_q) < 1e-6
    assert relative_error(v, expected_v) < 1e-6
    for x, reference in zip(actual, expected, strict=True):
        assert x.grad.dtype == torch.bfloat16
        assert relative_error(x.grad, reference.grad) < 2**-8


def test_autocast_does_not_round_the_head(inputs):
    hidden, weight, _, labels, _ = inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, v, *_ = soft_q_values(hidden.float(), Projection(weight.float()), labels)
    logits = hidden @ weight.T
    assert relative_error(q, logits.gather(1, labels[:, None])[:, 0]) < 1e-6
    assert relative_error(v, logits.logsumexp(1)) < 1e-6


def test_no_gradient_is_computed_for_a_frozen_head(inputs):
    hidden, weight, _, labels, _ = inputs
    hidden = hidden.clone().requires_grad_()
    q, v, *_ = soft_q_values(hidden, Projection(weight), labels, TINY_BUFFER)
    (q + 2 * v).sum().backward()
    reference = hidden.detach().clone().requires_grad_()
    logits = reference @ weight.T
    (logits.gather(1, labels[:, None])[:, 0] + 2 * logits.logsumexp(1)).sum().backward()
    assert weight.grad is None
    assert relative_error(hidden.grad, reference.grad) < 1e-12


class LargestTensor(TorchDispatchMode):
    """Elements of the largest storage that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numel = max(self.numel, size)
        return result


def test_memory_follows_the_buffer_and_not_tokens_times_vocabulary():
    tokens, hidden_size, vocabulary, buffer = 500, 8, 4000, 0.25
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, requires_grad=True)
    with LargestTensor() as largest:
        reference = Reference(hidden.detach(), Projection(weight.detach()))
        values = soft_q_values(hidden, Projection(weight), torch.arange(tokens), buffer, reference=reference)
        (values.q + values.v + values.kl).sum().backward()
    # The tile's memory with its working copies is all there is beside the weight's own gradient.
    assert largest.numel <= max(3 * buffer * 2**20 / 8, weight.numel()) < tokens * vocabulary / 10


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("buffer", [TINY_BUFFER, 64])
@pytest.mark.usefixtures("chunk")
def test_reference_kl_equals_full_logits(inputs, softcap, buffer):
    hidden, weight, bias, labels, (g, g_v) = inputs
    ref_hidden, ref_weight = hidden.flip(0)[:, :5].float(), weight.flip(1)[:, :5].float()
    expected = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    log_pi = plain_logits(*expected, 0.7, softcap).log_softmax(1)
    ref_logits = plain_logits(ref_hidden.double(), ref_weight.double(), None, 1.0, None)
    log_ref = ref_logits.log_softmax(1)
    expected_kl = (log_pi.exp() * (log_pi - log_ref)).sum(1)
    expected_v = plain_logits(*expected, 0.7, softcap).logsumexp(1)
    (expected_kl * g + expected_v * g_v).sum().backward()

    actual = [x.detach().float().requires_grad_() for x in expected]
    policy = Projection(actual[1], actual[2], 0.7, softcap)
    reference = Reference(ref_hidden, Projection(ref_weight), values=True)
    values = soft_q_values(actual[0], policy, labels, buffer, reference=reference)
    (values.kl * g.float() + values.v * g_v.float()).sum().backward()
    assert relative_error(values.kl, expected_kl) < 1e-5
    assert relative_error(values.v_ref, ref_logits.logsumexp(1)) < 1e-5 and not values.v_ref.requires_grad
    alone = soft_q_values(hidden, policy, labels, buffer, reference=reference._replace(kl=False))
    assert alone.kl is None and relative_error(alone.v_ref, ref_logits.logsumexp(1)) < 1e-5
    assert soft_q_values(hidden, policy, labels, buffer, reference=reference._replace(values=False)).v_ref is None
    for x, plain in zip(actual, expected, strict=True):
        assert relative_error(x.grad, plain.grad) < 1e-5


def test_reference_kl_to_itself_is_zero(inputs):
    hidden, weight, _, labels, _ = inputs
    hidden = hidden.clone().requires_grad_()
    reference = Reference(hidden, Projection(weight))
    kl = soft_q_values(hidden, Projection(weight), labels, TINY_BUFFER, reference=reference).kl
    kl.sum().backward()
    assert kl.abs().max() < 1e-12
    assert hidden.grad.abs().max() < 1e-12


def test_reference_kl_refuses_another_vocabulary(inputs):
    hidden, weight, _, labels, _ = inputs
    with pytest.raises(ValueError, match="101 tokens and the reference's 100"):
        soft_q_values(hidden, Projection(weight), labels, reference=Reference(hidden, Projection(weight[:100])))


def test_partitioned_parameters_are_gathered_themselves(inputs, monkeypatch):
    """ZeRO-3 marks the parameter object; a detached view of it is an empty tensor that nothing can gather."""
    hidden, weight, bias, labels, _ = inputs
    policy, reference = (Projection(torch.nn.Parameter(weight), torch.nn.Parameter(bias)) for _ in range(2))
    for projection in (policy, reference):
        projection.weight.ds_status = projection.bias.ds_status = "NOT_AVAILABLE"
    asked = []

    def gather(*parameters):
        asked.extend(parameters)
        return nullcontext()

    monkeypatch.setattr("trl_irl.soft_q.projection.maybe_gather_lm_head_ctx", gather)
    hidden = hidden.clone().requires_grad_()
    values = soft_q_values(hidden, policy, labels, reference=Reference(hidden, reference))
    forward = len(asked)
    (values.q + values.v + values.kl).sum().backward()
    own = {id(x) for projection in (policy, reference) for x in (projection.weight, projection.bias)}
    assert {id(parameter) for parameter in asked[:forward]} == own
    assert {id(parameter) for parameter in asked[forward:]} == own  # the recomputing backward gathers them again
    assert reference.weight.grad is None
    asked.clear()
    soft_q_values(hidden, Projection(weight, bias), labels)  # a whole model beside a partitioned one
    assert not asked


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model_returns_its_own_q_and_v(architecture):
    # Grouped products of experts know no float64.
    model = make_model(architecture, dtype=torch.float32 if "moe" in architecture else torch.float64).eval()
    input_ids = torch.randint(4, 300, (3, 11), generator=torch.Generator().manual_seed(1))
    labels = input_ids.clone()
    labels[0, :4] = labels[1, 9:] = -100
    logits = model(input_ids=input_ids).logits[:, :-1]
    attach_soft_q_head(model, TINY_BUFFER)
    output = model(input_ids=input_ids, labels=labels, soft_q="values")
    scored = labels[:, 1:] != -100
    q = logits.gather(2, input_ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(output.q, q.masked_fill(~scored, 0))
    torch.testing.assert_close(output.v, logits.logsumexp(-1).masked_fill(~scored, 0))
    # Without the switch the model is what it was.
    torch.testing.assert_close(model(input_ids=input_ids).logits[:, :-1], logits)
    generated = model.generate(input_ids[:1], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert generated.shape == (1, 14)


def test_nothing_scored_gives_zero_gradients():
    model = make_model("llama")
    attach_soft_q_head(model)
    input_ids = torch.arange(8).view(1, 8)
    output = model(input_ids=input_ids, labels=torch.full_like(input_ids, -100), soft_q="values")
    (output.q.sum() + output.v.sum()).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() and not g.any() for g in gradients)
