"""What `--help` says: how a command is used, its own keys in groups, and of the inherited ones those that matter."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from dataclasses import fields


# Inherited keys that a run is usually given; `--help-all` has the others.
_USUAL = {
    "model": "model_name_or_path dtype attn_implementation use_peft lora_r lora_alpha lora_target_modules "
    "load_in_4bit",
    "data": "dataset_name dataset_train_split dataset_test_split max_length packing",
    "training": "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "max_completion_length num_generations response_length total_episodes reward_model_path kl_coef bf16 use_cpu seed",
    "output": "output_dir logging_steps eval_strategy eval_steps save_strategy save_steps resume_from_checkpoint "
    "report_to push_to_hub hub_model_id",
}
_GROUPS = ("objective", "model", "data", "training", "generation", "output")


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith(("trl_irl", "__main__"))  # a command's module runs as `__main__`


def _own(kind: type) -> list[str]:
    """Fields that a class of this package has declared, itself or in a base of this package."""
    inherited = {
        field.name
        for base in kind.__mro__[1:]
        if hasattr(base, "__dataclass_fields__") and not _is_ours(base)
        for field in fields(base)
    }
    return [field.name for field in fields(kind) if field.name not in inherited]


def _nearest_first(kind: type) -> list[str]:
    """All fields of a class: first those that it declares itself, then those of its bases, the nearest before."""
    declared = [name for base in kind.__mro__ for name in inspect.get_annotations(base)]
    known = {field.name for field in fields(kind)}
    return [name for name in dict.fromkeys(declared) if name in known]


def groups_of(kinds: tuple[type, ...]) -> dict[str, list[str]]:
    """The keys that a short help shows, by group."""
    groups: dict[str, list[str]] = {name: [] for name in _GROUPS}
    for kind in kinds:
        if _is_ours(kind):
            name = "data" if kind.__name__.endswith("ScriptArguments") else "objective"
            groups["generation" if kind.__name__ == "GenerationArguments" else name] += _own(kind)
    known = {field.name for kind in kinds for field in fields(kind)}
    for name, keys in _USUAL.items():
        taken = {key for keys in groups.values() for key in keys}
        groups[name] = [key for key in keys.split() if key in known and key not in taken] + groups[name]
    return {name: keys for name, keys in groups.items() if keys}


_NARROWEST = 72  # columns: a narrower terminal breaks lines by itself


def short_help(parser: argparse.ArgumentParser, kinds: tuple[type, ...], doc: str) -> str:
    """
    Args:
        parser ([`RecipeParser`])
        kinds (`tuple[type, ...]`):
            Its dataclasses.
        doc (`str`):
            The command's docstring: what it does, and examples in fences.
    """
    width = max(_NARROWEST, min(shutil.get_terminal_size().columns, 110))
    purpose, *rest = re.split(r"```\w*\n", doc.strip(), maxsplit=1)
    example, _, after = (rest[0] if rest else "").partition("```")
    lines = [f"usage: {parser.prog} [--config RECIPE] [--key value ...]", "", *textwrap.wrap(purpose.strip(), width)]
    lines += ["", *(f"  {re.sub(' {2,}', ' ', line)}" for line in example.strip().splitlines())] if example else []
    lines += ["", *textwrap.wrap(after.strip().replace("`", ""), width)] if after.strip() else []
    actions = {action.dest: action for action in reversed(parser._actions)}  # of `--key` and `--no_key` the first
    is_training = len(kinds) > 1
    if is_training:
        groups = groups_of(kinds)
    else:
        groups = {"keys": _nearest_first(kinds[0])}
    for name, keys in groups.items():
        lines += ["", f"{name}:"]
        for key in keys:
            lines += _entry(actions[key], width)
    lines += ["", "everywhere:"]
    recipe = "A YAML file of such keys, or the name of a recipe that comes with trl-irl, such as gsm8k/irl_lora."
    lines += _wrapped("--config RECIPE", f"{recipe} Keys on the command line stand above it.", width)
    if is_training:
        config = "What to run on: a file, or one of those that come with trl-irl, such as cpu, single_gpu, ddp, zero3."
        lines += _wrapped("--accelerate_config NAME", config, width)
        others = len(actions) - 1 - sum(map(len, groups.values()))
        lines += _wrapped("--help-all", f"The {others} further keys of TRL and transformers as well.", width)
    return "\n".join(lines) + "\n"


def _entry(action: argparse.Action, width: int) -> list[str]:
    kinds = {"int": "N", "float": "X", "string_to_bool": "true|false"}
    value = kinds.get(getattr(action.type, "__name__", ""), "WORD")
    if action.choices and len(action.choices) <= 6:
        value = "|".join(map(str, action.choices))
    if action.nargs in ("+", "*"):
        value += " ..."
    default = action.default
    known = f" (default: {default})" if default not in (None, argparse.SUPPRESS, [], "") else ""
    text = " ".join((action.help or "").replace("%%", "%").split())
    return _wrapped(f"--{action.dest} {value}", text + known, width)


def _wrapped(head: str, text: str, width: int) -> list[str]:
    indent = 34
    body = textwrap.wrap(text, width - indent) or [""]
    first = f"  {head}"
    if len(first) >= indent:
        return [first, *(" " * indent + line for line in body)]
    return [first.ljust(indent) + body[0], *(" " * indent + line for line in body[1:])]
