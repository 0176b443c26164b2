"""
The soft-Q head: Q(s_t, a_t) and V(s_t) of every scored token, without the `(batch, seq_len, vocabulary)` logits.

    Q(s, a) = logit of token a        V(s) = logsumexp over the vocabulary of Q(s, .)

It is a second way to call a causal language model; the numbers are those of [`~soft_q.values`].

Paper: "Imitating Language via Scalable Inverse Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from .._modes import in_mode
from .buffer import DEFAULT_LOGIT_BUFFER_MB
from .own_forward import (
    Postprocessing,
    UnknownHeadError,
    fit_postprocessing,
    forward_before,
    probe_inputs,
    probe_logits,
    run_without_projection,
    runnable_attention,
)
from .packed import decoder_inputs
from .projection import Projection, check_head, check_linear
from .reference_kl import Reference
from .statistics import Statistics
from .values import soft_q_values


@dataclass
class SoftQOutput(ModelOutput):
    """
    What a model with a soft-Q head returns when called with `soft_q="values"`.

    Every field but `aux_loss`, `logits` and `hidden_states` has the shape `(batch, seq_len - 1)` (or that of
    `shift_labels`): position t is the state after input token t and the action that is token t + 1. It is 0 where the
    label is -100. Of an encoder-decoder the shape is that of `labels`, which are aligned with the decoder's states.

    Attributes:
        q (`torch.Tensor`, float32): Q(s_t, a_t), in nats.
        v (`torch.Tensor`, float32): V(s_t), in nats.
        entropy (`torch.Tensor`, float32): entropy of the policy at s_t, in nats; with gradient if one was asked for.
        is_top1 (`torch.Tensor`, bool): whether a_t is the most likely token.
        labels (`torch.Tensor`, int64): a_t, or -100 where the position is not scored.
        mean_logit, v_tempered, gem (`torch.Tensor`, float32, *optional*): with `statistics=`, what it asks for at s_t:
            see [`~soft_q.statistics.Statistics`].
        kl (`torch.Tensor`, float32, *optional*): KL(policy || reference) at s_t, in nats, if a reference was passed.
        v_ref (`torch.Tensor`, float32, *optional*): V(s_t) of the reference, in nats, if its values are asked for.
        aux_loss (`torch.Tensor`, *optional*): load-balancing loss of a Mixture-of-Experts model, unweighted.
        logits (`torch.Tensor`, *optional*): with `return_logits=True` the model's own, of the same forward:
            `(batch, seq_len, vocabulary)`, with gradient.
        hidden_states (`torch.Tensor`, *optional*): with `soft_q="hidden_states"` the only field: `(scored tokens,
            hidden)`, in the order of the grid.
    """

    q: torch.Tensor | None = None
    v: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    mean_logit: torch.Tensor | None = None
    v_tempered: torch.Tensor | None = None
    gem: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    v_ref: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None


@dataclass(frozen=True)
class _Attached:
    """
    What a model with a soft-Q head remembers. Plain values, so that copies and pickles of the model have their own.

    Attributes:
        logit_buffer_mb (`float` or `"auto"`)
        postprocessing ([`~soft_q.own_forward.Postprocessing`], *optional*):
            `None` until the first forward where it could not be measured before (ZeRO-3, the meta device).
        projection_size (`int`, *optional*):
            Rows of the projection when it was measured.
    """

    logit_buffer_mb: float | str
    postprocessing: Postprocessing | None
    projection_size: int | None


def attach_soft_q_head(model: PreTrainedModel, logit_buffer_mb: float | str = DEFAULT_LOGIT_BUFFER_MB) -> None:
    """
    Give a language model a second way to be called: `model(..., labels=labels, soft_q="values")` returns a
    [`SoftQOutput`] instead of logits. Without `soft_q`, its forward is the original one. A copy of the model computes
    with the copy's weights, and to attach a second time changes the buffer alone. Of an encoder-decoder the labels are
    the decoder's, `decoder_input_ids` are made of them if they are not given, and `encoder_documents` and
    `decoder_documents` keep several documents of a row apart: see [`~soft_q.packed`].

    Attach after PEFT has wrapped the model (pass the inner causal language model) and before the model is prepared
    for distributed training, so that every wrapper's hooks still run around the call. `soft_q="hidden_states"` returns
    only the hidden states at the scored positions, for a reference policy; `reference=Reference(...)` adds the exact
    KL to it, or its V, or both; `statistics=Statistics(...)` adds more numbers per token; `return_logits=True` adds
    the full logits.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal or encoder-decoder language model; its `forward` is replaced on this instance.
        logit_buffer_mb (`float` or `"auto"`, *optional*, defaults to `128`):
            See [`soft_q_values`].

    Raises:
        `ValueError`: the model has no head, a quantised one or one with an adapter; it cannot be run on tokens alone,
            or its logits are then not finite.
        [`~soft_q.own_forward.UnknownHeadError`]: a `ValueError`: its forward does not call its output projection once,
            it does something to its logits that is no scale, soft cap or shorter vocabulary, or its own Q and V on a
            probe are not what the head computes.
    """
    check_head(model)
    known = vars(model).get("_soft_q")
    size = _projection_size(model)
    if known is None or known.postprocessing is None or known.projection_size != size:
        postprocessing = _measured(model) if can_run(model) else None
        known = _Attached(logit_buffer_mb, postprocessing, size)
    model._soft_q = replace(known, logit_buffer_mb=logit_buffer_mb)
    if not _is_attached(model):
        below = vars(model).get("_forwards_before_soft_q", [])
        model._forwards_before_soft_q = [*below, vars(model).get("forward")]
        model.forward = types.MethodType(_forward_with_soft_q(type(model), len(below)), model)


def without_forwards(model: PreTrainedModel) -> None:
    """
    Of a copy, its class's own forward: what another trainer has put on the original (TRL's own head) holds on to that,
    and would compute with its weights. What accelerate puts there to move inputs between devices stays.
    """
    if not hasattr(model, "_hf_hook"):
        for name in ("forward", "_forwards_before_soft_q"):
            vars(model).pop(name, None)


@contextmanager
def soft_q_head(model: PreTrainedModel) -> Iterator[None]:
    """A soft-Q head on a model for a while: what had none before has none after. See [`attach_soft_q_head`]."""
    if _is_attached(model):
        yield
        return
    before = vars(model).get("forward")
    attach_soft_q_head(model)
    try:
        yield
    finally:
        del model.forward, model._forwards_before_soft_q[-1]
        if not model._forwards_before_soft_q:
            del model._forwards_before_soft_q
        if before is not None:
            model.forward = before


def projection_of(model: PreTrainedModel, with_adapters: bool = True) -> Projection:
    """The output projection of a model with a soft-Q head; see [`~soft_q.projection.Projection.of`]."""
    return Projection.of(model, model._soft_q.postprocessing, with_adapters)


def _forward_with_soft_q(model_class: type[PreTrainedModel], layer: int):
    # `generate` and Trainer look at a forward's signature, so keep the model's own. No model is in the closure: a
    # bound method of a copy is bound to the copy.
    @functools.wraps(model_class.forward)
    def forward(
        self,
        *args,
        soft_q: str | None = None,
        reference: Reference | None = None,
        statistics: Statistics | None = None,
        return_logits: bool = False,
        labels=None,
        shift_labels=None,
        **kw,
    ):
        if soft_q is None:
            given = {"labels": labels, "shift_labels": shift_labels}
            return forward_before(self, layer)(*args, **{k: x for k, x in given.items() if x is not None}, **kw)
        return _soft_q_forward(self, args, kw, labels, shift_labels, soft_q, reference, statistics, return_logits)

    forward.is_soft_q = True
    return forward


def _is_attached(model: PreTrainedModel) -> bool:
    # accelerate may have wrapped the forward since, for autocast.
    forward = vars(model).get("forward")
    while forward is not None and not getattr(forward, "is_soft_q", False):
        forward = getattr(forward, "__wrapped__", None) or getattr(forward, "__func__", None)
    return forward is not None


def _projection_size(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    weight = getattr(head, "original_module", head).weight
    return getattr(weight, "ds_shape", weight.shape)[0]


def _soft_q_forward(
    model: PreTrainedModel,
    args: tuple,
    kwargs: dict[str, Any],
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    what: str,
    reference: Reference | None,
    statistics: Statistics | None,
    return_logits: bool,
) -> SoftQOutput:
    kwargs.pop("num_items_in_batch", None)  # a loss argument, and there is no loss here
    if model.config.is_encoder_decoder:
        kwargs = decoder_inputs(model, kwargs, labels)
        shift_labels = labels
    hidden, output = _run(model, args, kwargs, return_logits)
    given = labels if shift_labels is None else shift_labels
    if given.shape != hidden.shape[:-1]:
        raise ValueError(
            f"The labels have the shape {tuple(given.shape)} beside ids of {tuple(hidden.shape[:-1])}. Each token has "
            "a label, its own or -100; they are shifted here."
        )
    if shift_labels is None:
        hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
    found = _at_labels(model, hidden, shift_labels, what, reference, statistics)
    if what == "values":
        found |= {"aux_loss": getattr(output, "aux_loss", None), "logits": output.logits if return_logits else None}
    return SoftQOutput(**found)


# Tiles are views of one buffer, and as many as the scored tokens ask for: `torch.compile` would trace each size anew,
# and gain nothing.
@torch.compiler.disable
def _at_labels(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    shift_labels: torch.Tensor,
    what: str,
    reference: Reference | None,
    statistics: Statistics | None,
) -> dict[str, torch.Tensor | None]:
    """The fields of an output that are of the scored positions."""
    # With a `device_map`, the backbone can end on another device than the head, and a loss is awaited on that of the
    # labels: accelerate moves a model's outputs back, but below this forward.
    projection = projection_of(model)
    device, given = projection.weight.device, shift_labels
    hidden, shift_labels = hidden.to(device), shift_labels.to(device)
    scored = shift_labels != -100
    positions = scored.nonzero(as_tuple=True)  # once: on a GPU it waits for the device
    hidden = hidden[positions]
    if what == "hidden_states":
        return {"hidden_states": hidden}

    def grid(values: torch.Tensor | None) -> torch.Tensor | None:
        if values is None:
            return None
        # This keeps the graph even when nothing is scored: such a batch then contributes a zero gradient on every rank
        # instead of none on one. The backward of `masked_scatter` would wait for a GPU.
        return values.new_zeros(scored.shape).index_put(positions, values).to(given.device)

    buffer = model._soft_q.logit_buffer_mb
    values = soft_q_values(hidden, projection, shift_labels[positions], buffer, statistics, reference)
    return {name: grid(value) for name, value in values._asdict().items()} | {"labels": given}


def _run(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any], with_logits: bool):
    """Hidden states that the projection gets, and the forward's output, with logits that mean something if asked."""
    head = model.get_output_embeddings()
    if model._soft_q.projection_size != (size := _projection_size(model)):  # embeddings were resized
        model._soft_q = replace(model._soft_q, postprocessing=None, projection_size=size)
    if model._soft_q.postprocessing is not None:
        nothing = (lambda hidden: hidden.new_zeros(*hidden.shape[:-1], 1)) if not with_logits else head
        return run_without_projection(model, args, kwargs, nothing)
    # The first forward of a model that could not be probed before, or has changed since: its postprocessing shows on
    # the way.
    hidden, output, postprocessing = _probed(model, args, kwargs)
    model._soft_q = replace(model._soft_q, postprocessing=postprocessing)
    return (hidden, output) if not with_logits else _run(model, args, kwargs, True)


def _probed(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]):
    """Hidden states, output and postprocessing of a forward with known numbers in the projection's place."""
    vocabulary, given = _projection_size(model), []

    def answer(hidden: torch.Tensor) -> torch.Tensor:
        given.append(probe_logits(hidden, vocabulary))
        return given[0]

    hidden, output = run_without_projection(model, args, kwargs, answer)
    return hidden, output, fit_postprocessing(model, given[0], output.logits)


def can_run(model: PreTrainedModel) -> bool:
    """Whether the weights are all here: not on the meta device, not partitioned by ZeRO-3."""
    return not any(p.device.type == "meta" or hasattr(p, "ds_id") for p in model.parameters())


@torch.no_grad()
def _measured(model: PreTrainedModel) -> Postprocessing:
    """
    The model's postprocessing, from a forward of a few tokens with known numbers in the projection's place; then a
    forward as training calls it, whose Q and V must be those of the model's own logits.
    """
    asked = probe_inputs(model)
    input_ids = asked["input_ids"]
    head = model.get_output_embeddings()
    name = type(model).__name__
    # In training mode, because bitsandbytes repacks 4-bit weights for inference when a CPU model is evaluated, and no
    # gradient passes through them any more. Dropout does no harm: hidden states and logits are of one forward.
    devices = [input_ids.device] if input_ids.is_cuda else []
    try:
        with runnable_attention(model), in_mode(model, training=True), torch.random.fork_rng(devices=devices):
            with torch.enable_grad():  # shows trainable weights after the projection
                *_, postprocessing = _probed(model, (), asked)
            hidden, output = run_without_projection(model, (), asked, head)
    except UnknownHeadError:
        raise
    except Exception as error:  # of the model's own code, which may ask for an image, a language or a length
        raise ValueError(
            f"{name} cannot be run on {input_ids.size(1)} tokens alone, so the soft-Q head cannot make sure that it "
            f"computes what the model does: {type(error).__name__}: {error}"
        ) from error
    if hidden.shape[:2] != input_ids.shape:
        raise UnknownHeadError(
            f"{name} gives its output projection {hidden.size(1)} positions of {input_ids.size(1)} tokens, and the "
            "soft-Q head needs one a token. This architecture is not supported; please report it."
        )
    logits = output.logits[0].to(torch.promote_types(output.logits.dtype, torch.float32))
    labels = input_ids[0].to(logits.device)
    projection = Projection.of(model, postprocessing)
    hidden = hidden[0].to(projection.weight.device)
    q, v, *_ = soft_q_values(hidden, projection, labels.to(projection.weight.device))
    own = torch.stack([logits.gather(1, labels.unsqueeze(1)).squeeze(1), logits.logsumexp(1)])
    ours = torch.stack([q, v]).to(own)
    if not own[1].isfinite().all() or own[0].isnan().any():  # Q is -inf where a bias forbids a token
        raise ValueError(
            f"The logits of {name} are NaN or infinite on a probe of {input_ids.size(1)} tokens, before any training. "
            "Load the model in bfloat16 or float32 if it is in float16, and check its weights."
        )
    # 16-bit logits are rounded, and so are the products they are sums of.
    sixteen_bits = min(torch.finfo(x.dtype).bits for x in (output.logits, hidden, projection.weight)) == 16
    size = own.masked_fill(own.isinf(), 0).abs().max()
    tolerance = (0.02 if sixteen_bits else 1e-3) * size.clamp(min=1)
    check_linear(model, projection, hidden)
    if not ((own - ours).masked_fill(own == ours, 0).abs() <= tolerance).all():
        raise UnknownHeadError(
            f"{name} does something to its logits that the soft-Q head does not know: on a probe, its own Q and V are "
            f"{own[:, 0].tolist()} and the head gives {ours[:, 0].tolist()}. Training would optimise the wrong "
            "function. Please report the architecture."
        )
    return postprocessing
