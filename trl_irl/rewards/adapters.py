"""Adapters by name, in a folder or on the Hub: what they are of, their tokenizer, their base, named if it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file


def is_adapter(path: str) -> bool:
    """Whether a folder, or a repository on the Hub, is an adapter and no model of its own."""
    folder = Path(path)
    return (folder / "adapter_config.json").is_file() if folder.exists() else _is_adapter_on_the_hub(path)


@lru_cache
def _is_adapter_on_the_hub(name: str) -> bool:
    try:
        return find_adapter_config_file(name) is not None
    except (OSError, ValueError):  # not there, or no name of a repository: whoever loads it says so
        return False


def base_of(path: str, key: str = "model") -> str:
    """
    What the base of an adapter is called.

    Raises:
        `ValueError`: the adapter does not say.
        `FileNotFoundError`: it is a local folder that is not there.
    """
    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise ValueError(
            f"`{key}: {path}` is an adapter that does not say what of. Set `base_model_name_or_path` in its "
            "adapter_config.json."
        )
    if not Path(base).is_dir() and (base.startswith(("/", ".", "~")) or base.count("/") > 1):
        raise FileNotFoundError(_base_is_gone(path, key, base, f"it is not there (from {Path.cwd()})"))
    return base


def _base_is_gone(path: str, key: str, base: str, why: str) -> str:
    return (
        f"`{key}: {path}` is an adapter of the model {base}, which could not be loaded: {why.rstrip('. ')}. Put it "
        "back, or set `base_model_name_or_path` in the adapter's adapter_config.json to where it is."
    )


@contextmanager
def naming(path: str, key: str) -> Iterator[None]:
    """
    Around what loads a model by name: if it, or an adapter's base, is not to be had, the error says which and what set
    it.

    Raises:
        `OSError`
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None or f"`{key}:" in str(error):
            raise  # of the system, such as a full cache; or named already
        why = str(error).strip().splitlines()[0]
        if is_adapter(path):
            raise OSError(_base_is_gone(path, key, base_of(path, key), why)) from error
        raise OSError(
            f"`{key}: {path}` could not be loaded: {why} Check the name and the connection; for a private or gated "
            "model log in with `hf auth login`."
        ) from error


def config_of(path: str, key: str = "model", **options) -> PretrainedConfig:
    """
    A model's configuration, of an adapter its base's. `options` are of `AutoConfig.from_pretrained`.

    Raises:
        `OSError`, `ValueError`: it is not to be had; an adapter's base is named.
    """
    with naming(path, key):
        return AutoConfig.from_pretrained(base_of(path, key) if is_adapter(path) else path, **options)


def tokenizer_of(path: str, key: str = "model", **options) -> PreTrainedTokenizerBase:
    """
    The tokenizer that was saved with a model; of an adapter that has none, its base's. `options` are of
    `AutoTokenizer.from_pretrained`.

    Raises:
        `OSError`, `ValueError`: there is none.
    """
    with naming(path, key):
        if not is_adapter(path):
            return AutoTokenizer.from_pretrained(path, **options)
        try:
            return AutoTokenizer.from_pretrained(path, **options)
        except (OSError, ValueError):
            return AutoTokenizer.from_pretrained(base_of(path, key), **options)


def merged(base: PreTrainedModel, path: str) -> PreTrainedModel:
    """
    An adapter merged into its base, for what trains all weights or a new adapter.

    Raises:
        `ValueError`: the base is quantised, or the adapter is of virtual tokens.
    """
    if getattr(base, "quantization_method", None) is not None:
        raise ValueError(
            f"{path} is an adapter, and its base is loaded in few bits, into which it cannot be merged without loss. "
            "Merge it first (`AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)`) "
            "and start from the result, or go on with the adapter itself (`use_peft: false`)."
        )
    model = PeftModel.from_pretrained(base, path)
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{path} is an adapter of virtual tokens ({model.active_peft_config.peft_type.value}), which cannot be "
            "merged into its base. Start from LoRA or another adapter inside the layers, or from the base."
        )
    return model.merge_and_unload()
