"""What the trainer refuses before it prepares data or loads a model: each error says what was set, why, what to do."""

import os
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator
from datasets import Dataset, IterableDataset, Json
from peft import PeftConfig, PeftModel
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..rewards.adapters import is_adapted
from ..text.messages import is_messages
from .irl_config import IRLConfig
from .token_metrics import TOKEN_METRICS


_TRL_COLUMNS = {"prompt", "completion", "messages", "chosen", "rejected"}


def check_arguments(
    args: IRLConfig,
    model: str | PreTrainedModel | PeftModel,
    compute_loss_func: Callable | None,
    peft_config: PeftConfig | None,
    ref_model: PreTrainedModel | None,
) -> None:
    if not isinstance(args, IRLConfig):
        kind = type(args).__name__
        hint = "the same arguments are accepted" if isinstance(args, TrainingArguments) else "see its docstring"
        raise TypeError(
            f"`args` is a `{kind}`, which has no `lambda_td`, `gamma` and so on. Build an `IRLConfig` ({hint})."
        )
    if compute_loss_func is not None:
        raise ValueError(
            "`compute_loss_func` would replace the inverse soft-Q objective. Subclass `IRLTrainer` and override "
            "`compute_loss`, or use `SFTTrainer`."
        )
    if args.eval_packing and args.packing_strategy != "wrapped" and not (args.packing or args.padding_free):
        raise ValueError(
            "`eval_packing: true` without `packing: true` puts several evaluation documents into one row, and TRL's "
            "collator then does not say where they begin: they would see each other, and `eval_nll` and the others "
            "would be of other text. Set `packing: true` too, or `padding_free: true`, or leave `eval_packing` unset."
        )
    targets = getattr(peft_config, "target_modules", None)
    if isinstance(targets, list | set | tuple) and any(name.split(".")[-1] == "lm_head" for name in targets):
        raise ValueError(
            "`target_modules` names 'lm_head'. The soft-Q head multiplies by the head's own weight, so an adapter on "
            "it would be left out of Q and V and never be trained. Remove 'lm_head' from `target_modules`, or train "
            "the whole head with `modules_to_save=['lm_head']`."
        )
    if isinstance(ref_model, str):
        raise TypeError(
            f"`ref_model` is the text {ref_model!r}, and it must be a model: load it with "
            "`AutoModelForCausalLM.from_pretrained`."
        )
    if ref_model is not None and ref_model is model:
        raise ValueError(
            "`ref_model` is the model itself, so the KL would always be 0. Leave `ref_model` unset: a frozen copy (or "
            "the PEFT base) is then the reference."
        )
    if ref_model is not None and args.lambda_kl == 0:
        raise ValueError("`ref_model` was passed but `lambda_kl=0`, so it would never be used. Set `lambda_kl` > 0.")
    needs_copy = args.lambda_kl > 0 and ref_model is None and peft_config is None
    if needs_copy and isinstance(model, PreTrainedModel) and is_deepspeed_zero3_enabled():
        raise ValueError(
            f"`lambda_kl={args.lambda_kl}` needs a reference policy, and under DeepSpeed ZeRO-3 a model that is "
            "already loaded cannot be copied: each rank holds only a part of it. Pass the model's name or path as "
            "`model`, pass `ref_model`, or train an adapter with `peft_config`."
        )


def has_no_experts(config: PretrainedConfig) -> bool:
    """Whether a model of a Mixture-of-Experts family is a dense one, such as Granite 4 H Micro: it routes nothing."""
    config = config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    numbers = [getattr(config, name) for name in names if getattr(config, name, None) is not None]
    return bool(numbers) and not any(numbers)


def named(datasets: dict, eval_dataset) -> dict[str, Dataset | IterableDataset]:
    named = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    return {name: dataset for name, dataset in {**datasets, **named}.items() if dataset is not None}


def check_not_empty(dataset: Dataset | IterableDataset, name: str) -> None:
    # A stream's first row is read here, as SFTTrainer reads it.
    empty = len(dataset) == 0 if isinstance(dataset, Dataset) else next(iter(dataset), None) is None
    if empty:
        raise ValueError(f"The {name} dataset has no rows. Check the split and any filter applied before.")


def check_best_metric(args: TrainingArguments, eval_dataset) -> None:
    """
    Raises:
        `ValueError`: there are several evaluation datasets, and `metric_for_best_model` does not say whose it is.
    """
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if isinstance(eval_dataset, dict) and args.load_best_model_at_end and metric in TOKEN_METRICS:
        names = ", ".join(f"{name}_{metric}" for name in eval_dataset)
        raise ValueError(
            f"`metric_for_best_model: {args.metric_for_best_model}` is not one number: there are {len(eval_dataset)} "
            f"evaluation datasets. Name one of {names}."
        )


def check_rows(dataset: Dataset | IterableDataset, text_field: str, name: str) -> Dataset | IterableDataset:
    """
    Refuse a dataset without columns to train on, or with a row in them that is neither text nor messages.

    Returns:
        The dataset, without columns that TRL could take for those to train on; a stream with the same check of its
        later rows, each when it is read.

    Raises:
        `ValueError`: with the column, the row's number and what it has.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    accepted = [{"input_ids"}, {"messages"}, {"conversations"}, {"prompt", "completion"}, {text_field}]
    found = next((wanted for wanted in accepted if wanted <= set(columns)), None)
    if found is None:
        raise ValueError(
            f"The {name} dataset has the columns {columns}, and none of these sets to train on: 'prompt' and "
            f"'completion'; 'messages'; '{text_field}' (`dataset_text_field`); 'input_ids'. Rename its columns, set "
            "`dataset_text_field`, or pass a `formatting_func`."
        )
    if found == {"input_ids"}:
        if isinstance(dataset, Dataset):
            _check_token_rows(dataset, name)
        return dataset
    beside = _TRL_COLUMNS & set(columns) - found
    if "prompt" in beside:
        own = "', '".join(sorted(found))
        raise ValueError(
            f"The {name} dataset has a 'prompt' beside '{own}'. TRL takes rows with a 'prompt' "
            "for prompts and completions. Remove or rename the one that is not to be trained on, such as with "
            "`dataset.remove_columns('prompt')`."
        )
    if beside:
        # TRL (1.12 to 1.16) decides by any one of these whether rows are messages: which one differs from run to run.
        dataset = dataset.remove_columns(sorted(beside))
    if not isinstance(dataset, Dataset):
        told = {"columns": sorted(found), "name": name}
        _check_row(next(iter(dataset)), 0, **told)
        return dataset.map(_check_row, with_indices=True, fn_kwargs=told)
    for column in sorted(found):
        for row in _rows_to_look_at(dataset, column):
            _check_value(dataset[row][column], column, f"Row {row} of the {name} dataset")
    return dataset


def _check_row(row: dict, i: int, columns: Sequence[str], name: str) -> dict:
    """
    Nothing to change in row `i` of a dataset, in the form that `map` takes.

    Raises:
        `ValueError`: one of the columns is neither text nor messages.
    """
    for column in columns:
        _check_value(row.get(column), column, f"Row {i} of the {name} dataset")
    return {}


def _check_value(value, column: str, where: str) -> None:
    if value is None:
        raise ValueError(
            f"{where} has nothing (null) as its '{column}', where text or a list of messages is needed. Remove such "
            f"rows: `dataset.filter(lambda row: row['{column}'] is not None)`."
        )
    if isinstance(value, str):
        return
    if value == []:
        raise ValueError(
            f"{where} has an empty list as its '{column}', where text or a list of messages is needed. Remove such "
            f"rows: `dataset.filter(lambda row: row['{column}'])`."
        )
    if not is_messages(value):
        raise ValueError(
            f"{where} has {value!r} as its '{column}', which is neither text nor a list of messages. Convert the "
            "column (numbers become text with `dataset.cast_column`), or name another."
        )
    for message in value:
        content = message.get("content", message.get("value"))
        if not (isinstance(content, str | list) or message.get("tool_calls")):
            what = "nothing (null)" if content is None else repr(content)
            raise ValueError(
                f"{where} has a message in its '{column}' with {what} as its content, where text is needed. Remove "
                "such rows, or give the message its text."
            )


def _check_token_rows(dataset: Dataset, name: str) -> None:
    """Rows that come as token ids: each is a list of whole numbers, as long as its labels and masks are."""
    columns = [
        column
        for column in ("input_ids", "labels", "completion_mask", "assistant_masks", "attention_mask")
        if column in dataset.column_names
    ]
    start = 0
    for batch in dataset.select_columns(columns).with_format("arrow").iter(10_000):
        lengths = {}
        for column in columns:
            values = _as_array(batch.column(column))
            kind = getattr(values.type, "value_type", None)
            if kind is None or not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
                raise ValueError(
                    f"The column '{column}' of the {name} dataset is of the type {values.type}, and token ids, labels "
                    "and masks are lists of whole numbers. Convert it, or remove it and give the text."
                )
            if values.null_count:
                row = start + pc.indices_nonzero(values.is_null())[0].as_py()
                raise ValueError(f"Row {row} of the {name} dataset has nothing (null) as its '{column}'. Remove it.")
            lengths[column] = pc.list_value_length(values)
        for column in columns[1:]:
            differs = pc.indices_nonzero(pc.not_equal(lengths[column], lengths["input_ids"]))
            if len(differs):
                i = differs[0].as_py()
                raise ValueError(
                    f"Row {start + i} of the {name} dataset has {lengths['input_ids'][i]} 'input_ids' and "
                    f"{lengths[column][i]} '{column}'. There is one for each token (the trainer shifts them itself)."
                )
        start += len(lengths["input_ids"])


def check_token_ids(dataset: Dataset | IterableDataset, size: int, name: str) -> None:
    """
    Raises:
        `ValueError`: a row of `input_ids` has one that a model with `size` embeddings has not.
    """
    if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
        return
    start = 0
    for batch in dataset.select_columns(["input_ids"]).with_format("arrow").iter(10_000):
        values = _as_array(batch.column("input_ids"))
        least_and_most = pc.min_max(values.flatten()).as_py()
        wrong = [x for x in least_and_most.values() if x is not None and not 0 <= x < size]
        if wrong:
            at = pc.indices_nonzero(pc.equal(values.flatten(), wrong[0]))[0].as_py()
            row = start + pc.list_parent_indices(values)[at].as_py()
            raise ValueError(
                f"Row {row} of the {name} dataset has the token id {wrong[0]}, and the model has {size} embeddings. "
                "The ids are of another tokenizer, or tokens were added to it and the model was not resized "
                "(`model.resize_token_embeddings(len(tokenizer))`)."
            )
        start += len(values)


def _as_array(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _rows_to_look_at(dataset: Dataset, column: str) -> list[int]:
    """
    The first row, for what the column is; those that have nothing (null), an empty list, or a message without
    content; and, where each row may be of another type (Json), all.
    """
    if isinstance(dataset.features[column], Json):
        return list(range(len(dataset)))
    found, start = [0], 0
    for batch in dataset.select_columns([column]).with_format("arrow").iter(10_000):
        values = batch.column(column).combine_chunks()
        for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
            found += [start + i for i in _with_nulls(chunk)]
            start += len(chunk)
    return found


def _with_nulls(values: pa.Array) -> list[int]:
    found = set(pc.indices_nonzero(values.is_null()).to_pylist()) if values.null_count else set()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        found |= set(pc.indices_nonzero(pc.equal(pc.list_value_length(values), 0)).to_pylist())
        messages, parents = values.flatten(), pc.list_parent_indices(values)
        if pa.types.is_struct(messages.type):
            for key in ("content", "value"):
                if messages.type.get_field_index(key) >= 0:
                    found |= set(parents.filter(pc.struct_field(messages, key).is_null()).to_pylist())
    return sorted(found)


def check_parallelism(accelerator: Accelerator, args: TrainingArguments) -> None:
    parallelism = accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "Context and sequence parallelism split a sequence over ranks, so the next state's value V(s') of a "
            "rank's last token lies on another rank. IRLTrainer does not fetch it. Set `cp_size=1` and "
            "`sp_size=1`; ZeRO-3 or FSDP2 with gradient checkpointing also save memory."
        )
    if args.n_gpu > 1:
        raise ValueError(
            "Several GPUs are visible to one process, and `nn.DataParallel` would run the soft-Q head of the "
            "original model in every replica. Launch with `accelerate launch` or `torchrun`, or make one GPU "
            "visible with CUDA_VISIBLE_DEVICES."
        )


def sharding_of(args: TrainingArguments) -> str | None:
    """What shards the weights in this run, if anything does."""
    fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    return "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if fsdp else None


def check_quantization(
    args: IRLConfig, model: str | PreTrainedModel | PeftModel, quantization_config, peft_config: PeftConfig | None
) -> None:
    """Refuse quantised weights without an adapter, and under the launchers that would shard them."""
    quantised = (
        quantization_config is not None
        or (args.model_init_kwargs or {}).get("quantization_config") is not None
        or getattr(model, "is_quantized", False)
    )
    if quantised and peft_config is None and not is_adapted(model):
        raise ValueError(
            "The model is quantised (`load_in_4bit` or `load_in_8bit`), and quantised weights cannot be trained. "
            "Train an adapter: set `use_peft: true` (in Python, `peft_config`), or do not quantise."
        )
    sharding = sharding_of(args)
    if quantised and sharding:
        raise ValueError(
            f"The model is quantised (`load_in_4bit` or `load_in_8bit`) and the launcher is {sharding}, which shards "
            "parameters: packed 4-bit weights and their statistics cannot be split over ranks and gathered again as "
            "they are. QLoRA runs on one process, under DDP and under ZeRO-2 (accelerate configs single_gpu, ddp, "
            f"zero2). Launch with one of those, or train LoRA on unquantised weights under {sharding}."
        )
