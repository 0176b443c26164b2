"""
What a training takes, before it is started: memory per GPU for each launcher, with all weights, LoRA and QLoRA, and
the time of a step. From the model's config alone: no weights are loaded, and no GPU is needed.

```bash
trl-irl plan --config gsm8k/irl_lora
trl-irl plan --model_name_or_path Qwen/Qwen2.5-7B --gpus 4 --gpu rtx-4090
trl-irl plan --model_name_or_path config.json --gpus 8 --gpu 80 --max_length 4096
```
"""

import re
from dataclasses import dataclass, field, fields
from typing import Literal


_DEFAULTS = {
    "dtype": "float32",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_length": 1024,
    "gradient_checkpointing": True,
    "bf16": True,
    "optim": "adamw_torch_fused",
    "lora_r": 16,
    "lora_target_modules": ["all-linear"],
    "lambda_kl": 0.0,
    "value_origin": "zero",
}
_CHANGES_MEMORY = ("load_in_8bit", "use_dora", "activation_offloading", "fp16", "model_init_kwargs", "padding_free")
_CHANGES_MEMORY += ("lora_modules_to_save", "lora_target_parameters", "torch_dtype")


@dataclass
class PlanArguments:
    """
    Arguments of the `plan` command. What a recipe sets is taken from it, unless it is given here as well.

    Args:
        recipe (`str`, *optional*):
            A recipe of the `irl` command, by path or name; `--config` says the same.
        model_name_or_path (`str`, *optional*):
            A folder, a Hub id or a config.json; only its config is read.
        gpus (`int`, *optional*, defaults to `1`):
            How many.
        gpu (`str`, *optional*, defaults to `"24"`):
            Memory of each in GiB, or a GPU's name, such as `rtx-4090` or `h100`, from which the time is known too.
        method (`str`, *optional*):
            `full`, `lora` or `qlora`; the recipe's, or all three without one.
        per_device_train_batch_size, max_length (`int`, *optional*):
            Rows of a micro-batch, and tokens of each; 8 and 1024 if unset. All tokens are taken to be scored.
        gradient_accumulation_steps (`int`, *optional*):
            Micro-batches of a step, 1 if unset: with more, gradients lie beside activations.
        gradient_checkpointing, bf16 (`bool`, *optional*):
            Both on if unset, as in the trainer.
        dtype, optim (`str`, *optional*):
            Of the weights, float32 if unset; of the optimizer.
        lora_r (`int`, *optional*), lora_target_modules (`list[str]`, *optional*):
            16 and all linear layers if unset.
        lambda_kl (`float`, *optional*), value_origin (`str`, *optional*):
            Above 0, or `reference`: a reference copy of a model that is trained whole.
        logit_buffer_mb (`float` or `"auto"`, *optional*):
            As in the trainer; `"auto"` takes more than its default only of what is free.
    """

    recipe: str | None = field(default=None, metadata={"help": "A recipe of the irl command, by path or name."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "A folder, Hub id or config.json."})
    gpus: int = field(default=1, metadata={"help": "How many GPUs."})
    gpu: str = field(default="24", metadata={"help": "Memory of each in GiB, or a name such as rtx-4090."})
    method: Literal["full", "lora", "qlora"] | None = field(
        default=None, metadata={"help": "Only this one; the recipe's, or all three without a recipe, if unset."}
    )
    per_device_train_batch_size: int | None = field(default=None, metadata={"help": "Rows of a micro-batch; 8."})
    gradient_accumulation_steps: int | None = field(default=None, metadata={"help": "Micro-batches of a step; 1."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens per row; 1024."})
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "On if unset."})
    bf16: bool | None = field(default=None, metadata={"help": "Products in bfloat16; on if unset."})
    dtype: str | None = field(default=None, metadata={"help": "Of the weights; float32."})
    optim: str | None = field(default=None, metadata={"help": "The optimizer; adamw_torch_fused."})
    lora_r: int | None = field(default=None, metadata={"help": "Rank of adapters; 16."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Where; all-linear."})
    lambda_kl: float | None = field(default=None, metadata={"help": "Above 0: a reference copy of a whole model."})
    value_origin: Literal["zero", "reference"] | None = field(
        default=None, metadata={"help": "reference: such a copy too."}
    )
    logit_buffer_mb: str | None = field(default=None, metadata={"help": "Memory for tiles of logits; 128."})

    def __post_init__(self):
        least = {"gpus": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_length": 2}
        least |= {"lora_r": 1, "lambda_kl": 0}
        for key, bound in least.items():
            value = getattr(self, key)
            if value is not None and not value >= bound:
                raise ValueError(f"`{key}={value}` is out of range. Set it to {bound} or more.")
        if "lm_head" in (self.lora_target_modules or ()):
            raise ValueError("`lora_target_modules: lm_head` is refused in training: the head can carry no adapter.")


def filled(arguments: PlanArguments) -> PlanArguments:
    """
    The arguments with what the recipe sets, and the defaults.

    Raises:
        `ValueError`: a recipe of another command, or one that sets what changes the memory in a way not known here.
    """
    from dataclasses import replace

    from ..soft_q.buffer import AUTO, DEFAULT_LOGIT_BUFFER_MB, read_logit_buffer
    from .console.recipe_file import find_recipe
    from .irl import make_parser as parser_of_irl
    from .recipes import program_of

    recipe: dict = {}
    if arguments.recipe is not None:
        if (program := program_of(find_recipe(arguments.recipe))) != "trl-irl irl":
            raise ValueError(f"`{arguments.recipe}` is a recipe for `{program}`, and `plan` knows those of `irl`.")
        recipe = parser_of_irl().checked(arguments.recipe)
        unknown = [key for key in _CHANGES_MEMORY if recipe.get(key)]
        if recipe.get("attn_implementation") == "eager":
            unknown.append("attn_implementation: eager")
        if "max_length" in recipe and recipe["max_length"] is None and arguments.max_length is None:
            unknown.append("max_length: null")
        if recipe.get("load_in_4bit") and not recipe.get("use_peft"):
            unknown.append("load_in_4bit without use_peft")
        if unknown:
            raise ValueError(
                f"`{arguments.recipe}` sets {', '.join(unknown)}, and `plan` does not know what that changes."
            )
        if recipe.get("use_peft"):
            recipe["method"] = "qlora" if recipe.get("load_in_4bit") else "lora"
        else:
            recipe["method"] = "full"
    given = {f.name: getattr(arguments, f.name) for f in fields(arguments) if getattr(arguments, f.name) is not None}
    own = {f.name for f in fields(arguments)} - {"gpus", "gpu", "recipe"}
    values = {**_DEFAULTS, "logit_buffer_mb": DEFAULT_LOGIT_BUFFER_MB}
    values |= {key: value for key, value in recipe.items() if key in own and value is not None}
    if isinstance(values["lora_target_modules"], str):
        values["lora_target_modules"] = [values["lora_target_modules"]]
    values |= given
    buffer = read_logit_buffer(values["logit_buffer_mb"])
    # "auto" takes more than this only where nothing else would have it
    values["logit_buffer_mb"] = DEFAULT_LOGIT_BUFFER_MB if buffer == AUTO else buffer
    return replace(arguments, **values)


def main(arguments: PlanArguments) -> None:
    """
    Print the plan.

    Raises:
        `ValueError`: something is set that `plan` does not know.
    """
    from ..planning.gpus import gpu_of
    from ..planning.plan import METHODS, options

    arguments = filled(arguments)
    gpu = gpu_of(arguments.gpu)
    config = _config(arguments.model_name_or_path)
    methods = METHODS if arguments.method is None else (arguments.method,)
    found = [
        option for method in methods for option in options(config, _setting(arguments, method), arguments.gpus, gpu)
    ]
    _show(arguments, config, gpu, found)


def _config(name: str | None):
    from pathlib import Path

    from ..rewards.adapters import config_of
    from ..tasks.files import check_local_path

    if name is None:
        raise ValueError("`model_name_or_path` is not set. Name a folder, a Hub id, a config.json, or a `--recipe`.")
    check_local_path(name, "model_name_or_path")
    path = Path(name)
    if path.is_file() and path.name != "config.json":
        raise ValueError(
            f"`model_name_or_path: {name}` is a file, and a model's config is called config.json. Name the folder "
            "that it is in, or put a config of another name into a folder of its own under that one."
        )
    return config_of(str(path.parent) if path.is_file() else name, "model_name_or_path")


def _setting(arguments: PlanArguments, method: str):
    import torch

    from ..planning.plan import Setting
    from ..planning.tracing import Batch

    rows, length = arguments.per_device_train_batch_size, arguments.max_length
    dtype = getattr(torch, arguments.dtype.removeprefix("torch."), None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"`dtype={arguments.dtype}`: `plan` knows float32, bfloat16 and float16.")
    targets = arguments.lora_target_modules
    lora = {"r": arguments.lora_r, "target_modules": targets[0] if targets == ["all-linear"] else targets}
    return Setting(
        method=method,
        dtype=dtype,
        bf16=arguments.bf16,
        batch=Batch(rows, length, rows * (length - 1)),
        gradient_checkpointing=arguments.gradient_checkpointing,
        logit_buffer_mb=arguments.logit_buffer_mb,
        optim=arguments.optim,
        lora=lora,
        reference=arguments.lambda_kl > 0 or arguments.value_origin == "reference",
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
    )


def _show(arguments: PlanArguments, config, gpu, found: list) -> None:
    import shutil

    from rich.console import Console
    from rich.table import Table

    from ..text.context import context_length

    width = max(shutil.get_terminal_size().columns, 110)  # a table that is cut says nothing
    console = Console(highlight=False, width=width)
    rows, length = arguments.per_device_train_batch_size, arguments.max_length
    many = f"{arguments.gpus} GPUs" if arguments.gpus > 1 else "1 GPU"
    several = arguments.gradient_accumulation_steps
    steps = f", {several} to a step" if several > 1 else ""
    console.print(
        f"{arguments.model_name_or_path} ({config.model_type}), {many} of {gpu.memory:g} GiB, micro-batches of {rows} "
        f"x {length} tokens, all scored{steps}; gradient checkpointing "
        f"{'on' if arguments.gradient_checkpointing else 'off'}."
    )
    if (context := context_length(config)) is not None and length > context:
        console.print(f"[yellow]Rows are longer than the model's context of {context} tokens.[/yellow]")
    table = Table(box=None, pad_edge=False, title="GiB per GPU", title_justify="left")
    columns = ("weights", "optimizer", "gradients", "gathered", "activations", "head")
    for name in ("method", "launcher"):
        table.add_column(name)
    for name in (*columns, "peak", "", *(() if gpu.tflops is None else ("seconds",))):
        table.add_column(name, justify="right")
    for option in found:
        parts = option.memory.in_gib()
        seconds = option.seconds(gpu)
        table.add_row(
            option.method,
            option.launcher,
            *(f"{parts[name]:.1f}" for name in columns),
            f"{parts['total']:.1f}",
            "[green]fits[/green]" if option.fits else "[red]too much[/red]",
            *(() if seconds is None else (f"{seconds:.2f}",)),
        )
    console.print(table)
    console.print(
        "Not all of it is there at the peak, so the parts add up to more. It fits with 1 GiB to spare for the CUDA "
        "context and for memory in pieces."
    )
    if gpu.tflops is not None:
        from ..planning.plan import UTILIZATION

        console.print(
            f"Seconds are of a micro-batch, and an assumption: {UTILIZATION:.0%} of {gpu.tflops:g} TFLOP/s, without "
            "communication."
        )
    if not any(option.fits for option in found):
        console.print(
            "Nothing fits. Lower `per_device_train_batch_size` or `max_length`, take more GPUs, or a smaller model."
        )


def make_parser():
    from .console.parser import RecipeParser

    class PlanParser(RecipeParser):
        """A recipe is one of `irl`, to be read and not to be obeyed: `--config` is `--recipe`."""

        def _take_recipe(self, words: list[str]) -> tuple[dict, list[str]]:
            return {}, [re.sub(r"^--config(?==|$)", "--recipe", word) for word in words]

    return PlanParser((PlanArguments,), __doc__, prog="trl-irl plan")


def run(argv: list[str] | None = None) -> int:
    """The command: what is wrong becomes one message; the exit status is 0, or 2 then."""
    from .console.failures import run_reporting

    return run_reporting(make_parser(), main, argv)


if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
