"""Models to sample from: loaded when they are first asked, and what fits into their context known before."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from ..tasks.columns import format_row
from ..tasks.rows import BadRows
from ..text.messages import is_messages


class Stopwatch:
    """Adds up the seconds spent in its `with` blocks."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        self.seconds += time.perf_counter() - self._start


# Of what a folder has, the files that decide what a model says.
_DECISIVE = (
    "*.safetensors",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "*.model",
    "*.jinja",
)


def weights_of(path: str) -> list:
    """
    What tells a model's weights, tokenizer and settings from later ones under the same name, of an adapter its base's
    too: its files' sizes and times, of one on the Hub the commit that was looked at last.
    """
    if not path:
        return []
    base, adapter = base_and_adapter(path)
    if Path(path).is_dir():
        files = sorted({file for pattern in _DECISIVE for file in Path(path).glob(pattern)})
        found = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    else:
        found = [_commit_of(path)]
    return found + ([] if adapter is None else [[base, weights_of(base)]])


def _commit_of(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("adapter_config.json", "config.json"):
        found = try_to_load_from_cache(name, file)  # .../snapshots/COMMIT/config.json
        if isinstance(found, str):
            return Path(found).parent.name
    return None


def context_of(path: str) -> int | None:
    """The number of tokens that fit into a model's context, if it says one, of an adapter its base's."""
    from ..rewards.adapters import config_of
    from ..text.context import context_length

    return context_length(config_of(path))


class LoadedModel:
    """
    A model to sample from, loaded when it is first asked.

    Args:
        model (`str` or `tuple`):
            Folder, Hub id or adapter; or the model itself and its tokenizer.
        dtype (`str`, *optional*, defaults to `"auto"`)
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated together.
        backend (`str`, *optional*, defaults to `"transformers"`):
            Or `"vllm"`, for a model by name.
        eos_token (`str`, *optional*):
            What ends a completion, beside what the model's generation config names.
        key (`str`, *optional*, defaults to `"models"`):
            What the user set, for the message of an error.
    """

    def __init__(
        self,
        model: str | tuple,
        dtype: str = "auto",
        batch_size: int = 64,
        backend: str = "transformers",
        eos_token: str | None = None,
        key: str = "models",
    ):
        if not isinstance(model, str) and not (isinstance(model, tuple | list) and len(model) == 2):
            raise ValueError(
                f"`{key}` has a {type(model).__name__}. Give a folder, a Hub id, or a pair: a model and its tokenizer."
            )
        self.path = model if isinstance(model, str) else None
        self._given = None if isinstance(model, str) else model
        if self._given is not None and backend == "vllm":
            raise ValueError("`backend: vllm` loads a model by its name: give a folder or a Hub id.")
        self.dtype, self.batch_size, self.backend, self.eos_token = dtype, batch_size, backend, eos_token
        self.key = key
        self.borrowed_template: str | dict | None = None
        self._engine = None

    @cached_property
    def tokenizer(self):
        """The model's, with a padding token; one that was given stays what it is for whoever gave it."""
        from ..rewards.adapters import check_token, tokenizer_of

        if self._given is None:
            tokenizer = tokenizer_of(self.path, self.key, self.eos_token)
        else:
            tokenizer = self._given[1]
            if self.eos_token is not None:
                check_token(tokenizer, self.eos_token)
                tokenizer = copy.deepcopy(tokenizer)
                tokenizer.eos_token = self.eos_token
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def borrow_template(self, other: LoadedModel) -> None:
        """From now on messages are written by the other model's chat template."""
        self.tokenizer = copy.deepcopy(self.tokenizer)  # it stays what it is for whoever gave it
        self.tokenizer.chat_template = self.borrowed_template = other.tokenizer.chat_template

    @cached_property
    def model(self):
        """The model itself, in evaluation."""
        import torch

        from ..rewards.frozen_models import load_language_model

        if self._given is not None:
            return self._given[0]
        self._unload_engine()  # which may have most of the memory
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_language_model(self.path, self.key, encoder_decoder=True, dtype=self.dtype).to(device).eval()

    def release(self) -> None:
        """Forget the model, if it was loaded here; asked again, it is loaded again."""
        self.__dict__.pop("model", None)
        self._unload_engine()

    def _unload_engine(self) -> None:
        if self._engine is not None:
            from ..text.vllm_sampling import unload

            engine, self._engine = self._engine, None
            unload(engine)

    @property
    def apart(self) -> bool:
        """Whether it reads the prompt and writes the completion, known before it is loaded."""
        from ..rewards.adapters import config_of

        config = config_of(self.path) if self._given is None else self._given[0].config
        return config.is_encoder_decoder

    @property
    def context(self) -> int | None:
        """The number of tokens that fit into its context, known before it is loaded."""
        from ..text.context import context_length

        return context_of(self.path) if self._given is None else context_length(self._given[0].config)

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end a completion, known before it is loaded."""
        from ..text.stop_tokens import stop_token_ids

        return stop_token_ids(self.path if self._given is None else self._given[0], self.tokenizer)

    def sample(self, prompts: list, description: str, **options) -> list:
        """See [`~text.sampling.sample`]."""
        from ..text import sampling, vllm_sampling

        if self.backend == "vllm":
            base, adapter = base_and_adapter(self.path)
            if self._engine is None:
                self._engine = vllm_sampling.load(base, self.dtype, adapter)
            options |= {"stop_tokens": self.stop_tokens, "adapter": adapter}
            return vllm_sampling.sample(self._engine, self.tokenizer, prompts, **options)
        options |= {"batch_size": self.batch_size, "description": description}
        return sampling.sample(self.model, self.tokenizer, prompts, **options)


def lend_templates(models: Mapping[str, LoadedModel], rows: Iterable[Mapping], settings) -> list[str]:
    """
    Where rows are messages, a model without a chat template, such as the base of one that was trained on chats, gets
    that of a model whose tokenizer has all of its tokens. Returns a note for each.

    Raises:
        `ValueError`: there is none.
    """
    try:
        first = format_row(next(iter(rows)), settings.task_data(needs_target=False), reference=False)
    except (StopIteration, ValueError):  # there is none, or it cannot be read, and whoever reads it says so
        return []
    if not is_messages(first["prompt"]):
        return []
    lenders = {name: one for name, one in models.items() if one.tokenizer.chat_template is not None}
    notes = []
    for name, one in models.items():
        if name in lenders or one.apart:
            continue
        tokens = one.tokenizer.get_vocab().items()
        lender = next((x for x in lenders if tokens <= lenders[x].tokenizer.get_vocab().items()), None)
        if lender is None:
            raise ValueError(
                f"The rows are messages, and the tokenizer of {name} has no chat template to write them with, nor has "
                "another model with its tokens, whose template it could be asked with. Leave it out, or name a folder "
                "with this model and a tokenizer that has one."
            )
        one.borrow_template(lenders[lender])
        notes.append(f"{name} has no chat template, and was asked with {lender}'s.")
    return notes


def check_lengths(
    name: str, model: LoadedModel, rows: dict[int, dict], max_new_tokens: int, references: bool, bad: BadRows
) -> None:
    """
    Whether everything that is asked of a model fits into its context, before it is loaded.

    Args:
        name (`str`):
            What the model is called.
        model ([`LoadedModel`])
        rows (`dict[int, dict]`):
            By number, with `prompt` and, for `references`, `completion`.
        max_new_tokens (`int`):
            Longest completion.
        references (`bool`):
            Whether it is asked for the likelihood of each row's own completion.
        bad ([`~tasks.rows.BadRows`]):
            What becomes of rows that do not fit, or that the model's chat template cannot write.

    Raises:
        `ValueError`: a prompt leaves no room for `max_new_tokens`, or a reference does not fit.
    """
    from ..text.context import over
    from ..text.encode import asked, check_eos, encode_row, prompt_ids
    from ..text.messages import naming_row
    from ..text.sampling import too_long_for
    from ..text.stop_tokens import why_nothing_ends

    tokenizer, context, apart = model.tokenizer, model.context, model.apart
    if references:
        check_eos(tokenizer)
    prompts, whole = {}, {}
    for i, row in rows.items():
        where = f"Row {i} of {bad.of}"
        with bad.reading(i), naming_row(where):
            prompts[i] = len(prompt_ids(tokenizer, asked(row), apart))
            if max_new_tokens and not prompts[i]:
                raise ValueError(f"{where} has an empty prompt, without one token for a model to go on from.")
            if references:
                encoded = encode_row(tokenizer, row, apart=apart)
                whole[i] = encoded.needs(apart)
    if max_new_tokens and not apart:
        first = [row for i, row in rows.items() if i not in bad.left_out][:16]
        if warning := why_nothing_ends(tokenizer, first, model.stop_tokens):
            warnings.warn(warning)
    of_prompts = too_long_for(context, prompts, max_new_tokens, apart=apart)
    of_references = {
        i: f"{len(rows)} references (the first is number {i}, of {length} tokens with its prompt) are longer than the "
        f"context of {name}, {context} tokens, and `nll`, `td_loss` and `reward_analysis` read them whole. Leave "
        "those rows out (`trl-irl prepare --drop_too_long true`), or name `metrics` without "
        "`nll` and `td_loss`."
        for i, length in over(context, whole).items()
    }
    for too_long in (of_prompts, of_references):
        if too_long and bad.on_bad_row != "skip":
            raise ValueError(
                f"{len(too_long)} of {next(iter(too_long.values()))} `on_bad_row: skip` leaves such rows out by "
                "itself."
            )
        for i, message in too_long.items():
            bad.left_out.setdefault(i, f"1 of {message}")


def base_and_adapter(path: str) -> tuple[str, str | None]:
    """What vLLM loads: the model itself, or an adapter's base and the adapter."""
    from ..rewards.adapters import base_of, is_adapter

    return (base_of(path), path) if is_adapter(path) else (path, None)
