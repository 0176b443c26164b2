"""What the objective measures before the first step, such as the scale of its square; and its weight is watched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import TrainerCallback

from ..._modes import in_mode


logger = get_logger(__name__)


# What the numbers of a first step depend on, beside the objective.
_MEASURED_WITH = ("gamma", "terminal_value", "value_temperature", "value_origin", "td_weights")


class FirstStep:
    """
    Constants of the objective that are means over the first step's tokens, such as `td_scale`.

    Args:
        trainer ([`IRLTrainer`]):
            Its `objective` gets them.
        name (`str`):
            What that is called, so that a resumed run takes over what the same objective has measured.

    Attributes:
        measured (`dict[str, float]`): by name.
        borrowed (`dict[str, float]`): until then, of the run that trained the model, for evaluations.
    """

    def __init__(self, trainer, name: str):
        self._trainer, self._name = trainer, name
        self.measured: dict[str, float] = {}
        self.borrowed: dict[str, float] = {}
        if trainer.args.td_scale is not None:
            self.measured["td_scale"] = trainer.args.td_scale

    def measure(self, batches: list[dict[str, Any]]) -> None:
        """Measure what is not known yet, on the micro-batches of a step. Every rank must call."""
        wanted = [name for name in self._trainer.objective.measures if name not in self.measured]
        if self._trainer.args.lambda_td_in_use == 0 and "td_scale" in wanted:
            wanted.remove("td_scale")
        if wanted:
            self._take(self._means(batches, wanted))

    def to_save(self) -> dict[str, Any]:
        objective = self._trainer.objective
        told = {name: getattr(objective, name) for name in ("value_temperature", "value_origin")}
        told |= {"objective": self._name, "td_weights": self._trainer.args.td_weights}
        return {"td_scale": None, **self.measured, **told}

    def borrow(self, saved: dict[str, Any]) -> None:
        """Until the first step, evaluate with what the same objective measured in the run that trained the model."""
        if saved.get("objective") == self._name and not self._differs(saved):
            self.borrowed = self._found(saved)
            self._trainer.objective = self._trainer.objective.given(self.borrowed | self.measured)

    def _found(self, saved: dict[str, Any]) -> dict[str, float]:
        measures = self._trainer.objective.measures
        return {name: saved[name] for name in measures if saved.get(name) is not None and name not in self.measured}

    def _differs(self, saved: dict[str, Any]) -> list[str]:
        """What a first step's numbers depend on and is not what it was."""
        now = {name: getattr(self._trainer.args, name) for name in ("gamma", "terminal_value")} | self.to_save()
        return [name for name in _MEASURED_WITH if saved.get(name, now[name]) != now[name]]

    def resume(self, saved: dict[str, Any]) -> None:
        """Take over what the run that goes on has measured."""
        before = saved.get("objective", self._name)  # 0.1.0 had one
        if before != self._name:
            logger.warning(
                f"The checkpoint was trained with the objective {before}, and this run has {self._name}: what its "
                "first step measures is measured anew."
            )
            return
        found, differs = self._found(saved), self._differs(saved)
        if found and differs:
            now = {**vars(self._trainer.args), **self.to_save()}
            changes = ", ".join(f"`{name}` {saved[name]} and this run {now[name]}" for name in differs)
            logger.warning(
                f"The checkpoint has {changes}: what its first step measured ({', '.join(found)}) is measured anew."
            )
            return
        self._take(found)

    def _take(self, means: dict[str, float]) -> None:
        self.measured = means | self.measured
        self._trainer.objective = self._trainer.objective.given(self.measured)

    @torch.no_grad()
    def _means(self, batches: list[dict[str, Any]], names: list[str]) -> dict[str, float]:
        """
        Means over the tokens of all micro-batches and ranks; `td_scale`, in nats squared, is no less than 1. Nothing
        random is drawn, and training goes on as if this had not been.
        """
        trainer, objective = self._trainer, self._trainer.objective
        sums = torch.zeros(len(names), 2, device=trainer.args.device)
        with in_mode(trainer.model, training=False), trainer.compute_loss_context_manager():
            for batch in batches:
                inputs = trainer._prepare_inputs(dict(batch))
                asked = {
                    "reference": trainer._reference(trainer.model_wrapped, inputs, kl=False),
                    "statistics": objective.statistics,
                }
                output = trainer._values(trainer.model_wrapped, inputs, **asked)
                found = objective.first_step(trainer.soft_q_terms(output), output)
                sums += torch.stack([torch.stack([x.sum() for x in found[name]]).to(sums) for name in names])
        totals = trainer.accelerator.reduce(sums, reduction="sum").tolist()
        means = {name: total / max(tokens, 1) for name, (total, tokens) in zip(names, totals, strict=True)}
        if "td_scale" in means:  # if it is not finite, the first step says so
            means["td_scale"] = max(means["td_scale"], 1.0) if math.isfinite(means["td_scale"]) else 1.0
        return means


class FreshStart(TrainerCallback):
    """
    Lets a trainer forget what it measured of an attempt that was cut off: `auto_find_batch_size` begins anew after
    each batch that does not fit.
    """

    def __init__(self, trainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self._trainer._forget_metrics()


class ScheduleCheck(TrainerCallback):
    """Says before the first step if the schedule of `lambda_td` is longer than the run."""

    def on_train_begin(self, args, state, control, **kwargs):
        steps, (mle, ramp, _) = state.max_steps, args.schedule_of(state.max_steps)
        if steps >= mle + max(ramp, 1) or args.lambda_td_in_use == 0:
            return
        if mle >= steps:
            what = "it trains by maximum likelihood to its end"
        else:
            what = f"`lambda_td` gets to {args.lambda_td_at(steps - 1, steps):.3g} of {args.lambda_td:.3g}"
        logger.warning(
            f"The run has {steps} optimiser steps, and `mle_warmup_steps: {args.mle_warmup_steps}` with "
            f"`lambda_td_warmup_steps: {args.lambda_td_warmup_steps}` takes {mle + ramp}: {what}. Lower them, or "
            "train longer."
        )


def drowning(metrics: dict[str, float], td_scale: float, squares: Sequence[str], is_measured: bool) -> str | None:
    """
    What to say if the temporal-difference term of logged metrics, which is of those of the names `squares`, is far
    above the likelihood; `is_measured` says whether `td_scale` is what the first step found.
    """
    nll, lambda_td = metrics["nll"], metrics["lambda_td"]
    td_loss = sum(metrics[name] for name in squares)
    term = lambda_td / td_scale * td_loss
    if not term > 2 * nll:
        return None
    weight = f"`lambda_td: {0.1 * nll * td_scale / td_loss:.1g}`"
    if is_measured:
        what = f"`td_scale` is measured already: set {weight}, or leave it where the model imitates the data as it is"
    else:
        what = f"Leave `td_scale` unset to have it measured, or set `td_scale: {max(td_loss, 1.0):.3g}`, or {weight}"
    return (
        f"The temporal-difference term is {term:.3g} (lambda_td {lambda_td:.3g} / td_scale {td_scale:.3g} x "
        f"{' + '.join(squares)} {td_loss:.3g}) and the nll is {nll:.3g}: training is about the term first, and the "
        f"likelihood may get worse than SFT's. {what}."
    )
