import textwrap
from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    set_seed,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_utils import EvalPrediction, PredictionOutput
from trl import SFTTrainer

from ...rewards.frozen_models import check_language_model, whole_language_model
from ...rewards.soft_q_settings import save_settings, saved_settings
from ...soft_q import SoftQOutput, SoftQTerms, attach_soft_q_head, soft_q_terms
from ...soft_q.head import Reference, can_run, projection_of
from ...soft_q.objectives import Objective, objective_of
from ...soft_q.own_forward import embedding_rows
from ...text.stop_tokens import stop_token_ids
from ..runtime.interruption import Interruptible
from ..runtime.models import (
    causal_lm,
    default_output_dir,
    keep_4bit_weights_trainable,
    loaded_if_adapter,
    no_dropout,
    without_trl_head,
)
from ..runtime.row_checks import check_not_empty, check_rows, check_token_ids
from ..runtime.step_guard import StepGuard
from .argument_checks import (
    check_arguments,
    check_best_metric,
    check_parallelism,
    check_quantization,
    has_no_experts,
    named,
)
from .config import IRLConfig
from .first_step import FirstStep, ScheduleCheck, drowning
from .packing import check_documents_apart
from .reference import own_reference, prepared_reference
from .row_ends import check_collator, why_nothing_ends
from .row_ids import check_kept, ready_rows, what_cannot_be_written
from .token_metrics import TokenMetrics


logger = get_logger(__name__)


class IRLTrainer(Interruptible, SFTTrainer):
    """
    Trainer for offline inverse reinforcement learning: fine-tuning on demonstrations with the inverse soft-Q loss of
    [Imitating Language via Scalable Inverse Reinforcement Learning](https://huggingface.co/papers/2409.01369).

    The model's logits are Q-values, their logsumexp is the value V, and the loss is, in the mean over scored tokens,

        -log pi(a|s) + lambda_td / td_scale * (Q(s, a) - gamma * V(s'))^2 + lambda_kl * KL(pi || reference)

    Data preparation, PEFT, quantisation, packing, distributed training, logging and checkpoints are
    [`~trl.SFTTrainer`]'s. Overridden are `compute_loss`; `log`, `evaluate` and `predict`, to add metrics that are
    means over tokens; `_prepare_dataset`, to refuse what could only fail later; `get_batch_samples`, to measure
    `td_scale` before the first step, and `_load_optimizer_and_scheduler`, to find it again; `_get_grad_norm`, to keep
    a step that is not finite away from the weights; and, in saving, what makes a checkpoint whole or an error, and
    tells [`SoftQReward`] how it was trained.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_irl import IRLTrainer

    >>> trainer = IRLTrainer(
    ...     model="Qwen/Qwen2.5-0.5B",
    ...     train_dataset=load_dataset("trl-lib/Capybara", split="train"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As for [`~trl.SFTTrainer`].
        args ([`IRLConfig`], *optional*):
            Configuration. If `None`, the defaults, with `output_dir` named after the model.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference policy for `lambda_kl > 0`, over the same vocabulary. If `None`, it is the PEFT base with the
            adapter disabled, or, training all weights, a frozen copy of the model as it is now.
        objective ([`~soft_q.objectives.Objective`], *optional*):
            Another objective of the same terms, instead of the one that `args` describe.

        The other arguments are those of [`~trl.SFTTrainer`], but for `compute_loss_func`, which is refused.

    Raises:
        `TypeError`: `args` is not an [`IRLConfig`].
        `ValueError`: a dataset is empty, lacks the columns to train on or has no completion within `max_length`; the
            tokenizer has no stop token; an adapter sits on the output head; `lambda_kl > 0` and no reference can be
            made; or the run shards sequences over ranks, so that the next state's value may lie on another one.
    """

    _tag_names = ["trl", "irl"]
    _name = "IRL (inverse soft-Q learning)"
    _paper = {
        "title": "Imitating Language via Scalable Inverse Reinforcement Learning",
        "id": "2409.01369",
        "citation": textwrap.dedent("""\
            @inproceedings{wulfmeier2024imitating,
                title        = {{Imitating Language via Scalable Inverse Reinforcement Learning}},
                author       = {Markus Wulfmeier and Michael Bloesch and Nino Vieillard and Arun Ahuja and Jorg Bornschein and Sandy Huang and Artem Sokolov and Matt Barnes and Guillaume Desjardins and Alex Bewley and Sarah Maria Elisabeth Bechtle and Jost Tobias Springenberg and Nikola Momchev and Olivier Bachem and Matthieu Geist and Martin Riedmiller},
                year         = 2024,
                booktitle    = {Advances in Neural Information Processing Systems},
                eprint       = {arXiv:2409.01369},
            }"""),  # noqa: E501
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: IRLConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[dict], str] | None = None,
        ref_model: PreTrainedModel | None = None,
        objective: Objective | None = None,
    ):
        if args is None:
            args = IRLConfig(default_output_dir(model, "IRL"))
        check_arguments(args, model, compute_loss_func, peft_config, ref_model, objective)
        check_quantization(args, model, quantization_config, peft_config)
        for key, one in (("model", model), ("ref_model", ref_model)):
            if one is not None:
                check_language_model(one, key, trust_remote_code=args.trust_remote_code)
        for name, dataset in named({"train": train_dataset}, eval_dataset).items():
            check_not_empty(dataset, name)
        check_best_metric(args, eval_dataset)
        model, processing_class, quantization_config = loaded_if_adapter(
            model, args, processing_class, quantization_config, peft_config
        )
        # Adapters start from random weights. TRL 1.16 sets the seed before it makes them; this can go with TRL 1.12.
        set_seed(args.seed)

        with whole_language_model(model):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
                quantization_config=quantization_config,
                peft_config=peft_config,
                formatting_func=formatting_func,
            )
        check_parallelism(self.accelerator, self.args)
        prepared = named({"train": self.train_dataset}, self.eval_dataset)
        for name, dataset in named({"train": train_dataset}, eval_dataset).items():
            size = embedding_rows(causal_lm(self.model))
            # Ids that this tokenizer makes need no look where the model has embeddings for all of them.
            if len(self._tokenizer) > size or "input_ids" in (dataset.column_names or ()):
                check_token_ids(prepared[name], size, name)

        # The loss below is normalised by the token count of the whole accumulated batch, whatever the architecture's
        # own loss can do.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True  # Trainer goes by the class's name, which for GPT-2 and others says otherwise
        self._causal_lm = causal_lm(self.model)
        if self.aux_loss_enabled and has_no_experts(self._causal_lm.config):
            self.aux_loss_enabled = self._causal_lm.config.get_text_config().output_router_logits = False
        keep_4bit_weights_trainable(self.model)
        without_trl_head(self._causal_lm)
        attach_soft_q_head(self._causal_lm, args.logit_buffer_mb)
        self._unchecked_packing = self.padding_free
        if can_run(self._causal_lm):
            self._check_packing(self._causal_lm)
        self.stop_token_ids = stop_token_ids(self._causal_lm, self._tokenizer)
        check_collator(self)
        self._warn_if_nothing_ends()
        self._token_metrics = {"train": TokenMetrics(), "eval": TokenMetrics()}
        self._step_guard = StepGuard(args, self.accelerator)
        self._watch_signals()
        self.add_callback(ScheduleCheck())
        self.objective = self._make_objective() if objective is None else objective
        self._first_step = FirstStep(self, args.objective if objective is None else type(objective).__name__)
        self._warned_of_td = False
        self._eval_prefix = "eval"

        self.ref_model = None
        if args.lambda_kl > 0 and not (ref_model is None and is_peft_model(self.model)):
            if ref_model is None:
                ref_model = own_reference(self, model)
            self._ref_causal_lm = causal_lm(ref_model)
            self.ref_model = prepared_reference(ref_model, self)

    def _check_packing(self, model: torch.nn.Module) -> None:
        if self._unchecked_packing:
            self._unchecked_packing = False
            with self.accelerator.autocast():
                sixteen_bits = self.accelerator.mixed_precision in ("bf16", "fp16")
                check_documents_apart(model, self._causal_lm, self.data_collator, sixteen_bits)

    def _warn_if_nothing_ends(self) -> None:
        reason = why_nothing_ends(self)
        if reason is not None:
            logger.warning(reason)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if self._tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer {self._tokenizer.name_or_path!r} has no EOS token, so no completion ever ends: its "
                "last state would have no value, and the model would not learn to stop. Set `eos_token` in IRLConfig "
                "to the token that ends a completion, or `tokenizer.eos_token`."
            )
        if formatting_func is None:
            dataset = check_rows(dataset, args.dataset_text_field, dataset_name)
            dataset = ready_rows(dataset, args, processing_class, self.completion_only_loss, dataset_name)
        try:
            prepared = super()._prepare_dataset(
                dataset, processing_class, args, packing, formatting_func, dataset_name
            )
        except TemplateError as error:  # raised by the chat template, or by what it trips over
            message = what_cannot_be_written(dataset, self._tokenizer, dataset_name)
            raise ValueError(message or f"The {dataset_name} dataset: {error}") from error
        check_kept(dataset, prepared, args.max_length, packing, dataset_name)
        return prepared

    @property
    def td_scale(self) -> float:
        """What the squared reward is divided by ([`IRLConfig.td_scale`]); 1 until the first step has measured it."""
        return self._first_step.measured.get("td_scale", 1.0)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
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
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # TRL 1.12 says here whether the caller wants logits; from 1.13 on, `return_outputs` does. Can go with 1.12.
        prediction_loss_only = inputs.pop("_prediction_loss_only", None)
        self._check_packing(model)  # if it is sharded, and could not be run before
        training = self.model.training
        mode = "train" if training else "eval"
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True

        with_logits = return_outputs and not prediction_loss_only
        reference = self._reference(model, inputs)
        asked = {"reference": reference, "statistics": self.objective.statistics, "return_logits": with_logits}
        output = model(**inputs, soft_q="values", **asked)
        terms = self.soft_q_terms(output)
        lambda_td = self.args.lambda_td_at(self.state.global_step) if training else self.args.lambda_td
        # Clamped, so that a batch with nothing to learn from gives a zero with gradients rather than 0 / 0.
        tokens = self._tokens_of(terms) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        tokens = tokens.clamp(min=1).to(terms.nll.device)
        loss = self.objective(terms, output, lambda_td / self.td_scale, **self._rows_of(tokens)) / tokens
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # `num_items_in_batch` counts the tokens of all ranks, and DDP averages the ranks' gradients.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if output.aux_loss is not None:
            # A mean over a micro-batch, so averaged over accumulation steps. TRL 1.12 sums them.
            coefficient = self._causal_lm.config.get_text_config().router_aux_loss_coef
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + coefficient * output.aux_loss.to(loss.device) / steps

        if training:
            loss = self._step_guard.watch(loss)
        # Padding-free batches are one row without an attention mask.
        seen = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        self._measure(mode, output, terms, lambda_td, seen)

        if not return_outputs:
            return loss
        return loss, CausalLMOutput(logits=output.logits) if with_logits else output

    def _make_objective(self) -> Objective:
        """The objective that the arguments describe."""
        return objective_of(self.args.objective, self.args)

    def _tokens_of(self, terms: SoftQTerms) -> torch.Tensor:
        """How many tokens of a micro-batch count, where nobody has counted those of the whole batch."""
        return terms.scored.sum()

    def _rows_of(self, tokens: torch.Tensor) -> dict[str, Any]:
        """What the objective must know of the rows beside their terms; `tokens` are those of the whole batch."""
        return {}

    def _measure(self, mode: str, output, terms: SoftQTerms, lambda_td: float, seen: torch.Tensor | int) -> None:
        own = self.objective.metrics(terms, output)
        self._token_metrics[mode].add(output, terms, lambda_td, seen, own=own)

    @torch.no_grad()
    def _reference(self, model, inputs: dict[str, Any]) -> Reference | None:
        if self.args.lambda_kl == 0:
            return None
        inputs = {key: value for key, value in inputs.items() if key != "output_router_logits"}
        if self.ref_model is not None:
            hidden = self.ref_model(**inputs, soft_q="hidden_states").hidden_states
            return Reference(hidden, projection_of(self._ref_causal_lm))
        with no_dropout(model), self.accelerator.unwrap_model(model).disable_adapter():
            hidden = model(**inputs, soft_q="hidden_states").hidden_states
        return Reference(hidden, projection_of(self._causal_lm, with_adapters=False))

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
            if self.accelerator.optimizer_step_was_skipped:
                # DeepSpeed left the step out, and the Trainer then holds the schedule back. Elsewhere it moves on.
                getattr(self.lr_scheduler, "scheduler", self.lr_scheduler).step()
        return grad_norm

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            settings = {name: getattr(self.args, name) for name in ("gamma", "terminal_value", "lambda_td")}
            save_settings(output_dir or self.args.output_dir, {**settings, **self._first_step.to_save()})

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._first_step.resume(saved_settings(checkpoint))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = self._pop_token_metrics(mode)
        if (
            mode == "train"
            and "nll" in metrics
            and not self._warned_of_td
            and (said := drowning(metrics, self.td_scale, self.objective.squares_logged))
        ):
            self._warned_of_td = True
            logger.warning(said)
        if mode == "train":
            self._metrics[mode].update({name: [value] for name, value in metrics.items()})
        else:  # SFTTrainer would call those of every evaluation dataset eval_NAME
            logs.update({f"{self._eval_prefix}_{name}": value for name, value in metrics.items()})
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self._eval_prefix = metric_key_prefix
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        output = super().predict(test_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
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
            seen = int(metrics.pop("input_tokens")) // self.get_tp_size()
            self._total_train_tokens += seen if mode == "train" else 0
            metrics |= {"num_tokens": self._total_train_tokens, "td_scale": self.td_scale}
        if mode == "train" and self.args.nan_policy == "skip":
            metrics["skipped_steps"] = self._step_guard.skipped
        return metrics
