"""What an encoder-decoder must be, before anything is trained."""

from __future__ import annotations

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel, TrainingArguments

from ...rewards.adapters import config_of
from ...soft_q.packed import shifted
from ..runtime.models import sharding_of


logger = get_logger(__name__)


def check_encoder_decoder(model: str | PreTrainedModel, key: str, trust_remote_code: bool = False) -> None:
    """
    Raises:
        `ValueError`: the model is decoder-only.
    """
    named = isinstance(model, str)
    config = config_of(model, key, trust_remote_code=trust_remote_code) if named else model.config
    if not config.is_encoder_decoder:
        what = f"`{key}: {model}`" if named else type(model).__name__
        raise ValueError(
            f"{what} is decoder-only ({config.model_type}): it reads prompt and completion as one text. Train it with "
            "`IRLTrainer`."
        )


def check_decoder_start(model: PreTrainedModel) -> None:
    """
    Raises:
        `ValueError`: the configuration does not say what the decoder begins with.
    """
    try:
        first = shifted(model, torch.tensor([[1]], device=model.device))
    except Exception as error:  # each family says it in its own way
        raise ValueError(_NO_START.format(type(model).__name__)) from error
    if first[0, 0].item() < 0:
        raise ValueError(_NO_START.format(type(model).__name__))


_NO_START = (
    "The configuration of {} has no `decoder_start_token_id`, the token that its decoder begins with, or no "
    "`pad_token_id`. Set both in `model.config`; T5's are both its padding token."
)


def check_shared_embeddings(args: TrainingArguments, model: PreTrainedModel) -> None:
    """
    Raises:
        `ValueError`: encoder and decoder share their embeddings, as those of T5 and BART do, and the launcher is FSDP.
    """
    encoder, decoder = (one.get_input_embeddings() for one in (model.get_encoder(), model.get_decoder()))
    if sharding_of(args) == "FSDP" and getattr(encoder, "weight", None) is getattr(decoder, "weight", 0):
        raise ValueError(
            f"The encoder and the decoder of {type(model).__name__} share their embeddings, and the launcher is FSDP, "
            "which cannot shard a weight that two of its units hold. Launch with ddp, zero2 or zero3."
        )


def keep_float32_islands(model: PreTrainedModel) -> None:
    """
    Modules that the model's family keeps in float32 (T5's `wo`) in float32, whatever it was loaded in, and a warning
    of float16, in which T5's activations overflow: FLAN-T5 then has a loss of zero or NaN.
    """
    if model.dtype != torch.float16:
        return
    islands = set(model._keep_in_fp32_modules or ())
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in islands:
            module.to(torch.float32)
    logger.warning(
        f"{type(model).__name__} is in float16, in which the activations of T5 and its kin overflow. Load it in "
        "bfloat16 or float32 (`dtype`)."
    )
