"""What the trainer refuses before it prepares data or loads a model: each error says what was set, why, what to do."""

import os
from collections.abc import Callable

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ...rewards.adapters import is_adapted
from ...soft_q.objectives import Objective
from ..runtime.models import sharding_of, why_reference
from .config import IRLConfig
from .token_metrics import TOKEN_METRICS


def check_arguments(
    args: IRLConfig,
    model: str | PreTrainedModel | PeftModel,
    compute_loss_func: Callable | None,
    peft_config: PeftConfig | None,
    ref_model: PreTrainedModel | None,
    objective: Objective | None,
) -> None:
    check_kind(args, IRLConfig)
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
    check_objective_and_reference(args, model, peft_config, ref_model, objective)


def check_kind(args, wanted: type) -> None:
    """
    Raises:
        `TypeError`: the arguments are of another class.
    """
    if not isinstance(args, wanted):
        kind = type(args).__name__
        hint = "the same arguments are accepted" if isinstance(args, TrainingArguments) else "see its docstring"
        raise TypeError(
            f"`args` is a `{kind}`, which has no `lambda_td`, `gamma` and so on. Build an `{wanted.__name__}` "
            f"({hint})."
        )


def check_objective_and_reference(
    args,
    model: str | PreTrainedModel | PeftModel,
    peft_config: PeftConfig | None,
    ref_model: PreTrainedModel | None,
    objective: Objective | None,
) -> None:
    """What any trainer refuses of its objective, of an adapter on the head, and of a reference."""
    if objective is not None and not isinstance(objective, Objective):
        if isinstance(objective, type):
            hint = f"Pass an instance: `objective={objective.__name__}(...)`"
        else:
            hint = "Pass an instance of a subclass of `trl_irl.soft_q.objectives.Objective`"
        by_name = " A name is for the arguments: `IRLConfig(objective=...)`." if isinstance(objective, str) else ""
        raise TypeError(f"`objective={objective!r}` is no objective. {hint}.{by_name}")
    if objective is not None and args.objective != "soft_q":
        raise ValueError(
            f"Both `objective` and `args.objective={args.objective!r}` say what to minimise. Leave one of them out."
        )
    if objective is not None and (told := args.strengths_told()):
        raise ValueError(
            f"`{told[0]}={getattr(args, told[0])}` is of the objectives that `args.objective` names, and an objective "
            "was passed, which has strengths of its own. Leave it out."
        )
    if objective is not None and objective.lambda_kl != args.lambda_kl:
        raise ValueError(
            f"`args.lambda_kl={args.lambda_kl}` makes the reference, and the objective that was passed has "
            f"`lambda_kl={objective.lambda_kl}` as the weight of its KL. Set both to the same (an attribute of the "
            f"objective: `objective.lambda_kl = {args.lambda_kl}`)."
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
    why = why_reference(args, objective)
    if ref_model is not None and why is None:
        raise ValueError(
            "`ref_model` was passed but `lambda_kl=0`, so it would never be used. Set `lambda_kl` > 0, or "
            "`value_origin: reference`."
        )
    needs_copy = why is not None and ref_model is None and peft_config is None
    if needs_copy and isinstance(model, PreTrainedModel) and is_deepspeed_zero3_enabled():
        raise ValueError(
            f"{why} needs a reference policy, and under DeepSpeed ZeRO-3 a model that is already loaded cannot be "
            "copied: each rank holds only a part of it. Pass the model's name or path as "
            "`model`, pass `ref_model`, or train an adapter with `peft_config`."
        )


def has_no_experts(config: PretrainedConfig) -> bool:
    """Whether a model of a Mixture-of-Experts family is a dense one, such as Granite 4 H Micro: it routes nothing."""
    config = config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    numbers = [getattr(config, name) for name in names if getattr(config, name, None) is not None]
    return bool(numbers) and not any(numbers)


def named(train_dataset, eval_dataset) -> list[tuple[str, Dataset | IterableDataset]]:
    """Each dataset that is there, the train dataset first, with the name that messages call it by."""
    evals = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    found = [("train", train_dataset), *((shown_name(key), dataset) for key, dataset in evals.items())]
    return [(name, dataset) for name, dataset in found if dataset is not None]


def shown_name(key: str) -> str:
    """What messages call an evaluation dataset: its key, unless that is the train dataset's name."""
    return "eval train" if key == "train" else key


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


def check_parallelism(accelerator: Accelerator, args: TrainingArguments) -> None:
    parallelism = accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "Context and sequence parallelism split a sequence over ranks, so the next state's value V(s') of a "
            "rank's last token lies on another rank. IRLTrainer does not fetch it. Set `cp_size=1` and "
            "`sp_size=1`; ZeRO-3 or FSDP2 with gradient checkpointing also save memory."
        )
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if accelerator.num_processes < started:
        raise ValueError(
            f"The launcher started {started} processes, and each of them would train alone, into one folder: "
            f"accelerate found no devices of the kind that it was told of ({accelerator.distributed_type.value}). On "
            "CPUs set `use_cpu=True` (`--use_cpu true`)."
        )
    if args.n_gpu > 1:
        raise ValueError(
            "Several GPUs are visible to one process, and `nn.DataParallel` would run the soft-Q head of the "
            "original model in every replica. Launch with `accelerate launch` or `torchrun`, or make one GPU "
            "visible with CUDA_VISIBLE_DEVICES."
        )


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
