"""
A model's own forward with its output projection taken out: what goes into the projection, and what the model does to
what comes out of it.

Nothing here knows an architecture by its name. Whatever stands between the backbone and the projection (BERT's
prediction head, MiniCPM3's scaling) runs as it does in the model, and what follows it (a scale, a soft cap, a padded
vocabulary that is cut off) is measured by putting known numbers in the projection's place.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput


# What stands in for logits when the postprocessing is measured: small numbers show a scale, large ones a soft cap.
# The largest is still finite in float16.
PROBE_LOGITS = (1.0, -1.0, 0.0, 0.25, -0.5, 3.0, -10.0, 30.0, -50.0, 100.0, -300.0, 1e3, -3e3, 1e4, 3e4, -3e4)


def check_decoder_only(config: PretrainedConfig, what: str) -> None:
    """
    Raises:
        `ValueError`: the model is an encoder-decoder, such as T5 or BART. Given one text, some of these (BART) answer
            as if nothing were amiss, with the whole text before the encoder's eyes.
    """
    if config.is_encoder_decoder:
        raise ValueError(
            f"{what} is an encoder-decoder model ({config.model_type}), and here one model reads prompt and "
            "completion as one text. Take a decoder-only language model (Llama, Qwen, GPT-2 and so on), or train "
            "this one with `Seq2SeqIRLTrainer` or `Seq2SeqOnlineIRLTrainer` (`trl-irl irl`, `trl-irl online-irl`)."
        )


class UnknownHeadError(ValueError):
    """What a model does between its backbone and its logits is not what the soft-Q head can stand in for."""


@dataclass(frozen=True)
class Postprocessing:
    """
    What a model does to the outputs x of its projection: `softcap * tanh(scale * x / softcap)`, of the first
    `vocabulary` of them.

    Attributes:
        scale (`float`): Cohere, Granite, Falcon-H1 and others have one.
        softcap (`float`, *optional*): Gemma 2 and others.
        vocabulary (`int`): columns that the model's logits have; the projection may be padded beyond them.
        adds_bias (`bool`): whether the model's `final_logits_bias` (BART, Marian and others) is added to x before.
    """

    scale: float
    softcap: float | None
    vocabulary: int
    adds_bias: bool = False


class _StandIn(nn.Module):
    """In the place of the output projection for one forward; its attributes are the projection's."""

    def __init__(self, projection: nn.Module, answer: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        # Not as a submodule: hooks and walks over the model are not to find the projection here.
        object.__setattr__(self, "projection", projection)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "seen", [])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.seen.append(hidden)
        return self.answer(hidden)

    def __getattr__(self, name: str):
        return getattr(object.__getattribute__(self, "projection"), name)  # such as `lm_head.weight.dtype`


@contextmanager
def _replaced(model: nn.Module, module: nn.Module, by: nn.Module) -> Iterator[None]:
    # As an entry of its parent and not through its own forward: no hook of the projection runs (ZeRO-3 would gather
    # its weight), and nothing stays behind on it.
    places = [
        (parent._modules, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is module
    ]
    for modules, name in places:
        modules[name] = by
    try:
        yield
    finally:
        for modules, name in places:
            modules[name] = module


def _flash_attention(model: PreTrainedModel) -> list[PretrainedConfig]:
    """The configs by which parts of a model attend with a kernel for GPUs and 16 bits."""
    configs = {id(one.config): one.config for one in model.modules() if isinstance(one, PreTrainedModel)}
    return [one for one in configs.values() if "flash" in (one._attn_implementation_internal or "")]


def waits_for_gpu(model: PreTrainedModel) -> bool:
    """Whether a model attends with a kernel for GPUs, and has not been moved to one yet."""
    return model.device.type == "cpu" and bool(_flash_attention(model))


@contextmanager
def runnable_attention(model: PreTrainedModel) -> Iterator[None]:
    """
    Where a kernel for attention could not run (the model is on a CPU still, as before FSDP2 and ZeRO-2 move it, or in
    float32, since autocast comes with the training) plain attention stands in for it: for what a model does to its
    logits that is no matter.
    """
    instead = model.device.type == "cpu" or model.dtype.itemsize > 2
    before = [(one, one._attn_implementation_internal) for one in _flash_attention(model) if instead]
    for one, _ in before:  # each by itself: the public name would set the parts of a model too
        one._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        for one, implementation in before:
            one._attn_implementation_internal = implementation


def forward_before(model: PreTrainedModel, layer: int = -1) -> Callable[..., ModelOutput]:
    """
    The model's forward as it was before a soft-Q head was attached: the last one, or the one of that number. A head is
    attached again over what another trainer has put on it since (TRL's own head), and each must find what is below it.
    """
    below = vars(model).get("_forwards_before_soft_q")
    before = below[layer] if below else None
    return type(model).forward.__get__(model) if before is None else before


# The swap is not to be traced by `torch.compile`; the layers inside still are.
@torch.compiler.disable(recursive=False)
def run_without_projection(
    model: PreTrainedModel, args: tuple, kwargs: dict[str, Any], answer: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, ModelOutput]:
    """
    Run a causal language model's own forward with something else in the place of its output projection.

    Args:
        model ([`~transformers.PreTrainedModel`])
        args, kwargs:
            Of its forward, without labels. `use_cache=False` is added where the forward takes it.
        answer (`Callable`):
            What the projection gives, from the hidden states it would get.

    Returns:
        `tuple[torch.Tensor, ModelOutput]`: the hidden states that the projection would get, `(batch, seq_len,
        hidden)`, and the forward's output.

    Raises:
        [`UnknownHeadError`]: the forward does not call the module that `get_output_embeddings()` returns, or not once.
    """
    projection = model.get_output_embeddings()
    stand_in = _StandIn(projection, answer)
    parameters = inspect.signature(type(model).forward).parameters
    if "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        kwargs = {**kwargs, "use_cache": False}
    with _replaced(model, projection, stand_in):
        output = forward_before(model)(*args, **kwargs)
    name = type(model).__name__
    if len(stand_in.seen) != 1:
        raise UnknownHeadError(
            f"The forward of {name} calls its output embeddings ({type(projection).__name__}) {len(stand_in.seen)} "
            "times, and the soft-Q head stands in for one projection of the hidden states. This architecture is not "
            "supported; please report it."
        )
    hidden = stand_in.seen[0]
    if hidden.dim() != 3 or not hidden.is_floating_point():
        raise UnknownHeadError(
            f"{name} gives its output projection {hidden.dtype} of shape {tuple(hidden.shape)}, and the soft-Q head "
            "needs hidden states of shape (batch, seq_len, hidden). This architecture is not supported; please report "
            "it."
        )
    return hidden, output


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens a model's input embeddings have rows for, whatever PEFT has put around them."""
    embeddings = model.get_input_embeddings()
    embeddings = getattr(embeddings, "original_module", embeddings)
    if isinstance(embeddings, BaseTunerLayer):
        embeddings = embeddings.get_base_layer()
    return getattr(embeddings, "num_embeddings", None) or model.config.get_text_config().vocab_size


def logits_bias(model: PreTrainedModel) -> torch.Tensor | None:
    """What BART, Marian and others add to their logits, `(vocabulary,)`; it is no parameter of the projection."""
    bias = getattr(model, "final_logits_bias", None)
    return bias.flatten() if isinstance(bias, torch.Tensor) else None


def probe_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a forward of [`probe_ids`] alone needs: of an encoder-decoder, for both sides."""
    ids = probe_ids(model)
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


def probe_ids(model: PreTrainedModel) -> torch.Tensor:
    """One row of as many ordinary tokens as there are probe logits."""
    config = model.config
    # Multimodal models put something else in the place of these.
    special = {
        value
        for part in (config, config.get_text_config())
        for key, value in part.to_dict().items()
        if key.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    usable = [i for i in range(min(embedding_rows(model), 4096)) if i not in special] or [0]
    ids = [usable[i % len(usable)] for i in range(1, len(PROBE_LOGITS) + 1)]
    return torch.tensor([ids], device=model.device)


def probe_logits(hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """[`PROBE_LOGITS`] as logits of shape `(1, positions, vocabulary)`, float32 or wider."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    column = torch.tensor(PROBE_LOGITS, dtype=dtype, device=hidden.device)
    return column[None, :, None].expand(1, -1, vocabulary).clone()


def fit_postprocessing(model: PreTrainedModel, given: torch.Tensor, logits: torch.Tensor) -> Postprocessing:
    """
    The postprocessing that turned `given`, from [`probe_logits`], into `logits`.

    Raises:
        [`UnknownHeadError`]: it is no scale and no soft cap, not the same for every token of the vocabulary, or it is
            of weights that training would change.
    """
    if logits.requires_grad:  # where gradients are recorded: the numbers given have none
        raise UnknownHeadError(
            f"{type(model).__name__} makes its logits of more than its output projection: trainable weights, such as "
            "a learned scale or bias, come after it or go past it. The soft-Q head would leave them out, and they "
            "would never be trained. Freeze them (`requires_grad_(False)`), or make them part of the projection."
        )
    vocabulary = logits.size(-1)
    x, y = given[0, :, 0].double(), logits[0].double()
    bias = logits_bias(model)
    adds_bias = bias is not None and bool((bias != 0).any())
    if adds_bias:
        y = y - bias[:vocabulary].to(y)
    # float32 arithmetic; a model may round its logits to 16 bits at the end.
    tolerance = 1e-5 if torch.finfo(logits.dtype).bits > 16 else 1e-2

    def agree(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))

    fits = logits.shape[:-1] == given.shape[:-1] and vocabulary <= given.size(-1) and bool(y.isfinite().all())
    if fits and agree(y, y[:, :1].expand_as(y)):
        y = y[:, 0]
        scale = y[0].item()  # of 1
        if agree(y, scale * x) and (scale == 1 or not adds_bias):
            return Postprocessing(scale, None, vocabulary, adds_bias)
        hint = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        for softcap in () if adds_bias else filter(None, (y.max().item(), hint)):
            if 0 < abs(y[0].item()) < softcap:
                scale = softcap * math.atanh(y[0].item() / softcap)
                if agree(y, softcap * torch.tanh(scale * x / softcap)):
                    return Postprocessing(scale, softcap, vocabulary)
    shown = [] if y.dim() == 0 else y.flatten()[:: max(1, y.numel() // len(PROBE_LOGITS))].tolist()
    raise UnknownHeadError(
        f"{type(model).__name__} does something to its logits that the soft-Q head does not know: where its output "
        f"projection gives {list(PROBE_LOGITS)} for each of {given.size(-1)} tokens, its logits, of shape "
        f"{tuple(logits.shape)}, are such as {[round(value, 4) for value in shown[:16]]}. A scale, a soft cap and a "
        "shorter vocabulary are known. Training would optimise the wrong function. Please report the architecture."
    )
