"""The models that a command names, by what it calls them: loaded when they are first asked, and told apart."""

import time
import warnings
from pathlib import Path

from ..tasks.rows import BadRows


def named(models: list[str], key: str) -> dict[str, str]:
    """
    Path or Hub id of each model, by its name in the report: `name=path`, or the last part of the path.

    Raises:
        `ValueError`: two have the same name.
    """
    found = {}
    for model in models:
        name, has_name, path = model.rpartition("=")
        name = name if has_name else Path(path).name
        if name in found:
            raise ValueError(f"`{key}` has two called {name}. Name them: `first=path second=path`.")
        found[name] = path
    return found


def weights_of(path: str) -> list:
    """What tells a folder's weights from later ones under the same name: their files' sizes and times."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


class Stopwatch:
    """Adds up the seconds spent in its `with` blocks."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        self.seconds += time.perf_counter() - self._start


class LoadedModel:
    """
    A model to sample from, loaded when it is first asked.

    Args:
        path (`str`):
            Folder, Hub id or adapter.
        dtype (`str`, *optional*, defaults to `"auto"`)
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated together.
        backend (`str`, *optional*, defaults to `"transformers"`):
            Or `"vllm"`.
        eos_token (`str`, *optional*):
            What ends a completion, beside what the model's generation config names.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        batch_size: int = 64,
        backend: str = "transformers",
        eos_token: str | None = None,
    ):
        self.path, self.dtype, self.batch_size, self.backend = path, dtype, batch_size, backend
        self.eos_token = eos_token
        self._transformers = self._vllm = None

    def transformers(self):
        """The model, in evaluation, and its tokenizer."""
        import torch

        from ..rewards.adapters import tokenizer_of
        from ..rewards.loading import load_language_model

        if self._transformers is None:
            tokenizer = tokenizer_of(self.path, "models", self.eos_token)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = load_language_model(self.path, "models", dtype=self.dtype)
            self._transformers = model.to(device).eval(), tokenizer
        return self._transformers

    def sample(self, prompts: list, description: str, **options) -> list:
        """See [`~evaluation.sampling.sample`]."""
        from ..evaluation import sampling, vllm_sampling

        if self.backend == "vllm":
            base, adapter = base_and_adapter(self.path)
            if self._vllm is None:
                self._vllm = vllm_sampling.load(base, self.dtype, adapter)
            return vllm_sampling.sample(self._vllm, prompts, adapter=adapter, **options)
        model, tokenizer = self.transformers()
        options |= {"batch_size": self.batch_size, "description": description}
        return sampling.sample(model, tokenizer, prompts, **options)


def check_lengths(
    name: str,
    path: str,
    rows: dict[int, dict],
    max_new_tokens: int,
    references: bool,
    bad: BadRows,
    eos_token: str | None = None,
) -> None:
    """
    Whether everything that is asked of a model fits into its context, before it is loaded.

    Args:
        name (`str`), path (`str`):
            What the model is called, and where it is.
        rows (`dict[int, dict]`):
            By number, with `prompt` and, for `references`, `completion`.
        max_new_tokens (`int`):
            Longest completion.
        references (`bool`):
            Whether it is asked for the likelihood of each row's own completion.
        bad ([`~tasks.rows.BadRows`]):
            What becomes of rows that do not fit, or that the model's chat template cannot write.
        eos_token (`str`, *optional*):
            See [`LoadedModel`].

    Raises:
        `ValueError`: a prompt leaves no room for `max_new_tokens`, or a reference does not fit.
    """
    from ..evaluation.sampling import too_long_for
    from ..rewards.adapters import tokenizer_of
    from ..text.encode import asked, check_eos, encode_row, prompt_ids
    from ..text.messages import naming_row
    from ..text.stop_tokens import stop_token_ids, why_nothing_ends

    tokenizer, context = tokenizer_of(path, "models", eos_token), context_of(path)
    if references:
        check_eos(tokenizer)
    prompts, whole = {}, {}
    for i, row in rows.items():
        where = f"Row {i} of {bad.of}"
        with bad.reading(i), naming_row(where):
            prompts[i] = len(prompt_ids(tokenizer, asked(row)))
            if max_new_tokens and not prompts[i]:
                raise ValueError(f"{where} has an empty prompt, without one token for a model to go on from.")
            if references:
                encoded = encode_row(tokenizer, row)
                whole[i] = len(encoded.prompt) + len(encoded.completion)
    if max_new_tokens:
        first = [row for i, row in rows.items() if i not in bad.found][:16]
        if told := why_nothing_ends(tokenizer, first, stop_token_ids(path, tokenizer)):
            warnings.warn(told)
    if context is None:
        return
    of_prompts = too_long_for(context, prompts, max_new_tokens)
    of_references = {
        i: f"{len(rows)} references (the first is number {i}, of {length} tokens with its prompt) are longer than the "
        f"context of {name}, {context} tokens, and `nll`, `td_loss` and `reward_analysis` read them whole. Leave "
        "those rows out (`trl-irl prepare --drop_too_long true`), or name `metrics` without "
        "`nll` and `td_loss`."
        for i, length in whole.items()
        if length > context
    }
    for found in (of_prompts, of_references):
        if found and bad.on_bad_row != "skip":
            raise ValueError(
                f"{len(found)} of {next(iter(found.values()))} `on_bad_row: skip` leaves such rows out by itself."
            )
        for i, message in found.items():
            bad.found.setdefault(i, f"1 of {message}")


def context_of(path: str) -> int | None:
    """The number of tokens that fit into a model's context, if it says one, of an adapter its base's."""
    from ..rewards.adapters import config_of
    from ..text.context import context_length

    return context_length(config_of(path))


def base_and_adapter(path: str) -> tuple[str, str | None]:
    """What vLLM loads: the model itself, or an adapter's base and the adapter."""
    from ..rewards.adapters import base_of, is_adapter

    return (base_of(path), path) if is_adapter(path) else (path, None)
