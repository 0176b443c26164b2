"""What every trainer on demonstrations does with the terms of the soft-Q head, whatever prepares its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_utils import PredictionOutput

from ..._modes import in_mode
from ...rewards.soft_q_settings import save_settings, saved_settings
from ...soft_q import Reference, SoftQOutput, SoftQTerms, soft_q_terms
from ...soft_q.head import projection_of
from ...soft_q.objectives import Objective, objective_of
from ..runtime.interruption import Interruptible
from ..runtime.models import (
    causal_lm,
    check_no_other_adapter,
    keep_outputs_in_float32,
    rows_per_step,
    why_reference,
)
from ..runtime.step_guard import StepGuard
from ..runtime.streams import EpochsWithoutStep
from .first_step import FirstStep, FreshStart, ScheduleCheck, drowning
from .reference import own_reference, prepared_reference
from .token_metrics import TokenMetrics


logger = get_logger(__name__)


def _check_total(total, objective: Objective, training: bool) -> None:
    is_tensor = isinstance(total, torch.Tensor)
    detached = is_tensor and training and not total.requires_grad
    if is_tensor and total.ndim == 0 and not detached:
        return
    without = " without gradient" if detached else ""
    found = f"a tensor of the shape {tuple(total.shape)}{without}" if is_tensor else repr(total)
    raise ValueError(
        f"The objective {type(objective).__name__} returned {found}. It must be a scalar tensor with gradient: the "
        "sum over the scored tokens of the micro-batch."
    )


class SoftQTraining(Interruptible):
    """
    For a [`~transformers.Trainer`], before it among the bases: a loss of the soft-Q terms of a micro-batch, normalised
    by the scored tokens of the whole accumulated batch, its metrics as means over tokens, what the objective measures
    before the first step, and a step that is not finite kept away from the weights. The model has a soft-Q head.
    """

    aux_loss_enabled = False

    def _begin_soft_q(self, objective: Objective | None, given: str | PreTrainedModel) -> None:
        """
        After the trainer is made: its objective, its metrics, and what watches a run; `given` is the model, or an
        adapter, as the user named it.
        """
        args = self.args
        check_no_other_adapter(args.output_dir, self.model)
        # The loss below is normalised by the token count of the whole accumulated batch, whatever the architecture's
        # own loss can do.
        self.model_accepts_loss_kwargs = True
        self._token_metrics = {"train": TokenMetrics(), "eval": TokenMetrics()}
        keep_outputs_in_float32(self.accelerator)
        self._step_guard = StepGuard(args, self.accelerator)
        self._watch_signals()
        self.add_callback(ScheduleCheck())
        self.add_callback(FreshStart(self))
        if isinstance(self.train_dataset, IterableDataset):
            self.add_callback(EpochsWithoutStep())
        self.objective = self._make_objective() if objective is None else objective
        self._first_step = FirstStep(self, args.objective if objective is None else type(objective).__name__)
        if isinstance(given, str) and Path(given).is_dir():
            self._first_step.borrow(saved_settings(given))
        self._warned_of_td = self._warned_of_repeated = False
        measured = "td_scale" in self.objective.measures or not self.objective.is_scheduled
        if args.td_scale is None and args.lambda_td_in_use and not measured:
            logger.warning(
                f"`td_scale` is not set, and {type(self.objective).__name__} does not measure one: `lambda_td` weighs "
                "its term as it is. On a pretrained model that may drown the likelihood. Set `td_scale`, or derive "
                "the objective from `PerToken`, which measures the mean of its squares."
            )
        self._eval_prefix = "eval"
        self.ref_model = None
        self._total_train_tokens = 0

    def _begin_reference(self, model: str | PreTrainedModel, ref_model: PreTrainedModel | None) -> None:
        """After the objective is known: the reference, if one is wanted and is not an adapter's base."""
        wanted = why_reference(self.args, self.objective) is not None
        if wanted and not (ref_model is None and is_peft_model(self.model)):
            if ref_model is None:
                ref_model = own_reference(self, model)
            self._ref_causal_lm = causal_lm(ref_model)
            self.ref_model = prepared_reference(ref_model, self)

    @property
    def td_scale(self) -> float:
        """
        What the squared reward is divided by ([`IRLConfig.td_scale`]). Until the first step has measured it, that of
        the run that trained the model, if it lies beside it, else 1.
        """
        return (self._first_step.borrowed | self._first_step.measured).get("td_scale", 1.0)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._first_step.measure(batches)
        return batches, num_items_in_batch

    def soft_q_terms(self, output: SoftQOutput) -> SoftQTerms:
        """The terms of the objective, of a forward with `soft_q="values"`."""
        return soft_q_terms(
            output.q,
            output.v,
            output.labels,
            self.stop_token_ids,
            gamma=self.args.gamma,
            terminal_value=self.args.terminal_value,
            td_target_grad=self.args.td_target_grad,
            soft_v=output.v_tempered if self.objective.value_temperature != 1 else None,
            origin=output.v_ref,
        )

    def _values(self, model: torch.nn.Module, inputs: dict[str, Any], **asked) -> SoftQOutput:
        """Q, V and what else is asked of a batch."""
        try:
            return model(**inputs, soft_q="values", **asked)
        except ValueError as error:  # of a vision-language model; SFTTrainer says so too
            if "image tokens do not match" in str(error) and self.args.max_length is not None:
                raise ValueError(
                    f"`max_length={self.args.max_length}` cuts off tokens that stand for an image. Set it higher, or "
                    "to `None` (`max_length: null`), so that rows with images stay whole."
                ) from error
            raise

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # TRL 1.12 says here whether the caller wants logits; from 1.13 on, `return_outputs` does. Can go with 1.12.
        # A method over this one asks for itself.
        prediction_loss_only = inputs.pop("_prediction_loss_only", None) and not self._is_extended
        training = self.model.training
        mode = "train" if training else "eval"
        in_step = training and torch.is_grad_enabled()  # and not where a callback looks at a loss
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True

        with_logits = return_outputs and not prediction_loss_only
        reference = self._reference(model, inputs, kl=self.args.lambda_kl > 0)
        asked = {"reference": reference, "statistics": self.objective.statistics, "return_logits": with_logits}
        output = self._values(model, inputs, **asked)
        terms = self.soft_q_terms(output)
        args, state = self.args, self.state
        lambda_td = args.lambda_td_at(state.global_step, state.max_steps) if training else args.lambda_td_in_use
        # Clamped, so that a batch with nothing to learn from gives a zero with gradients rather than 0 / 0.
        tokens = self._tokens_of(terms) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        tokens = tokens.clamp(min=1).to(terms.nll.device)
        total = self.objective(terms, output, lambda_td / self.td_scale, **self._rows_of(tokens))
        _check_total(total, self.objective, in_step)
        loss = total / tokens
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # `num_items_in_batch` counts the tokens of all ranks, and DDP averages the ranks' gradients.
            loss = loss * (self.accelerator.num_processes // self._tensor_parallel)
        if output.aux_loss is not None:
            # A mean over a micro-batch, so averaged over accumulation steps. TRL 1.12 sums them.
            coefficient = getattr(self, "router_aux_loss_coef", self.args.router_aux_loss_coef)  # of TRL 1.16, 1.12
            # From transformers 5.19 on, evaluation counts tokens too, and has no accumulation.
            accumulates = training and num_items_in_batch is not None
            steps = self.current_gradient_accumulation_steps if accumulates else 1
            loss = loss + coefficient * output.aux_loss.to(loss.device) / steps

        if in_step:
            loss = self._step_guard.watch(loss)
        if in_step or not training:
            self._measure(mode, output, terms, lambda_td, inputs)

        if not return_outputs:
            return loss
        return loss, CausalLMOutput(logits=output.logits) if with_logits else output

    @property
    def _is_extended(self) -> bool:
        """Whether a user's class has a `compute_loss` of its own, which may use the logits in an evaluation too."""
        return not type(self).compute_loss.__module__.startswith("trl_irl.")

    @property
    def _tensor_parallel(self) -> int:
        """Over how many processes a micro-batch is one and the same."""
        return 1

    def _tokens_seen(self, inputs: dict[str, Any]) -> torch.Tensor | int:
        """Tokens that the model reads in a micro-batch."""
        # Padding-free batches are one row without an attention mask.
        return inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()

    def _make_objective(self) -> Objective:
        """The objective that the arguments describe."""
        return objective_of(self.args.objective, self.args)

    def _tokens_of(self, terms: SoftQTerms) -> torch.Tensor:
        """How many tokens of a micro-batch count, where nobody has counted those of the whole batch."""
        return terms.scored.sum()

    def _rows_of(self, tokens: torch.Tensor) -> dict[str, Any]:
        """What the objective must know of the rows beside their terms; `tokens` are those of the whole batch."""
        return {}

    def _measure(self, mode: str, output, terms: SoftQTerms, lambda_td: float, inputs: dict[str, Any]) -> None:
        own = self.objective.metrics(terms, output)
        rows = self._not_repeated(terms.nll, inputs) if mode == "eval" else None
        if rows is not None:
            own = {name: tuple(x[rows] for x in pair) for name, pair in own.items()}
        self._token_metrics[mode].add(output, terms, lambda_td, self._tokens_seen(inputs), rows, own)

    def _not_repeated(self, grid: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor | None:
        """
        What of an evaluation's batch counts, where not all does: accelerate fills the last batch of several ranks with
        rows from the start. A bool per row, or per position of a padding-free batch, whose rows begin where its
        positions do. Of packed rows, each of several documents, and of a stream, whose end is not known, all count.
        """
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return None
        if getattr(self, "padding_free", False):
            packed = self.args.packing if self.args.eval_packing is None else self.args.eval_packing
            if packed and not self._warned_of_repeated:
                self._warned_of_repeated = True
                logger.warning(
                    "The eval dataset is packed, and its last batch over several processes is filled up with rows "
                    "from its start, which count twice in its metrics. Set `eval_packing: false` for numbers that do "
                    "not depend on how many processes there are."
                )
            if packed:
                return None
            # Padding has the position 0 too, and comes last: its zeros do not tell how many rows there are.
            numbers = (inputs["position_ids"][:, : grid.size(1)] == 0).cumsum(-1) - 1
            ranks = self.accelerator.num_processes // self._tensor_parallel
            rows = state.active_dataloader.total_batch_size // ranks
        else:
            rows = len(grid)
            numbers = torch.arange(rows, device=grid.device)
        rank = self.accelerator.process_index // self._tensor_parallel  # among those with batches of their own
        return numbers + rank * rows < state.remainder

    @torch.no_grad()
    def _reference(self, model, inputs: dict[str, Any], kl: bool) -> Reference | None:
        """The reference at the states of a micro-batch, for the KL if wanted and for what the objective asks for."""
        values = self.objective.value_origin == "reference"
        if not (kl or values):
            return None
        inputs = {key: value for key, value in inputs.items() if key != "output_router_logits"}
        if self.ref_model is not None:
            hidden = self.ref_model(**inputs, soft_q="hidden_states").hidden_states
            return Reference(hidden, projection_of(self._ref_causal_lm), kl, values)
        with in_mode(model, training=False), self.accelerator.unwrap_model(model).disable_adapter():
            hidden = model(**inputs, soft_q="hidden_states").hidden_states
        return Reference(hidden, projection_of(self._causal_lm, with_adapters=False), kl, values)

    def _get_grad_norm(self, model, grad_norm=None):
        # Where the Trainer knows a step's gradients and has not used them yet (DeepSpeed has, or has left them out).
        grad_norm = super()._get_grad_norm(model, grad_norm)
        metrics = self._token_metrics["train"]
        if self._step_guard.is_sound(grad_norm):
            metrics.end_step()
        else:
            step_metrics = {**metrics.drop_step(self.accelerator), "grad_norm": float(grad_norm or 0)}
            self._step_guard.on_fault(self.state, step_metrics, self.lr_scheduler.get_last_lr()[0])
            self.optimizer.zero_grad(set_to_none=True)
            if self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped:
                # DeepSpeed left the step out, and the Trainer then holds the schedule back. Elsewhere it moves on, and
                # what accelerate says is of the step before.
                getattr(self.lr_scheduler, "scheduler", self.lr_scheduler).step()
        return grad_norm

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._save_settings(output_dir or self.args.output_dir)

    def _save_settings(self, output_dir: str) -> None:
        settings = {name: getattr(self.args, name) for name in ("gamma", "terminal_value")}
        settings |= {"lambda_td": self.args.lambda_td_in_use, "rows_per_step": rows_per_step(self)}
        save_settings(output_dir, {**settings, **self._first_step.to_save()})

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:  # where FSDP saves shards, `_save` is never called
            self._save_settings(output_dir)

    def _forget_metrics(self) -> None:
        """What was measured since the last log, of a run that did not get to its end."""
        self._token_metrics["train"] = TokenMetrics()

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            saved = saved_settings(checkpoint)
            self._first_step.resume(saved)
            before, now = saved.get("rows_per_step"), rows_per_step(self)
            if before not in (None, now) and self.accelerator.is_main_process:
                logger.warning(
                    f"A step of the run that is resumed had {before} rows, and here it has {now}: the "
                    "run goes on at another place in the data and in its schedules. Set "
                    "`per_device_train_batch_size` and `gradient_accumulation_steps` so that their product with the "
                    "number of processes is what it was."
                )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        # Trainer's own logs alone, which every rank makes: metrics are reduced over ranks. A user may log on one.
        own = "loss" in logs or any(name.endswith("_runtime") for name in logs)
        metrics = self._pop_token_metrics(mode) if own else {}
        if (
            mode == "train"
            and "nll" in metrics
            and not self._warned_of_td
            and (said := drowning(metrics, self.td_scale, self.objective.squares_logged, self.args.td_scale is None))
        ):
            self._warned_of_td = True
            logger.warning(said)
        # TRL's trainers would call those of every evaluation dataset eval_NAME.
        prefix = "" if mode == "train" else f"{self._eval_prefix}_"
        logs.update({f"{prefix}{name}": value for name, value in metrics.items()})
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **generation):
        self._eval_prefix = metric_key_prefix
        self._token_metrics["eval"] = TokenMetrics()  # without what a callback looked at, or an evaluation that failed
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **generation)

    def predict(
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **generation,
    ) -> PredictionOutput:
        self._token_metrics["eval"] = TokenMetrics()
        output = super().predict(test_dataset, ignore_keys, metric_key_prefix, **generation)
        output.metrics.update({f"{metric_key_prefix}_{k}": x for k, x in self._pop_token_metrics("eval").items()})
        return output

    def _pop_token_metrics(self, mode: str) -> dict[str, float]:
        metrics = self._token_metrics[mode].pop(self.accelerator)
        if self._total_train_tokens == 0:
            # After a resume, counts go on where the last log left them (SFTTrainer's num_tokens starts at 0 again).
            logged = next((entry for entry in reversed(self.state.log_history) if "num_tokens" in entry), {})
            self._total_train_tokens = int(logged.get("num_tokens", 0))
            self._step_guard.skipped += int(logged.get("skipped_steps", 0))
        if metrics:
            seen = int(metrics.pop("input_tokens")) // self._tensor_parallel
            self._total_train_tokens += seen if mode == "train" else 0
            metrics |= {"num_tokens": self._total_train_tokens, "td_scale": self.td_scale}
        if mode == "train" and self.args.nan_policy == "skip":
            metrics["skipped_steps"] = self._step_guard.skipped
        return metrics
