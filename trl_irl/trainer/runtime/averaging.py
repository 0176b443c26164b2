"""
Weighted averages of models that began as one: of a base and what was fine-tuned from it, or of checkpoints of a run.

    W = w_1 W_1 + ... + w_n W_n,    w_1 + ... + w_n = 1

Adapters are averaged in what they add to the base, exactly: of LoRA, w_1 s_1 B_1 A_1 + ... is one adapter whose rank
is the sum of theirs, [w_1 s_1 B_1, ...] [A_1; ...]. The base itself counts as an adapter that adds nothing.

Papers: "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903); "Model soups" (arXiv 2203.05482); of
language models' diversity, "Weight ensembling improves reasoning in language models" (arXiv 2504.10478).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...rewards.adapters import config_of, is_adapter, naming, tokenizer_of
from ...rewards.soft_q_settings import SETTINGS_FILE


_INDEX, _WHOLE, _ADAPTER = "model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors"
_LORA = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}  # along which dimension the rank is
_OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".msgpack", ".h5")
_TOKENS = "trainable_token_indices"
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # of `init_lora_weights`, or what it begins with
_TEMPLATES = "additional_chat_templates"  # of a tokenizer
# What of a config decides, beside the weights' names and shapes, what they compute.
_OF_FUNCTION = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "rope_parameters")
_OF_FUNCTION += ("hidden_act", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_OF_FUNCTION += ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")
_OF_FUNCTION += ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "num_experts_per_tok")
_OF_TRAINING = ("optimizer", "scheduler", "rng_state", "scaler", "training_args", "trainer_state")


def average(paths: Sequence[str], weights: Sequence[float], output_dir: str) -> Path:
    """
    Write the average of models, shard by shard: no more than a shard of one model is in memory, in float32.

    Args:
        paths (`Sequence[str]`):
            Folders or Hub ids of whole models, or of LoRA adapters of one base and that base. What is beside the
            weights (configuration, tokenizer, data type) is taken from the first that a trainer has saved, which
            leaves soft_q.json or training_args.bin beside it, else from the first; of a base with adapters, from the
            first adapter. Warns where the models end a text otherwise.
        weights (`Sequence[float]`):
            One each, with the sum 1.
        output_dir (`str`):
            A new folder. It is there when it is whole.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: the weights do not fit, or the models do not: other tensors, layers or tokens, quantised ones,
            adapters of another kind or base.
        `FileExistsError`: `output_dir` holds something.
    """
    if len(paths) < 2 or len(paths) != len(weights):
        raise ValueError(
            f"There are {len(paths)} models and {len(weights)} weights. Give two models or more, and one weight each."
        )
    if not all(map(math.isfinite, weights)) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise ValueError(
            f"The weights {' '.join(f'{x:g}' for x in weights)} have the sum {sum(weights):g}. It must be 1."
        )
    folder = Path(output_dir).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"`output_dir: {output_dir}` is not empty. Name a new folder.")
    adapters = [is_adapter(path) for path in paths]
    folders = [_local(path) for path in paths]
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    part.mkdir()
    try:
        if any(adapters):
            _average_adapters(paths, folders, adapters, weights, part)
        else:
            # A base, which is often named first, ends a text otherwise than what was trained from it.
            trained_first = sorted(range(len(paths)), key=lambda i: not _is_trained(folders[i]))
            _average_whole(*([each[i] for i in trained_first] for each in (paths, folders, weights)), part)
        _copy_settings(folders, part)
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _is_trained(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SETTINGS_FILE, "training_args.bin"))


def _local(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    ignored = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx"]
    with naming(path, "models"):
        return Path(snapshot_download(path, ignore_patterns=ignored))


class _Tensors:
    """The tensors of a model's safetensors, by name, read when they are asked for."""

    def __init__(self, folder: Path, name: str, stack: ExitStack):
        index = folder / _INDEX
        if index.is_file():
            self.file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        elif (folder / _WHOLE).is_file():
            with safe_open(folder / _WHOLE, "pt") as file:
                self.file_of = dict.fromkeys(file.keys(), _WHOLE)
        else:
            raise ValueError(f"{name} has no safetensors. Save it again (`save_pretrained`), which writes them.")
        self.name, self._folder, self._stack = name, folder, stack
        self._files: dict[str, safe_open] = {}

    def __getitem__(self, tensor: str) -> torch.Tensor:
        return self._file(tensor).get_tensor(tensor)

    def shape(self, tensor: str) -> list[int]:
        return list(self._file(tensor).get_slice(tensor).get_shape())

    def _file(self, tensor: str):
        file = self.file_of[tensor]
        if file not in self._files:
            self._files[file] = self._stack.enter_context(safe_open(self._folder / file, "pt"))
        return self._files[file]


def _average_whole(paths: Sequence[str], folders: Sequence[Path], weights: Sequence[float], out: Path) -> None:
    with ExitStack() as stack:
        models = [_Tensors(folder, path, stack) for folder, path in zip(folders, paths, strict=True)]
        first, *others = models
        for other, path in zip(others, paths[1:], strict=True):
            _check_same(first, other)
            _check_versions(paths[0], path)
        for shard in dict.fromkeys(first.file_of.values()):
            names = [name for name, file in first.file_of.items() if file == shard]
            averaged = {name: _mean(name, models, weights) for name in names}
            save_file(averaged, out / shard, metadata={"format": "pt"})
    if (folders[0] / _INDEX).is_file():
        shutil.copy(folders[0] / _INDEX, out / _INDEX)
    _copy_rest(folders[0], out)


def _check_same(first: _Tensors, other: _Tensors) -> None:
    missing = first.file_of.keys() ^ other.file_of.keys()
    if missing:
        one = min(missing)
        raise ValueError(
            f"{first.name} and {other.name} are no versions of one model: {one}, among others, is in one of them "
            "only. An average needs the same tensors."
        )
    for name in first.file_of:
        if first.shape(name) != other.shape(name):
            raise ValueError(
                f"{name} is {first.shape(name)} in {first.name} and {other.shape(name)} in {other.name}: an average "
                "needs the same shapes. Was one trained with new tokens?"
            )


def _check_versions(first: str, other: str) -> None:
    """
    Warns where two models end a text otherwise.

    Raises:
        `ValueError`: weights of these shapes mean something else in one than in the other.
    """
    try:
        ours, theirs = (config_of(path).get_text_config() for path in (first, other))
    except (OSError, ValueError):  # of a class that transformers does not know
        return
    for key in _OF_FUNCTION:
        if (own := getattr(ours, key, None)) != (its := getattr(theirs, key, None)):
            raise ValueError(
                f"{first} and {other} are no versions of one model: `{key}` is {own} in one and {its} in the other, "
                "and the same weights compute something else."
            )
    try:
        tokenizer, another = tokenizer_of(first), tokenizer_of(other)
    except (OSError, ValueError):  # none was saved with one of them
        return
    own, its = tokenizer.get_vocab(), another.get_vocab()
    token = next((token for token, i in own.items() if its.get(token, i) != i and token != tokenizer.pad_token), None)
    if token is not None:
        raise ValueError(
            f"{first} and {other} are no versions of one model: the token {token!r} is {own[token]} in one and "
            f"{its[token]} in the other."
        )
    ends = [(one.eos_token, one.chat_template) for one in (tokenizer, another)]
    if ends[0] != ends[1]:
        warnings.warn(
            f"{first} and {other} write texts otherwise (EOS {ends[0][0]} and {ends[1][0]}, or another chat template)."
            f" The average has the tokenizer and the settings of {first}.",
            stacklevel=2,
        )


def _mean(name: str, models: Sequence[_Tensors], weights: Sequence[float]) -> torch.Tensor:
    tensors = [model[name] for model in models]
    first = tensors[0]
    if not first.is_floating_point() or first.dtype.itemsize == 1:
        if all(torch.equal(first, other) for other in tensors[1:]):
            return first
        raise ValueError(
            f"{name} is {first.dtype} and differs between the models: quantised weights have no average. Average "
            "models that are saved in bfloat16 or float32."
        )
    wide = torch.promote_types(first.dtype, torch.float32)
    total = torch.zeros(first.shape, dtype=wide)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(wide), alpha=weight)
    return total.to(first.dtype)


def _average_adapters(
    paths: Sequence[str], folders: Sequence[Path], adapters: Sequence[bool], weights: Sequence[float], out: Path
) -> None:
    chosen = [i for i, is_one in enumerate(adapters) if is_one]
    configs = {i: json.loads((folders[i] / "adapter_config.json").read_text(encoding="utf-8")) for i in chosen}
    bases = {configs[i]["base_model_name_or_path"] for i in chosen}
    named = {str(Path(base).resolve()) if Path(base).exists() else base for base in bases}
    named |= {
        str(Path(paths[i]).resolve()) if Path(paths[i]).exists() else paths[i]
        for i in set(range(len(paths))) - {*chosen}
    }
    gone = next((base for base in bases if not Path(base).exists() and base.startswith(("/", ".", "~"))), None)
    if gone is not None:
        raise FileNotFoundError(
            f"An adapter's base, {gone}, is not there (from {Path.cwd()}). Put it back, or set "
            "`base_model_name_or_path` in its adapter_config.json to where it is."
        )
    if len(named) > 1:
        raise ValueError(
            f"These are adapters of, or are, {', '.join(sorted(named))}: an average needs one base. Merge adapters "
            "into theirs first, and average whole models."
        )
    for i in chosen:
        _check_lora(configs[i], paths[i])
    if any(configs[i].get(_TOKENS) != configs[chosen[0]].get(_TOKENS) for i in chosen):
        raise ValueError(
            f"The adapters {', '.join(paths[i] for i in chosen)} train other rows of the embeddings each "
            f"(`{_TOKENS}`). Merge them into the base first, and average whole models."
        )
    found = {i: _adapter_tensors(folders[i], paths[i]) for i in chosen}
    names = [found[i].keys() for i in chosen]
    if any(one != names[0] for one in names[1:]):
        raise ValueError(
            f"The adapters {', '.join(paths[i] for i in chosen)} are of other layers each. An average needs the same."
        )
    rest = [name for name in names[0] if _kind(name) is None]
    if rest and len(chosen) < len(paths):
        raise ValueError(
            f"The adapter {paths[chosen[0]]} also holds {rest[0]} whole (`modules_to_save` or biases), which the base "
            "has elsewhere. Merge it first, and average whole models."
        )
    tensors, ranks = {}, {}
    for name in names[0]:
        kind, parts = _kind(name), [found[i][name] for i in chosen]
        if kind is None:
            tensors[name] = sum(weights[i] * part.float() for i, part in zip(chosen, parts, strict=True)).to(
                parts[0].dtype
            )
            continue
        if _LORA[kind] == 1:
            scales = [
                weights[i] * _scaling(configs[i], name, part.size(1)) for i, part in zip(chosen, parts, strict=True)
            ]
            parts = [(scale * part.float()).to(part.dtype) for scale, part in zip(scales, parts, strict=True)]
        tensors[name] = torch.cat(parts, dim=_LORA[kind]).contiguous()
        ranks[_module(name)] = tensors[name].size(_LORA[kind])
    save_file(tensors, out / _ADAPTER, metadata={"format": "pt"})
    most = max(ranks.values())
    pattern = {module: rank for module, rank in ranks.items() if rank != most}
    config = {**configs[chosen[0]], "r": most, "lora_alpha": most, "use_rslora": False}
    config |= {"rank_pattern": pattern, "alpha_pattern": dict(pattern)}  # alpha / r is 1: B holds the scaling
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _copy_rest(folders[chosen[0]], out)


def _check_lora(config: dict, path: str) -> None:
    init = str(config.get("init_lora_weights")).lower()
    if init.startswith(_CHANGE_THE_BASE):
        raise ValueError(
            f"{path} is an adapter with `init_lora_weights={init!r}`, which changes the base that it stands on, so "
            "that an average with other ranks would stand on another. Merge it into its base first "
            "(`merge_and_unload`), and average whole models."
        )
    more = next((name for name in ("use_dora", "lora_bias", "target_parameters") if config.get(name)), None)
    if config.get("peft_type") != "LORA" or more:
        kind = f"LoRA with `{more}`" if more else config.get("peft_type")
        raise ValueError(
            f"{path} is an adapter of the kind {kind}, whose average is no adapter of that kind. Merge it into its "
            "base first, and average whole models."
        )


def _adapter_tensors(folder: Path, path: str) -> dict[str, torch.Tensor]:
    if not (folder / _ADAPTER).is_file():
        raise ValueError(f"{path} has no {_ADAPTER}. Save it again (`save_pretrained`), which writes it.")
    with safe_open(folder / _ADAPTER, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)


def _kind(name: str) -> str | None:
    return next((part for part in name.split(".") if part in _LORA), None)


def _module(name: str) -> str:
    """The name of the layer, as `rank_pattern` matches it."""
    parts = name.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part in _LORA)]).removeprefix(
        "base_model.model."
    )


def _scaling(config: dict, name: str, rank: int) -> float:
    """alpha / r of a layer, or alpha / sqrt(r) with rsLoRA; patterns match the end of a layer's name, as in PEFT."""
    module, alpha = _module(name), config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _copy_rest(folder: Path, out: Path) -> None:
    """Configuration, tokenizer and settings: what is beside the weights, and is no checkpoint's."""
    for path in _files(folder):
        if not (out / path.name).exists():
            shutil.copy(path, out / path.name)
    if (folder / _TEMPLATES).is_dir():
        shutil.copytree(folder / _TEMPLATES, out / _TEMPLATES)


def _copy_settings(folders: Sequence[Path], out: Path) -> None:
    """How a reward is read, of the first model that says so: a base, which is often named first, has nothing of it."""
    if (out / SETTINGS_FILE).exists():  # of the model whose config this is
        return
    of_irl = next((folder for folder in folders if (folder / SETTINGS_FILE).is_file()), None)
    if of_irl is not None:
        shutil.copy(of_irl / SETTINGS_FILE, out / SETTINGS_FILE)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        is_weight = path.name.endswith(_OF_WEIGHTS)
        if path.is_file() and not is_weight and not path.name.startswith((*_OF_TRAINING, "README", ".")):
            yield path
