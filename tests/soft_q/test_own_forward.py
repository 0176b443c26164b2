"""What a model does between backbone, projection and logits: run as it is, measured, or refused."""

import copy
import functools
import pickle

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoModelForImageTextToText, LlamaForCausalLM

from tests.conftest import make_model
from tests.slow.sweep_families import build, verdict
from trl_irl.soft_q import attach_soft_q_head, soft_q_head
from trl_irl.soft_q.own_forward import UnknownHeadError
from trl_irl.trainer.runtime.models import can_be_tried


IDS = torch.arange(4, 20).view(2, 8)

# A prediction head before the projection; a scale between them; another backbone attribute than `base_model`; a
# multiplier and a padded vocabulary; what keeps a state; routers whose config names experts in its own way.
FAMILIES = ["bert", "roberta", "electra", "modernbert-decoder", "big_bird", "minicpm3", "llama4_text", "inkling_text"]
FAMILIES += ["falcon_h1", "mamba", "gemma3n_text", "granitemoe", "phimoe", "rwkv", "gptj"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_give_their_own_q_v_and_gradients(family):
    kind, what = verdict(build(family, AutoModelForCausalLM))
    assert kind == "equal", what


@pytest.mark.parametrize("family", ["aya_vision", "gemma3", "llava"])
def test_vision_language_wrappers_give_their_own_q_v_and_gradients(family):
    """Aya Vision leaves its logits as they are, though its text config has a logit scale."""
    kind, what = verdict(build(family, AutoModelForImageTextToText))
    assert kind == "equal", what


class Changed(LlamaForCausalLM):
    """A Llama whose logits are changed at the end of its forward."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = self.change(output.logits)
        return output


def changed(change) -> Changed:
    model = make_model("llama")
    model.__class__ = Changed
    model.change = change
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 0.5 * x,
        lambda x: -x / 3,
        lambda x: 7 * torch.tanh(x / 7),
        lambda x: 300 * torch.tanh(2 * x / 300),  # too large to show on the logits of a probe
        lambda x: x[..., :200],
        lambda x: (5 * torch.tanh(0.1 * x / 5))[..., :211].float(),
    ],
)
def test_scale_softcap_and_shorter_vocabulary_are_measured(change):
    model = changed(change)
    logits = model(input_ids=IDS).logits[:, :-1].double()
    assert logits.shape[-1] in (200, 211, 300)
    attach_soft_q_head(model)
    output = model(input_ids=IDS, labels=IDS, soft_q="values")
    torch.testing.assert_close(output.q.double(), logits.gather(2, IDS[:, 1:, None])[..., 0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(output.v.double(), logits.logsumexp(-1), atol=1e-4, rtol=1e-5)
    gradients = []
    for nll in (output.v - output.q, -model(input_ids=IDS).logits[:, :-1].log_softmax(-1).gather(2, IDS[:, 1:, None])):
        model.zero_grad()
        nll.sum().backward()
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda x: x.clamp(max=50), "does something to its logits"),  # no probe of eight tokens came so far
        (lambda x: x + 0.01 * x**3, "does something to its logits"),
        (lambda x: x.index_fill(-1, torch.tensor([7]), torch.finfo(x.dtype).min), "does something to its logits"),
        (lambda x: x * torch.linspace(1, 2, x.size(-1)), "does something to its logits"),
        (lambda x: x + 1, "does something to its logits"),
        (lambda x: torch.cat([x, x], -1), "does something to its logits"),
        (lambda x: x * torch.nan, "does something to its logits"),
        # A scale where all logits are one number, as on the probe of the projection; a probe of tokens tells.
        (lambda x: x + 0.01 * x[..., :1], "its own Q and V are"),
    ],
)
def test_what_is_not_known_is_refused(change, why):
    with pytest.raises(UnknownHeadError, match=why):
        attach_soft_q_head(changed(change))


def test_trainable_weights_after_the_projection_are_refused_and_frozen_ones_measured():
    """A temperature that is learned, and a bias that is zero at first, so that no number shows it."""
    for value, change in ((0.4, lambda m, x: x * m.extra), (0.0, lambda m, x: x + m.extra.expand(x.size(-1)))):
        model = changed(None)
        model.extra = torch.nn.Parameter(torch.tensor(value))
        model.change = functools.partial(change, model)
        with pytest.raises(UnknownHeadError, match="trainable weights"):
            attach_soft_q_head(model)
        model.extra.requires_grad_(False)
        attach_soft_q_head(model)
        v = model(input_ids=IDS, labels=IDS, soft_q="values").v
        torch.testing.assert_close(v, model(input_ids=IDS).logits[:, :-1].logsumexp(-1))


class Capped(torch.nn.Linear):
    def forward(self, hidden):
        return 30 * torch.tanh(super().forward(hidden) / 30)


class Normalised(torch.nn.Linear):
    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, torch.nn.functional.normalize(self.weight))


class WithAdapter(torch.nn.Linear):
    """Whose second weight is zero at first."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.more = torch.nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, hidden):
        return super().forward(hidden) + hidden @ self.more.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "head, why",
    [
        (lambda: Capped(16, 300, bias=False), "does more than multiply"),
        (lambda: Normalised(16, 300, bias=False), "does more than multiply"),
        (lambda: WithAdapter(16, 300), r"weights beside `weight` and `bias` \(more\)"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 300)), "Sequential with layers"),
    ],
)
def test_a_head_that_is_more_than_linear_is_refused_by_name(head, why, dtype):
    """Also where its first logits are so small that they do not show it."""
    model = make_model("llama")
    model.lm_head = head()
    for parameter in model.lm_head.parameters():
        parameter.data.mul_(1e-3)
    with pytest.raises(ValueError, match=why):
        attach_soft_q_head(model.to(dtype))


def test_a_parametrised_head_and_one_with_a_bias_give_their_own_gradients():
    model = make_model("llama")
    model.lm_head = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(16, 300))
    attach_soft_q_head(model)
    gradients = []
    output = model(input_ids=IDS, labels=IDS, soft_q="values")
    own = model(input_ids=IDS).logits[:, :-1]
    for x in (
        (output.v - 2 * output.q).sum(),
        (own.logsumexp(-1) - 2 * own.gather(2, IDS[:, 1:, None])[..., 0]).sum(),
    ):
        model.zero_grad()
        x.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)
    assert {"lm_head.bias", "lm_head.parametrizations.weight.original0"} <= gradients[0].keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_that_needs_a_gpu_and_16_bits_is_not_asked_for_the_probe(dtype):
    """FSDP2 and ZeRO-2 move a model to its GPU later, and autocast comes with the training."""

    def kernel(module, query, *args, **kwargs):
        raise RuntimeError("FlashAttention only support fp16 and bf16 on CUDA")

    AttentionInterface.register("flash_of_a_test", kernel)
    model = make_model("llama").to(dtype)
    model.config._attn_implementation = "flash_of_a_test"
    probed = make_model("llama").to(dtype)
    attach_soft_q_head(model)
    attach_soft_q_head(probed)
    assert model._soft_q == probed._soft_q and model._soft_q.postprocessing is not None
    assert model.config._attn_implementation == "flash_of_a_test"  # as training has it
    assert can_be_tried(probed) and not can_be_tried(model)  # documents of a row are looked at in the first step
    with pytest.raises(RuntimeError, match="FlashAttention"):
        model(input_ids=IDS, labels=IDS, soft_q="values")


def test_a_model_whose_logits_are_not_finite_is_refused():
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite on a probe"):
        attach_soft_q_head(model)


class ByHand(LlamaForCausalLM):
    """Multiplies by its head's weight itself, as some remote code does."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        hidden = self.model(input_ids=input_ids).last_hidden_state
        output.logits = hidden @ self.lm_head.weight.T if self.by_hand else output.logits + self.lm_head(hidden)
        return output


class Needy(LlamaForCausalLM):
    def forward(self, input_ids=None, language=None, **kwargs):
        if language is None:
            raise KeyError("set a language first")
        return super().forward(input_ids=input_ids, **kwargs)


def test_a_projection_that_is_not_called_once_is_refused_with_the_reason():
    for by_hand, match in ((True, "go past it"), (False, "2 times")):
        model = make_model("llama")
        model.__class__, model.by_hand = ByHand, by_hand
        with pytest.raises(UnknownHeadError, match=match):
            attach_soft_q_head(model)


def test_a_model_that_needs_more_than_tokens_is_refused_with_its_own_words():
    model = make_model("llama")
    model.__class__ = Needy
    with pytest.raises(ValueError, match="Needy cannot be run on 16 tokens alone.*set a language first"):
        attach_soft_q_head(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_computes_with_its_own_weights(copied):
    model = make_model("qwen2").eval()
    attach_soft_q_head(model)
    expected = model(input_ids=IDS).logits
    values = model(input_ids=IDS, labels=IDS, soft_q="values").v
    kept = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(kept(input_ids=IDS).logits, expected)
    attach_soft_q_head(kept)
    torch.testing.assert_close(kept(input_ids=IDS, labels=IDS, soft_q="values").v, values)
    assert not torch.allclose(model(input_ids=IDS, labels=IDS, soft_q="values").v, values)


def test_attached_twice_is_attached_once_and_a_while_leaves_nothing():
    model = make_model("qwen2").eval()
    before = dict(vars(model))
    with soft_q_head(model):
        inside = model.forward
        with soft_q_head(model):
            assert model.forward == inside
        values = model(input_ids=IDS, labels=IDS, soft_q="values").v
    assert "forward" not in vars(model) and vars(model).keys() - before.keys() == {"_soft_q"}
    for _ in range(2):
        attach_soft_q_head(model, logit_buffer_mb=0.01)
    torch.testing.assert_close(model(input_ids=IDS, labels=IDS, soft_q="values").v, values)
    # What was resized since is measured again.
    with soft_q_head(model):
        model.resize_token_embeddings(310)
    attach_soft_q_head(model)
    v = model(input_ids=IDS, labels=IDS, soft_q="values").v
    torch.testing.assert_close(v, model(input_ids=IDS).logits[:, :-1].logsumexp(-1))


def test_logits_of_the_same_forward_carry_gradients():
    model = make_model("llama")
    attach_soft_q_head(model)
    output = model(input_ids=IDS, labels=IDS, soft_q="values", return_logits=True)
    torch.testing.assert_close(output.logits[:, :-1].logsumexp(-1), output.v)
    output.logits.square().sum().backward()
    actual = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(input_ids=IDS).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad)
