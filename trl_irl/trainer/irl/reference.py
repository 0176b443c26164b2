"""The reference policy, of the KL and of the origin of values, where it is a model of its own."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path

from ...soft_q import attach_soft_q_head
from ...soft_q.head import can_run, without_forwards
from ...soft_q.own_forward import embedding_rows
from ..runtime.models import causal_lm


def own_reference(trainer, model: str | PreTrainedModel) -> PreTrainedModel:
    """A copy of the policy as it is now or, under ZeRO-3, where no rank has it whole, the model loaded by name."""
    if can_run(trainer.model):
        reference = copy.deepcopy(trainer.model)
        without_forwards(causal_lm(reference))
        return reference
    args = trainer.args
    kwargs = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {}), "device_map": None}
    return create_model_from_path(model, **kwargs)


def prepared_reference(ref_model: PreTrainedModel, trainer) -> PreTrainedModel:
    """
    A reference for an [`IRLTrainer`]: frozen, with a soft-Q head, and prepared for the launcher.

    Raises:
        `ValueError`: it has another number of embeddings than the policy.
    """
    language_model, policy = causal_lm(ref_model), causal_lm(trainer.model)
    sizes = [embedding_rows(m) for m in (policy, language_model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The model has {sizes[0]} embeddings and `ref_model` {sizes[1]}. It is compared token by token: "
            "use a reference of the same model family, resized alike."
        )
    ref_model.requires_grad_(False)
    ref_model.eval()
    attach_soft_q_head(language_model, trainer.args.logit_buffer_mb)
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(ref_model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(ref_model, trainer.accelerator)
    prepared, models = len(trainer.accelerator._models), trainer.accelerator._models
    ref_model = trainer.accelerator.prepare_model(ref_model, evaluation_mode=True)
    # Where it has prepared some model, the Trainer takes the policy for prepared too, and evaluates it as it is.
    del models[prepared:]
    return ref_model
