import textwrap
from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
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
from transformers.trainer_utils import EvalPrediction
from trl import SFTTrainer

from ...rewards.adapters import check_has_words
from ...rewards.frozen_models import check_language_model, whole_language_model
from ...soft_q import attach_soft_q_head
from ...soft_q.objectives import Objective
from ...soft_q.own_forward import embedding_rows
from ...text.stop_tokens import stop_token_ids
from ..runtime.models import (
    can_be_tried,
    causal_lm,
    default_output_dir,
    keep_4bit_weights_trainable,
    loaded_if_adapter,
    without_trl_head,
)
from ..runtime.positions import check_positions
from ..runtime.row_checks import check_not_empty, check_rows, check_token_ids
from ..runtime.streams import read_on_every_rank
from .argument_checks import (
    check_arguments,
    check_best_metric,
    check_parallelism,
    check_quantization,
    has_no_experts,
    named,
)
from .config import IRLConfig
from .packing import check_documents_apart
from .row_ends import check_collator, what_is_wrong_with_ends
from .row_ids import check_kept, formatted, ready_rows, warn_of_unused_marks, what_cannot_be_written
from .soft_q_training import SoftQTraining


logger = get_logger(__name__)


class IRLTrainer(SoftQTraining, SFTTrainer):
    """
    Trainer for offline inverse reinforcement learning: fine-tuning on demonstrations with the inverse soft-Q loss of
    [Imitating Language via Scalable Inverse Reinforcement Learning](https://huggingface.co/papers/2409.01369).

    The model's logits are Q-values, their logsumexp is the value V, and the loss is, in the mean over scored tokens,

        -log pi(a|s) + lambda_td / td_scale * (Q(s, a) - gamma * V(s'))^2 + lambda_kl * KL(pi || reference)

    Data preparation, PEFT, quantisation, packing, distributed training, logging and checkpoints are
    [`~trl.SFTTrainer`]'s. Overridden are, in [`~trainer.irl.soft_q_training.SoftQTraining`], `compute_loss`; `log`,
    `evaluate` and `predict`, to add metrics that are means over tokens; `get_batch_samples`, to measure `td_scale`
    before the first step, and `_load_optimizer_and_scheduler`, to find it again; `_get_grad_norm`, to keep a step that
    is not finite away from the weights; `train`, to give a signal back; and, in saving, what makes a checkpoint whole
    or an error, and tells [`SoftQReward`] how it was trained. Here it is `_prepare_dataset`, to refuse what could only
    fail later.

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
            Reference policy for `lambda_kl > 0` and `value_origin="reference"`, over the same vocabulary. If `None`,
            it is the PEFT base with the adapter disabled, or, training all weights, a frozen copy of the model as it
            is now.
        objective ([`~soft_q.objectives.Objective`], *optional*):
            Another objective of the same terms, instead of the one that `args` describe.

        The other arguments are those of [`~trl.SFTTrainer`], but for `compute_loss_func`, which is refused.

    Raises:
        `TypeError`: `args` is not an [`IRLConfig`].
        `ValueError`: a dataset is empty, lacks the columns to train on or has no completion within `max_length`; the
            tokenizer has no stop token; an adapter sits on the output head; a reference is wanted and none can be
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

    _answers = False  # whether a policy is asked with the prompts of the rows

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
        for name, dataset in named(train_dataset, eval_dataset):
            check_not_empty(dataset, name)
        read_on_every_rank(args, named(train_dataset, eval_dataset))
        check_best_metric(args, eval_dataset)
        given, own_tokenizer = model, processing_class is not None
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
        if not own_tokenizer:
            check_has_words(self._tokenizer, self._tokenizer.name_or_path)
        check_parallelism(self.accelerator, self.args)
        prepared = named(self.train_dataset, self.eval_dataset)
        for (name, dataset), (_, rows) in zip(named(train_dataset, eval_dataset), prepared, strict=True):
            self._check_token_ids(dataset, rows, name)
            check_positions(rows, causal_lm(self.model), args.max_length, name)

        self._loss_shifts_labels = True  # Trainer goes by the class's name, which for GPT-2 and others says otherwise
        self._causal_lm = causal_lm(self.model)
        if self.aux_loss_enabled and has_no_experts(self._causal_lm.config):
            self.aux_loss_enabled = self._causal_lm.config.get_text_config().output_router_logits = False
        keep_4bit_weights_trainable(self.model)
        without_trl_head(self._causal_lm)
        attach_soft_q_head(self._causal_lm, args.logit_buffer_mb)
        self._unchecked_packing = self.padding_free
        if can_be_tried(self._causal_lm):
            self._check_packing(self.model)  # with its adapter: virtual tokens let go of positions
        self.stop_token_ids = stop_token_ids(self._causal_lm, self._tokenizer)
        check_collator(self)
        self._warn_of_ends()
        self._begin_soft_q(objective, given)
        self._begin_reference(model, ref_model)

    @property
    def _tensor_parallel(self) -> int:
        return self.get_tp_size()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._check_packing(model)  # if it is sharded, and could not be run before
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _check_packing(self, model: torch.nn.Module) -> None:
        if self._unchecked_packing:
            self._unchecked_packing = False
            with self.accelerator.autocast():
                sixteen_bits = self.accelerator.mixed_precision in ("bf16", "fp16")
                check_documents_apart(model, self._causal_lm, self.data_collator, sixteen_bits)

    def _warn_of_ends(self) -> None:
        reason = what_is_wrong_with_ends(self)
        if reason is not None:
            logger.warning(reason)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if self._tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer {self._tokenizer.name_or_path!r} has no EOS token, so no completion ever ends: its "
                "last state would have no value, and the model would not learn to stop. Set `eos_token` in IRLConfig "
                "to the token that ends a completion, or `tokenizer.eos_token`."
            )
        given, for_evaluate = dataset, getattr(self, "model", None) is not None
        if for_evaluate:  # others were looked at before the model was loaded
            check_not_empty(dataset, dataset_name)
        if formatting_func is not None and processing_class is self._tokenizer:
            dataset, formatting_func = formatted(dataset, args, formatting_func, dataset_name), None
        if formatting_func is None:
            dataset = check_rows(dataset, args.dataset_text_field, dataset_name)
            warn_of_unused_marks(dataset, args, self.completion_only_loss, dataset_name)
            dataset = ready_rows(
                dataset, args, processing_class, self.completion_only_loss, dataset_name, self._answers
            )
        try:
            prepared = super()._prepare_dataset(
                dataset, processing_class, args, packing, formatting_func, dataset_name
            )
        except (TemplateError, TypeError) as error:  # raised by the chat template, or what it trips over
            message = what_cannot_be_written(dataset, self._tokenizer, dataset_name)
            if message is None and isinstance(error, TypeError):  # not of the template's
                raise
            raise ValueError(message or f"The {dataset_name} dataset: {error}") from error
        check_kept(dataset, prepared, args.max_length, packing, dataset_name)
        if for_evaluate:
            self._check_token_ids(given, prepared, dataset_name)
            check_positions(prepared, self._causal_lm, args.max_length, dataset_name)
        return prepared

    def _check_token_ids(self, given, prepared, name: str) -> None:
        size = embedding_rows(causal_lm(self.model))
        # Ids that this tokenizer makes need no look where the model has embeddings for all of them.
        if len(self._tokenizer) > size or "input_ids" in (given.column_names or ()):
            args = self.args
            others = args.packing or args.eval_packing or args.shuffle_dataset or not isinstance(given, Dataset)
            in_order = not others and isinstance(prepared, Dataset) and len(prepared) == len(given)
            check_token_ids(prepared, size, name, None if in_order else given)
