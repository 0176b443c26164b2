"""Models that judge, loaded beside one that is trained."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .adapters import (
    base_of,
    check_layers_adapted,
    config_of,
    fit_to_tokenizer,
    is_adapter,
    merged,
    naming,
    tokenizer_of,
)


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_HEADS = ("score", "classifier")  # of sequence classification
_LOADED_ONCE = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # how accelerate's launcher tells transformers of its config's key


@contextmanager
def whole_weights() -> Iterator[None]:
    """
    Models loaded inside keep their whole weights on every rank. Once the arguments of a run under DeepSpeed ZeRO-3 are
    parsed, transformers shards every model that is loaded by name, and nobody gathers one that only judges; under
    FSDP2 it leaves what was not saved, such as a new head, to the first rank, and nobody sends it round.
    """
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref  # no public way to put it back
    deepspeed.unset_hf_deepspeed_config()
    sparing = os.environ.pop(_LOADED_ONCE, None)
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference
        if sparing is not None:
            os.environ[_LOADED_ONCE] = sparing


def load_language_model(path: str, key: str = "model", encoder_decoder: bool = False, **options) -> PreTrainedModel:
    """
    A language model by name, all of whose weights were saved.

    Args:
        path (`str`):
            Folder, Hub id or adapter.
        key (`str`, *optional*, defaults to `"model"`):
            What the user set, for the message of an error.
        encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether it may be an encoder-decoder.
        **options:
            Of `from_pretrained`.

    Raises:
        `ValueError`: it is a reward model, or weights are missing, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    check_language_model(path, key, encoder_decoder)
    kind = AutoModelForSeq2SeqLM if config_of(path, key).is_encoder_decoder else AutoModelForCausalLM
    if is_adapter(path):  # through PEFT, which knows adapters that transformers' own loader does not
        base = base_of(path, key)
        with naming(path, key), whole_language_model(base, key):
            model = kind.from_pretrained(base, use_safetensors=True, **options)
        return with_adapter(model, path, key)
    with naming(path, key):
        model, info = kind.from_pretrained(path, output_loading_info=True, use_safetensors=True, **options)
    # Where embeddings and head are tied, a reward model lacks nothing; its own head is left over.
    if any(name.split(".")[0] in _HEADS for name in info["unexpected_keys"]):
        raise ValueError(_reward_model_error(path, key))
    check_whole(info["missing_keys"], path, key)
    return model


def with_adapter(base: PreTrainedModel, path: str, key: str = "model") -> PreTrainedModel:
    """
    A model with an adapter's layers in it, all of whose weights were saved.

    Raises:
        `ValueError`: the adapter needs PEFT's wrapper ([`check_layers_adapted`]), or some of its weights are missing.
    """
    from peft import PeftConfig, PeftModel

    check_layers_adapted(PeftConfig.from_pretrained(path), f"`{key}: {path}`")
    fit_to_tokenizer(base, path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, path)
    for warning in said:
        text = str(warning.message)
        if text.startswith("Found missing adapter keys"):
            check_whole(re.findall(r"'([^']+)'", text), path, key)
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model.get_base_model()


def load_merged(path: str, key: str = "model", quantization_config=None, **options) -> PreTrainedModel:
    """
    [`load_language_model`], of an adapter its base with it merged in: a model to train. `options` may have the
    `revision` of what `path` names.

    Raises:
        `ValueError`: as there, and where an adapter cannot be merged.
    """
    if not is_adapter(path):
        return load_language_model(path, key, quantization_config=quantization_config, **options)
    check_language_model(path, key)
    options.pop("revision", None)  # the adapter's, and not its base's
    base = load_language_model(base_of(path, key), key, quantization_config=quantization_config, **options)
    return merged(base, path)


def check_language_model(path: str | PreTrainedModel, key: str, encoder_decoder: bool = False, **options) -> None:
    """
    Before anything is loaded: is it decoder-only (unless it may be an encoder-decoder), and no reward model, by what
    was saved with its weights? `options` are of `AutoConfig.from_pretrained`, such as `trust_remote_code`. Of a model
    that is loaded already only the first is asked.

    Raises:
        `ValueError`
    """
    from ..soft_q.own_forward import check_decoder_only

    named = isinstance(path, str)
    config = config_of(path, key, **options) if named else path.config
    if not encoder_decoder:
        check_decoder_only(config, f"`{key}: {path}`" if named else type(path).__name__)
    if not named:
        return
    if is_adapter(path):
        from peft import PeftConfig

        is_reward_model = PeftConfig.from_pretrained(path).task_type == "SEQ_CLS"
    else:
        is_reward_model = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    if is_reward_model:
        raise ValueError(_reward_model_error(path, key))


class _LoadReports(logging.Handler):
    """Raises where transformers only reports that it has drawn weights, since they are not in the file."""

    def __init__(self, path: str, key: str, new_head: bool = False):
        super().__init__()
        self.path, self.key, self.new_head = path, key, new_head

    def emit(self, record: logging.LogRecord) -> None:
        report = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())
        if not re.search(rf"LOAD REPORT from: {re.escape(self.path)}\s*$", report, re.MULTILINE):
            return
        reported = re.findall(r"^(\S+)\s*\|\s*(MISSING|UNEXPECTED)\b", report, re.MULTILINE)
        if self.new_head:
            reported = [(name, what) for name, what in reported if name.split(".")[0] not in _HEADS]
        elif any(what == "UNEXPECTED" and name.split(".")[0] in _HEADS for name, what in reported):
            raise ValueError(_reward_model_error(self.path, self.key))
        check_whole([name for name, what in reported if what == "MISSING"], self.path, self.key)


@contextmanager
def whole_language_model(path: str | PreTrainedModel, key: str = "model", new_head: bool = False) -> Iterator[None]:
    """
    Around what loads a language model by name on the way, such as a trainer's `__init__`: a reward model, or one
    without some of its weights, is an error, as in [`load_language_model`]. Of an adapter it is the base's weights
    that are looked at. A model that is loaded already passes. With `new_head` it is a classifier's backbone.

    Raises:
        `ValueError`
    """
    if not isinstance(path, str):
        yield
        return
    base = base_of(path, key) if is_adapter(path) else path
    logger, handler = logging.getLogger("transformers.modeling_utils"), _LoadReports(base, key, new_head)
    level, passes_on = logger.level, logger.propagate
    logger.addHandler(handler)
    if not logger.isEnabledFor(logging.WARNING):  # where transformers is told to be quiet, the report is for us alone
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = passes_on


def _is_no_report(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "LOAD REPORT" not in text or "MISMATCH" in text  # which transformers' own error points to


def load_classifier(path: str, key: str = "model", new_head: bool = False, **options) -> PreTrainedModel:
    """
    A sequence-classification model with one label by name, all of whose weights were saved.

    Args:
        path (`str`):
            Folder or Hub id, of no adapter.
        key (`str`, *optional*, defaults to `"model"`):
            What the user set, for the message of an error.
        new_head (`bool`, *optional*, defaults to `False`):
            Whether it may be a language model, which gets a new head.
        **options:
            Of `from_pretrained`.

    Raises:
        `ValueError`: weights are missing, which transformers would draw at random.
    """
    from transformers import AutoModelForSequenceClassification

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)  # of what is missing, which is looked at below
    try:
        with naming(path, key):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, output_loading_info=True, use_safetensors=True, **options
            )
    finally:
        logger.removeFilter(_is_no_report)
    missing = info["missing_keys"]
    check_whole([name for name in missing if not (new_head and name.startswith("score."))], path, key)
    return model


def _reward_model_error(path: str, key: str) -> str:
    return (
        f"`{key}: {path}` is a reward model (a model with a head of one number, as `trl reward` trains it), and a "
        "language model is needed here: its output head would be random, or not be what was trained. Name the model "
        "that it was trained from, or use it as `reward_model_path`."
    )


def check_whole(missing: Iterable[str], path: str, key: str) -> None:
    """
    Raises:
        `ValueError`: there is a name among `missing`, of weights that were not saved.
    """
    if missing:
        first, *more = sorted(missing)
        rest = f" and {len(more)} more" if more else ""
        raise ValueError(
            f"`{key}: {path}` has no weights for {first}{rest}: they would be random numbers. It is a model of "
            "another kind, or was not saved whole. Name a model that was trained for this, or save it again."
        )


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase, path: str, key: str, of: str = "policy", all_of_them: bool = True
) -> None:
    """
    Raises:
        `ValueError`: the tokenizer at `path` is another one than that of the model called `of`; without `all_of_them`
            each may have tokens that the other does not have, such as those of a chat template.
    """
    try:
        other = tokenizer_of(path, key).get_vocab()
    except (OSError, ValueError):
        return  # none was saved with it
    own = tokenizer.get_vocab()
    differing = [token for token in own.keys() & other.keys() if own[token] != other[token]]
    if not all_of_them and tokenizer.pad_token != tokenizer.eos_token:  # a padding alone is never scored
        differing = [token for token in differing if token != tokenizer.pad_token]
    missing = [token for token in own.keys() ^ other.keys() if token != tokenizer.pad_token]
    if differing or (missing and (all_of_them or not own.keys() & other.keys())):
        token = (differing or missing)[0]
        raise ValueError(
            f"`{key}: {path}` has another tokenizer than the {of}: {token!r} is {other.get(token)} there and "
            f"{own.get(token)} here. It is given the {of}'s own token ids. Take one that was trained from a model "
            f"with the {of}'s tokenizer."
        )
