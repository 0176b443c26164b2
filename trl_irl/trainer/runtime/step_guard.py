"""A step whose loss or gradients are not finite: kept away from the weights, counted, or the end of the run."""

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from transformers import TrainerState, TrainingArguments

from .checkpoints import how_to_go_on


logger = get_logger(__name__)

MAX_SKIPPED_IN_A_ROW = 10


class StepGuard:
    """
    Keeps an optimiser step whose loss or gradients are not finite away from the weights ([`IRLConfig.nan_policy`]).

    One look at the gradient norm, which is the same on every rank, decides: a loss that is not finite is made to give
    gradients that are all NaN. DeepSpeed by itself leaves out a step with such gradients.
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.skipped = 0
        self._in_a_row = 0
        self._finite: torch.Tensor | None = None  # whether all losses of this step on this rank were

    def watch(self, loss: torch.Tensor) -> torch.Tensor:
        """Take note of a micro-batch's loss, a scalar; returned with NaN gradients if it is not finite."""
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        # By a factor, since an infinite loss can have finite gradients, and NaN in the branch of a `where` that is not
        # taken is still NaN in the backward.
        return loss * torch.where(finite, 1.0, torch.nan)

    def is_sound(self, grad_norm: torch.Tensor | float | None) -> bool:
        """
        Whether a step may reach the weights, given the norm of its gradients before clipping. To be called once an
        optimiser step by all ranks; `finite_losses` is then of that step.
        """
        losses = torch.ones((), dtype=torch.bool) if self._finite is None else self._finite
        self._finite = None
        sound = grad_norm is None or bool(torch.as_tensor(float(grad_norm)).isfinite())
        if self.accelerator.distributed_type == "DEEPSPEED":
            sound = sound and not self.accelerator.optimizer_step_was_skipped
        if sound:
            self._in_a_row = 0
            return True
        # Of every rank, in rank order. Only here: all ranks see the same norm, so all of them come here.
        self.finite_losses = self.accelerator.gather(losses.to(self.accelerator.device).reshape(1)).tolist()
        return self.accelerator.mixed_precision == "fp16" and all(self.finite_losses)

    def on_fault(self, state: TrainerState, metrics: dict[str, float], learning_rate: float) -> None:
        """
        Count a step that is not sound, or end the run.

        Args:
            state ([`~transformers.TrainerState`]):
                Of before the step.
            metrics (`dict[str, float]`):
                Of the step, over all ranks.
            learning_rate (`float`):
                Of the step.

        Raises:
            `FloatingPointError`: `nan_policy="stop"`, or too many steps in a row were skipped.
        """
        self.skipped += 1
        self._in_a_row += 1
        bad_ranks = [rank for rank, finite in enumerate(self.finite_losses) if not finite]
        what = "the loss is finite, but its gradients are not"
        if bad_ranks:
            where = f" on rank {', '.join(map(str, bad_ranks))}" if len(self.finite_losses) > 1 else ""
            what = f"the loss is NaN or infinite{where}"
        what = f"Step {state.global_step + 1}: {what}."
        too_many = self._in_a_row >= MAX_SKIPPED_IN_A_ROW
        if self.args.nan_policy == "skip" and not too_many:
            logger.warning(f"{what} It was skipped: the weights are those of the step before. {self.skipped} so far.")
            return
        lines = [what]
        if too_many:
            lines[0] += f" It is number {self._in_a_row} in a row, so skipping does not help (`nan_policy: skip`)."
        lines.append(f"This step: {_listed({**metrics, 'learning_rate': learning_rate})}.")
        logged = next((entry for entry in reversed(state.log_history) if "nll" in entry), None)
        if logged is not None:
            lines.append(f"At the last log, step {logged['step']}: {_listed(logged)}.")
        lines.append(_hint(metrics, logged or {}, learning_rate))
        lines.append(how_to_go_on(self.args.output_dir))
        raise FloatingPointError("\n".join(lines))


_TOLD = ("nll", "td_loss", "td_loss_terminal_share", "lambda_td", "v_mean", "kl", "grad_norm", "learning_rate")


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in _TOLD if name in metrics)


def _hint(metrics: dict[str, float], logged: dict[str, float], learning_rate: float) -> str:
    hints = [f"Try a `learning_rate` below {learning_rate:g} with `warmup_steps`"]
    if metrics.get("lambda_td", logged.get("lambda_td", 0)):
        hints.append("a smaller `lambda_td`, or more `mle_warmup_steps` and `lambda_td_warmup_steps`")
        shares = (metrics.get("td_loss_terminal_share"), logged.get("td_loss_terminal_share"))
        if any(share is not None and share > 0.5 for share in shares):
            hints.append(
                "`terminal_value: mask`, since most of the squared reward lies on the stop tokens "
                "(td_loss_terminal_share)"
            )
    return "; ".join(hints) + ". `nan_policy: skip` leaves single bad batches out."
