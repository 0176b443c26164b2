"""
The soft-Q head: Q(s_t, a_t) and V(s_t) of every scored token, without the `(batch, seq_len, vocabulary)` logits.

    Q(s, a) = logit of token a        V(s) = logsumexp over the vocabulary of Q(s, .)

The forward keeps two numbers a token; the backward computes each tile of logits again:

    dL/dlogits = g_q * onehot(a) + g_v * softmax(logits)

Paper: "Imitating Language via Scalable Inverse Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from .projection import Projection, check_head, product_dtype, project, projection_gradients, sum_dtype, tile_memory
from .reference_kl import reference_kl
from .tiles import RunningStatistics, fold, gradient


# On a CPU 32, 64 and 128 MiB take the same time within 15 %, 32 the least (README, "Speed and memory"). Wider tiles
# should suit a GPU better, which was not measured; 128 is half of what TRL 1.16's fused head takes there.
DEFAULT_LOGIT_BUFFER_MB = 128


@dataclass
class SoftQOutput(ModelOutput):
    """
    What a model with a soft-Q head returns when called with `soft_q="values"`.

    Every field but the last two has the shape `(batch, seq_len - 1)` (or that of `shift_labels`): position t is the
    state after input token t and the action that is token t + 1. It is 0 where the label is -100.

    Attributes:
        q (`torch.Tensor`, float32): Q(s_t, a_t), in nats.
        v (`torch.Tensor`, float32): V(s_t), in nats.
        entropy (`torch.Tensor`, float32, no gradient): entropy of the policy at s_t, in nats.
        is_top1 (`torch.Tensor`, bool): whether a_t is the most likely token.
        labels (`torch.Tensor`, int64): a_t, or -100 where the position is not scored.
        kl (`torch.Tensor`, float32, *optional*): KL(policy || reference) at s_t, in nats, if a reference was passed.
        aux_loss (`torch.Tensor`, *optional*): load-balancing loss of a Mixture-of-Experts model, unweighted.
        hidden_states (`torch.Tensor`, *optional*): with `soft_q="hidden_states"` the only field: `(scored tokens,
            hidden)`, in the order of the grid.
    """

    q: torch.Tensor | None = None
    v: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None


class Reference(NamedTuple):
    """A reference policy at the scored states of a batch: its hidden states there and its projection."""

    hidden_states: torch.Tensor
    projection: Projection


class _SoftQValues(torch.autograd.Function):
    """q and v with gradients; entropy and is_top1 without. See [`soft_q_values`]."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, scale, softcap, buffer_bytes):
        projection = Projection(weight, bias, scale, softcap)
        dtype = product_dtype(hidden, weight)
        stats = RunningStatistics(labels, sum_dtype(dtype))
        with tile_memory(hidden.device, buffer_bytes, sum_dtype(dtype)) as (buffer, work):
            cast_hidden = hidden.to(dtype)
            for rows, columns in projection.tiles(len(labels), buffer_bytes):
                tile = project(cast_hidden[rows], weight[columns].to(dtype), bias, columns, buffer)
                fold(tile, columns.start, stats.rows(rows), scale, softcap, work)
        q, v, entropy, is_top1 = stats.result()
        ctx.save_for_backward(hidden, weight, bias, labels, v)
        ctx.settings = (scale, softcap, buffer_bytes, dtype)
        ctx.mark_non_differentiable(entropy, is_top1)
        return q, v, entropy, is_top1

    @staticmethod
    def backward(ctx, grad_q, grad_v, *_):
        hidden, weight, bias, labels, v = ctx.saved_tensors
        scale, softcap, buffer_bytes, dtype = ctx.settings

        def logit_gradient(rows, columns, tile, work):
            return gradient(
                tile, columns.start, labels[rows], v[rows], grad_q[rows], grad_v[rows], scale, softcap, dtype, work
            )

        grads = projection_gradients(
            hidden,
            Projection(weight, bias, scale, softcap),
            ctx.needs_input_grad[:3],
            dtype,
            buffer_bytes,
            logit_gradient,
        )
        return *grads, None, None, None, None


def soft_q_values(
    hidden: torch.Tensor,
    projection: Projection,
    labels: torch.Tensor,
    logit_buffer_mb: float = DEFAULT_LOGIT_BUFFER_MB,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Q of the label and V, for scored tokens only.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, hidden)`):
            Last hidden states at the scored positions.
        projection ([`~soft_q.projection.Projection`]):
            The output projection. No gradient is computed for parameters that do not require one.
        labels (`torch.Tensor` of shape `(tokens,)`, int64):
            The action at each position; no -100 here.
        logit_buffer_mb (`float`, *optional*, defaults to `128`):
            Memory in MiB for the tile of logits at work and its working copy.

    Returns:
        `q, v, entropy, is_top1`, each `(tokens,)`: float32 nats (float64 for a float64 model), `is_top1` boolean. Only
        `q` and `v` carry gradients.
    """
    with projection.gathered():
        return _SoftQValues.apply(
            hidden,
            projection.weight,
            projection.bias,
            labels,
            projection.scale,
            projection.softcap,
            int(logit_buffer_mb * 2**20),
        )


def attach_soft_q_head(model: PreTrainedModel, logit_buffer_mb: float = DEFAULT_LOGIT_BUFFER_MB) -> None:
    """
    Give a causal language model a second way to be called: `model(..., labels=labels, soft_q="values")` returns a
    [`SoftQOutput`] instead of logits. Without `soft_q`, its forward is the original one.

    Attach after PEFT has wrapped the model (pass the inner causal language model) and before the model is prepared
    for distributed training, so that every wrapper's hooks still run around the call. `soft_q="hidden_states"` returns
    only the hidden states at the scored positions, for a reference policy; `reference=Reference(...)` adds the exact
    KL to it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model; its `forward` is replaced on this instance.
        logit_buffer_mb (`float`, *optional*, defaults to `128`):
            See [`soft_q_values`].

    Raises:
        `ValueError`: the model has no head, a quantised one, or one with an adapter.
        `RuntimeError`: the model's own logits are not what its head and config say, so Q would be wrong.
    """
    check_head(model)
    _check_against_own_logits(model)
    original_forward = model.forward

    # `generate` validates its arguments against the signature, so keep the model's own.
    @functools.wraps(type(model).forward)
    def forward(
        self,
        *args,
        soft_q: str | None = None,
        reference: Reference | None = None,
        labels=None,
        shift_labels=None,
        **kw,
    ):
        if soft_q is None:
            given = {"labels": labels, "shift_labels": shift_labels}
            return original_forward(*args, **{k: x for k, x in given.items() if x is not None}, **kw)
        return _soft_q_forward(self, args, kw, labels, shift_labels, soft_q, reference, logit_buffer_mb)

    model.forward = types.MethodType(forward, model)


def _soft_q_forward(
    model: PreTrainedModel,
    args: tuple,
    kwargs: dict[str, Any],
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    what: str,
    reference: Reference | None,
    logit_buffer_mb: float,
) -> SoftQOutput:
    kwargs.pop("num_items_in_batch", None)  # a loss argument, and there is no loss here
    backbone = model.base_model(*args, **{**kwargs, "use_cache": False})
    hidden = backbone.last_hidden_state
    if shift_labels is None:
        hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
    # With a `device_map`, the backbone can end on another device than the head.
    projection = Projection.of(model)
    device = projection.weight.device
    hidden, shift_labels = hidden.to(device), shift_labels.to(device)
    scored = shift_labels != -100
    positions = scored.nonzero(as_tuple=True)  # once: on a GPU it waits for the device
    hidden = hidden[positions]
    if what == "hidden_states":
        return SoftQOutput(hidden_states=hidden)

    def grid(values: torch.Tensor) -> torch.Tensor:
        # `masked_scatter` keeps the graph even when nothing is scored: such a batch then contributes a zero gradient
        # on every rank instead of none on one.
        return values.new_zeros(scored.shape).masked_scatter(scored, values)

    q, v, entropy, is_top1 = soft_q_values(hidden, projection, shift_labels[positions], logit_buffer_mb)
    kl = None
    if reference is not None:
        kl = grid(reference_kl(hidden, projection, *reference, logit_buffer_mb))
    return SoftQOutput(
        q=grid(q),
        v=grid(v),
        entropy=grid(entropy),
        is_top1=grid(is_top1),
        labels=shift_labels,
        kl=kl,
        aux_loss=_load_balancing_loss(model, backbone, kwargs),
    )


def _load_balancing_loss(model: PreTrainedModel, backbone: ModelOutput, kwargs: dict) -> torch.Tensor | None:
    if not kwargs.get("output_router_logits"):
        return None
    # Every MoE family of transformers takes this function from Mixtral.
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    return load_balancing_loss_func(
        backbone.router_logits, config.num_experts, config.num_experts_per_tok, kwargs.get("attention_mask")
    )


@torch.no_grad()
def _check_against_own_logits(model: PreTrainedModel) -> None:
    """
    Compare eight positions with the model's own logits, so that an architecture whose forward does something to its
    logits that [`logit_postprocessing`] does not know is refused instead of trained wrong.

    Left out where a forward is not possible now: parameters on the meta device or partitioned by ZeRO-3, and
    multimodal models, whose inputs are more than token ids.
    """
    if model.config.get_text_config() is not model.config or any(
        p.device.type == "meta" or hasattr(p, "ds_id") for p in model.parameters()
    ):
        return
    embeddings = model.get_input_embeddings().weight
    input_ids = torch.arange(1, 9, device=embeddings.device).unsqueeze(0) % embeddings.size(0)
    captured = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    was_training = model.training
    # In training mode, because bitsandbytes repacks 4-bit weights for inference when a CPU model is evaluated, and no
    # gradient passes through them any more. Dropout does no harm: hidden states and logits are of one forward.
    model.train()
    try:
        with torch.random.fork_rng(devices=[embeddings.device] if embeddings.is_cuda else []):
            logits = model(input_ids=input_ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()
        model.train(was_training)
    projection = Projection.of(model)
    labels = input_ids[0].to(logits.device)
    q, v, *_ = soft_q_values(captured[0][0], projection, labels.to(projection.weight.device))
    own = torch.stack([logits.gather(1, labels.unsqueeze(1)).squeeze(1), logits.logsumexp(1)])
    ours = torch.stack([q, v]).to(own)
    # bfloat16 logits carry 8 bits; a wrong scale or a missing softcap is off by far more.
    tolerance = 0.03 * own.abs().max().clamp(min=0.1)
    if own.isfinite().all() and (own - ours).abs().max() > tolerance:
        raise RuntimeError(
            f"{type(model).__name__} does something to its logits that the soft-Q head does not know: on a probe, its "
            f"own Q and V are {own[:, 0].tolist()} and the head gives {ours[:, 0].tolist()}. Training would optimise "
            "the wrong function. Please report the architecture."
        )
