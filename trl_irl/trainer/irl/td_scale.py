"""The weight of the temporal-difference term: its scale is measured before the first step, and it is watched."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import TrainerCallback

from ...soft_q.objectives import Penalised
from ..runtime.models import no_dropout


logger = get_logger(__name__)


@torch.no_grad()
def measured_td_scale(trainer, batches: list[dict[str, Any]]) -> float:
    """
    The mean over the tokens of a step, of all its micro-batches and ranks, of what the objective squares (the implied
    reward, if it squares nothing else), in nats squared, but no less than 1. Every rank must call. Nothing random is
    drawn, and training goes on as if this had not been.
    """
    sums = torch.zeros(2, device=trainer.args.device)
    with no_dropout(trainer.model), trainer.compute_loss_context_manager():
        for batch in batches:
            output = trainer.model_wrapped(**trainer._prepare_inputs(dict(batch)), soft_q="values")
            terms = trainer.soft_q_terms(output)
            squares, known = terms.reward.square(), terms.has_reward
            if isinstance(trainer.objective, Penalised):
                squares, known = trainer.objective.squares(terms, output)
            sums += torch.stack([squares.sum(), known.sum()]).to(sums)
    squared, tokens = trainer.accelerator.reduce(sums, reduction="sum").tolist()
    mean = squared / max(tokens, 1)
    return max(mean, 1.0) if math.isfinite(mean) else 1.0  # if it is not, the first step says so


class ScheduleCheck(TrainerCallback):
    """Says before the first step if the schedule of `lambda_td` is longer than the run."""

    def on_train_begin(self, args, state, control, **kwargs):
        steps, mle, ramp = state.max_steps, args.mle_warmup_steps, args.lambda_td_warmup_steps
        if args.lambda_td_at(steps - 1) >= args.lambda_td:
            return
        if mle >= steps:
            what = "it trains by maximum likelihood to its end"
        else:
            what = f"`lambda_td` gets to {args.lambda_td_at(steps - 1):.3g} of {args.lambda_td:.3g}"
        logger.warning(
            f"The run has {steps} optimiser steps, and `mle_warmup_steps: {mle}` with `lambda_td_warmup_steps: "
            f"{ramp}` takes {mle + ramp}: {what}. Lower them, or train longer."
        )


def drowning(metrics: dict[str, float], td_scale: float) -> str | None:
    """What to say if the temporal-difference term of logged metrics is far above the likelihood."""
    nll, td_loss, lambda_td = metrics["nll"], metrics["td_loss"], metrics["lambda_td"]
    term = lambda_td / td_scale * td_loss
    if not term > 2 * nll:
        return None
    return (
        f"The temporal-difference term is {term:.3g} (lambda_td {lambda_td:.3g} / td_scale {td_scale:.3g} x td_loss "
        f"{td_loss:.3g}) and the nll is {nll:.3g}: training is about the term first, and the likelihood may get worse "
        f"than SFT's. Leave `td_scale` unset to have it measured, or set `td_scale: {max(td_loss, 1.0):.3g}`, or "
        f"`lambda_td: {0.1 * nll * td_scale / td_loss:.1g}`."
    )
