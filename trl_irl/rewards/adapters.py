"""Adapters by name, in a folder or on the Hub: what they are of, their tokenizer, their base, named if it is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_CONFIG = "adapter_config.json"


def is_adapter(path: str) -> bool:
    """Whether a folder, or a repository on the Hub, is an adapter and no model of its own."""
    folder = Path(path)
    return (folder / _CONFIG).is_file() if folder.exists() else _is_adapter_on_the_hub(path)


def default_device() -> str:
    """
    Where a model by name is loaded: this process's GPU. A reward is often built before the trainer's arguments, which
    are what sets each process's device; until then the current one is the first for all.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"


def is_adapted(model: str | PreTrainedModel | PeftModel) -> bool:
    """Whether a model to start from, by name or itself, has an adapter."""
    return is_adapter(model) if isinstance(model, str) else is_peft(model)


def is_peft(model) -> bool:
    """Whether a model is wrapped by PEFT, which takes seconds to import: where nobody has, none is."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


class ActiveAdapters:
    """Which adapters of a [`~peft.PeftModel`] a reward was made of: its layers are those of what is set later too."""

    def __init__(self, model: PeftModel):
        self._model, self._active = model, list(model.active_adapters)

    def check(self) -> None:
        """
        Raises:
            `ValueError`: others are active now, and the reward would be theirs.
        """
        if (now := list(self._model.active_adapters)) != self._active:
            raise ValueError(
                f"The reward was made of the adapter {', '.join(self._active)}, and {', '.join(now)} is active now, "
                "whose reward this would be. Set it back with `set_adapter`, or load each reward by its folder."
            )


def fit_to_tokenizer(base: PreTrainedModel, path: str) -> None:
    """Give a base the embeddings of the tokens that an adapter's own tokenizer has beyond it, as PEFT's classes do."""
    from transformers import AutoTokenizer

    try:
        size = len(AutoTokenizer.from_pretrained(path))
    except (OSError, ValueError):  # it was saved without one
        return
    if size > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(size)


def check_layers_adapted(adapter: PeftConfig, what: str) -> None:
    """
    Raises:
        `ValueError`: an adapter is of virtual tokens (prompt tuning and its like), which stand before every prompt, or
            asks PEFT's wrapper at each text what its layers are to do (aLoRA, X-LoRA): its layers alone are not the
            model that was trained. `what` is what the message calls the model.
    """
    why = None
    if adapter.is_prompt_learning:
        why = f"an adapter of virtual tokens ({adapter.peft_type.value}), which stand before every prompt"
    elif getattr(adapter, "alora_invocation_tokens", None):
        why = "an aLoRA, which begins behind its invocation tokens, where PEFT's wrapper finds them"
    elif adapter.peft_type.value == "XLORA":
        why = "an X-LoRA, whose adapters PEFT's wrapper weighs anew for each text"
    if why is not None:
        raise ValueError(
            f"{what} is {why}, and cannot be read or merged here. Take LoRA or another adapter inside the "
            "layers, or a model without one."
        )


@lru_cache
def _is_adapter_on_the_hub(name: str) -> bool:
    from huggingface_hub import file_exists, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, _CONFIG), str):
            return True
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False
        return file_exists(name, _CONFIG)
    except Exception:  # no network, not there, or no name of a repository: whoever loads it says so
        return False


def base_of(path: str, key: str = "model") -> str:
    """
    What the base of an adapter is called.

    Raises:
        `ValueError`: the adapter does not say.
        `FileNotFoundError`: it is a local folder that is not there.
    """
    from peft import PeftConfig

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
    from transformers import AutoConfig

    with naming(path, key):
        return AutoConfig.from_pretrained(base_of(path, key) if is_adapter(path) else path, **options)


def reads_apart(path: str) -> bool:
    """Whether what is saved at a path is for an encoder-decoder; of a tokenizer without a model it is not known."""
    try:
        return config_of(path).is_encoder_decoder
    except (OSError, ValueError):
        return False


def tokenizer_of(path: str, key: str = "model", eos_token: str | None = None, **options) -> PreTrainedTokenizerBase:
    """
    The tokenizer that was saved with a model; of an adapter that has none, its base's. With `eos_token`, one of its
    tokens, that is what ends a text. `options` are of `AutoTokenizer.from_pretrained`.

    Raises:
        `OSError`, `ValueError`: there is none, or `eos_token` is not among its tokens.
    """
    tokenizer = _tokenizer_of(path, key, options)
    if eos_token is not None:
        check_token(tokenizer, eos_token)
        tokenizer.eos_token = eos_token
    return tokenizer


def check_has_words(tokenizer: PreTrainedTokenizerBase, path: str, key: str = "model") -> None:
    """
    Raises:
        `ValueError`: the tokenizer has no token but special ones: transformers makes such a one of a folder that has a
            model and no tokenizer.
    """
    if not tokenizer.get_vocab().keys() - tokenizer.all_special_tokens:
        raise ValueError(_no_tokenizer(path, key, "no text has a token in what transformers makes of it"))


def check_tokenizer_files(path: str, key: str = "model") -> None:
    """
    Before one is loaded, whose error would be of packages that convert tokenizers.

    Raises:
        `ValueError`: a local folder of a model, and of no adapter, has no file of a tokenizer.
    """
    if not Path(path).is_dir() or is_adapter(path):
        return
    if not any(any(Path(path).glob(pattern)) for pattern in _OF_TOKENIZERS):
        raise ValueError(_no_tokenizer(path, key, "there is no file of one in the folder"))


# What transformers' tokenizers are saved as; what is called otherwise has a tokenizer_config.json beside it.
_OF_TOKENIZERS = ("*tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json", "tokenization_*.py")


def _no_tokenizer(path: str, key: str, why: str) -> str:
    return (
        f"`{key}: {path}` has no tokenizer: {why}. Save one with it (`tokenizer.save_pretrained(folder)`), such "
        "as that of the model it was trained from."
    )


def check_token(tokenizer: PreTrainedTokenizerBase, eos_token: str) -> None:
    """
    Raises:
        `ValueError`: `eos_token` is not among the tokenizer's tokens.
    """
    if eos_token not in tokenizer.get_vocab():
        raise ValueError(
            f"`eos_token: {eos_token}` is not among the tokens of {tokenizer.name_or_path or 'the tokenizer'}. Name "
            "the one that ends a completion, such as the one that the chat template writes at the end of a turn."
        )


def _tokenizer_of(path: str, key: str, options: dict) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    check_tokenizer_files(path, key)
    with naming(path, key):
        if not is_adapter(path):
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            check_has_words(tokenizer, path, key)
            return tokenizer
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
    from peft import PeftModel

    if getattr(base, "quantization_method", None) is not None:
        raise ValueError(
            f"{path} is an adapter, and its base is loaded in few bits, into which it cannot be merged without loss. "
            "Merge it first (`AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)`) "
            "and start from the result, or go on with the adapter itself (`use_peft: false`)."
        )
    fit_to_tokenizer(base, path)
    model = PeftModel.from_pretrained(base, path)
    check_layers_adapted(model.active_peft_config, path)
    return model.merge_and_unload()
