"""Inverse reinforcement learning on demonstrations for encoder-decoder models."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollator,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    TrainerCallback,
    set_seed,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import create_model_from_path

from ...rewards.adapters import check_has_words
from ...rewards.frozen_models import whole_language_model
from ...soft_q import attach_soft_q_head
from ...soft_q.objectives import Objective
from ...soft_q.own_forward import embedding_rows
from ...text.stop_tokens import stop_token_ids
from ..irl.argument_checks import (
    check_best_metric,
    check_kind,
    check_objective_and_reference,
    check_parallelism,
    check_quantization,
    named,
    shown_name,
)
from ..irl.soft_q_training import SoftQTraining
from ..runtime.models import (
    can_be_tried,
    causal_lm,
    default_output_dir,
    keep_4bit_weights_trainable,
    loaded_if_adapter,
)
from ..runtime.row_checks import check_not_empty, check_token_ids
from ..runtime.streams import read_on_every_rank
from .checks import check_decoder_start, check_encoder_decoder, check_shared_embeddings, keep_float32_islands
from .config import Seq2SeqIRLConfig
from .packing import PackedCollator, check_documents_apart, packed
from .rows import check_lengths, encoded


class Seq2SeqIRLTrainer(SoftQTraining, _BaseTrainer, Seq2SeqTrainer):
    """
    [`IRLTrainer`] for encoder-decoder models such as T5, FLAN-T5, mT5, ByT5, T5Gemma and BART, which the paper
    ([2409.01369](https://huggingface.co/papers/2409.01369)) trains: the prompt is the encoder's, the completion the
    decoder's, and states, actions, objectives and metrics are those of [`IRLTrainer`].

    Training, evaluation, generation (`predict_with_generate`) and checkpoints are
    [`~transformers.Seq2SeqTrainer`]'s. What is overridden stands in [`~trainer.irl.soft_q_training.SoftQTraining`];
    here it is `prediction_step`, so that a loss beside generated texts is the objective too.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_irl import Seq2SeqIRLTrainer

    >>> trainer = Seq2SeqIRLTrainer(
    ...     model="google/flan-t5-base",
    ...     train_dataset=load_dataset("trl-lib/tldr", split="train"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            An encoder-decoder language model, by Hub id, folder (of an adapter too) or itself.
        args ([`Seq2SeqIRLConfig`], *optional*):
            Configuration. If `None`, the defaults, with `output_dir` named after the model.
        data_collator (`Callable`, *optional*):
            Of rows of `input_ids` and `labels`; [`~transformers.DataCollatorForSeq2Seq`] if unset, which then pads on
            the right, whatever the tokenizer does. One that is given the `model` makes what the decoder reads itself,
            and not as [`~soft_q.packed.shifted`] does.
        train_dataset, eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`], *optional*):
            With `prompt` and `completion`, text or messages, with `messages`, or with `input_ids` and `labels`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's if unset.
        quantization_config, peft_config, ref_model, objective:
            As for [`IRLTrainer`].

        The other arguments are those of [`~transformers.Seq2SeqTrainer`].

    Raises:
        `TypeError`: `args` is not a [`Seq2SeqIRLConfig`].
        `ValueError`: the model is no encoder-decoder, or says not what a decoder begins with; a dataset is empty, has
            nothing to learn or is longer than the model's positions; the model cannot be packed; or what
            [`IRLTrainer`] refuses.
    """

    _tag_names = ["trl", "irl", "seq2seq"]
    _name = "IRL (inverse soft-Q learning)"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: Seq2SeqIRLConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        ref_model: PreTrainedModel | None = None,
        objective: Objective | None = None,
        **others,
    ):
        if args is None:
            args = Seq2SeqIRLConfig(default_output_dir(model, "IRL"))
        check_kind(args, Seq2SeqIRLConfig)
        if data_collator is not None and args.packing:
            raise ValueError(
                "`packing=True` with a `data_collator`: packed rows hold several documents, which the trainer's own "
                "collator alone can read. Leave one of them out."
            )
        check_objective_and_reference(args, model, peft_config, ref_model, objective)
        check_quantization(args, model, quantization_config, peft_config)
        for key, one in (("model", model), ("ref_model", ref_model)):
            if one is not None:
                check_encoder_decoder(one, key, args.trust_remote_code)
        for name, dataset in named(train_dataset, eval_dataset):
            check_not_empty(dataset, name)
        read_on_every_rank(args, named(train_dataset, eval_dataset))
        check_best_metric(args, eval_dataset)
        given = model
        model, processing_class, quantization_config = loaded_if_adapter(
            model, args, processing_class, quantization_config, peft_config
        )
        set_seed(args.seed)  # adapters start from random weights
        model, processing_class = _loaded(model, args, processing_class, quantization_config)
        check_decoder_start(causal_lm(model))
        check_shared_embeddings(args, causal_lm(model))
        keep_float32_islands(causal_lm(model))
        if peft_config is not None:
            model = _with_adapter(model, args, peft_config)
        elif is_peft_model(model) and args.gradient_checkpointing:
            model.enable_input_require_grads()
        self._tokenizer = processing_class
        self._causal_lm = causal_lm(model)
        self.stop_token_ids = stop_token_ids(self._causal_lm, processing_class)
        train = None if train_dataset is None else self._prepared(train_dataset, args, "train")
        if isinstance(eval_dataset, dict):
            evals = {key: self._prepared(rows, args, shown_name(key)) for key, rows in eval_dataset.items()}
        else:
            evals = None if eval_dataset is None else self._prepared(eval_dataset, args, "eval")
        if data_collator is None:
            data_collator = _collator(processing_class, args.pad_to_multiple_of)
            if args.packing:
                pad = processing_class.pad_token_id
                data_collator = PackedCollator(self._causal_lm, pad, self.stop_token_ids, args.pad_to_multiple_of)
        if args.packing:
            args.remove_unused_columns = False
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train,
            eval_dataset=evals,
            processing_class=processing_class,
            callbacks=callbacks,
            **others,
        )
        check_parallelism(self.accelerator, self.args)
        keep_4bit_weights_trainable(self.model)
        attach_soft_q_head(self._causal_lm, args.logit_buffer_mb)
        self._unchecked_packing = args.packing
        if can_be_tried(self._causal_lm):
            self._check_packing(self._causal_lm)
        self._begin_soft_q(objective, given)
        self._begin_reference(given, ref_model)

    def _prepared(self, dataset, args: Seq2SeqIRLConfig, name: str):
        rows = encoded(dataset, self._tokenizer, args, self.stop_token_ids, name)
        rows = check_lengths(rows, self._causal_lm.config, name)
        check_token_ids(rows, embedding_rows(self._causal_lm), name)
        if args.packing and not isinstance(rows, Dataset):
            raise ValueError(
                "`packing=True` needs all rows at hand, and the dataset is a stream. Set `packing=False`."
            )
        if args.shuffle_dataset:  # of every dataset, as SFTTrainer
            rows = rows.shuffle(seed=args.seed)
        return packed(rows, args.max_lengths, args.dataset_num_proc) if args.packing else rows

    def _check_packing(self, model: torch.nn.Module) -> None:
        if self._unchecked_packing:
            self._unchecked_packing = False
            pad = self._tokenizer.pad_token_id
            collator = PackedCollator(self._causal_lm, pad, self.stop_token_ids)
            with self.accelerator.autocast():
                check_documents_apart(model, self._causal_lm, collator, max(self.args.max_lengths))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._check_packing(model)  # if it is sharded, and could not be run before
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _tokens_seen(self, inputs: dict[str, Any]) -> torch.Tensor | int:
        read = inputs["labels"].ne(-100).sum()
        if "encoder_documents" in inputs:
            return read + (inputs["encoder_documents"] >= 0).sum()
        return read + super()._tokens_seen(inputs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **generation):
        if not self.args.predict_with_generate or prediction_loss_only or "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **generation)
        labels = inputs["labels"]
        loss, _, _ = super().prediction_step(model, dict(inputs), True, ignore_keys)
        # Without what a collator makes of the labels, or it would be generated from the right text on.
        asked = {key: value for key, value in inputs.items() if key != "labels" and not key.startswith("decoder_")}
        _, tokens, _ = super().prediction_step(model, asked, False, ignore_keys, **generation)
        width = max(tokens.size(-1), labels.size(-1))
        labels = torch.nn.functional.pad(labels.to(tokens.device), (0, width - labels.size(-1)), value=-100)
        return loss, self._pad_tensors_to_max_len(tokens, width), labels


def _loaded(model, args: Seq2SeqIRLConfig, processing_class, quantization_config) -> tuple:
    """The model, and its tokenizer with the end that the arguments name."""
    name = model if isinstance(model, str) else causal_lm(model).config._name_or_path
    if isinstance(model, str):
        options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            options["device_map"] = None
        with whole_language_model(model):
            model = create_model_from_path(model, architecture=AutoModelForSeq2SeqLM, **options)
    if processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        check_has_words(processing_class, name)
    for key in ("eos_token", "pad_token"):
        token = getattr(args, key)
        if token is not None:
            if processing_class.convert_tokens_to_ids(token) in (None, processing_class.unk_token_id):
                raise ValueError(f"`{key}: {token}` is none of the tokenizer's tokens. Name one that is.")
            setattr(processing_class, key, token)
    if processing_class.pad_token is None:
        processing_class.pad_token = processing_class.eos_token
    return model, processing_class


def _collator(tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None) -> DataCollatorForSeq2Seq:
    """
    transformers', which pads labels on the tokenizer's own side: on the left, as Gemma's, the decoder would read
    padding before the first label. Padding is masked, whatever the tokenizer says that its model reads.
    """
    tokenizer = copy.copy(tokenizer)
    tokenizer.padding_side, tokenizer.model_input_names = "right", ["input_ids", "attention_mask"]
    return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=pad_to_multiple_of)


def _with_adapter(model: PreTrainedModel, args: Seq2SeqIRLConfig, peft_config: PeftConfig) -> PeftModel:
    if is_peft_model(model):
        raise ValueError(
            "The model has an adapter already, and `peft_config` asks for another one. Merge it first "
            "(`merge_and_unload`), or leave `peft_config` unset to go on with it."
        )
    if peft_config.task_type is None or peft_config.task_type == "CAUSAL_LM":
        peft_config.task_type = "SEQ_2_SEQ_LM"
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    # As SFTTrainer: ZeRO-3 gathers parameters together that are of one dtype, and PEFT makes adapters float32.
    options = {"autocast_adapter_dtype": False} if is_deepspeed_zero3_enabled() else {}
    model = get_peft_model(model, peft_config, **options)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
    return model
