"""What `trl reward` learned from preferences, read as it was trained: of text, and as a reward function for TRL."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from .._modes import in_mode
from ..text.context import context_length, over
from ..text.encode import as_row, prompt_ids, whole_ids, with_template_arguments
from ..text.messages import check_alike, check_no_images, checked, naming_row, said_and_read
from ..text.padding import padded_batch
from .adapters import (
    ActiveAdapters,
    check_layers_adapted,
    config_of,
    default_device,
    is_adapter,
    is_peft,
    naming,
    tokenizer_of,
)
from .arguments import check_batch_size, check_model_and_tokenizer
from .frozen_models import check_whole, load_classifier, whole_language_model, whole_weights


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_KIND = "ForSequenceClassification"


def check_one_label(path: str | PreTrainedModel | PeftModel, key: str) -> None:
    """
    Raises:
        `ValueError`: it is no reward model.
    """
    if not isinstance(path, str):
        config, kind = path.config, type(path.get_base_model() if is_peft(path) else path).__name__
        if not kind.endswith(_KIND) or config.num_labels != 1:
            raise ValueError(
                f"`{key}` is a {kind}, and a reward model is a ...{_KIND} with one label, as `RewardTrainer` has it."
            )
        return
    if is_adapter(path):
        from peft import PeftConfig

        if PeftConfig.from_pretrained(path).task_type != "SEQ_CLS":
            raise ValueError(
                f"`{key}: {path}` is an adapter of another kind of model. Train one with `trl reward` and "
                "`lora_task_type: SEQ_CLS`."
            )
        config_of(path, key)  # is its base there?
        return
    config = config_of(path, key)
    labels, kinds = config.num_labels, config.architectures or []
    if labels == 1 and not any(kind.endswith(_KIND) or kind.endswith("ForCausalLM") for kind in kinds or [_KIND]):
        raise ValueError(
            f"`{key}: {path}` is a {kinds[0]}, and a reward model is a ...{_KIND} with one label, as `trl reward` and "
            "TRL's trainers have it. Name one of these."
        )
    if labels != 1:
        raise ValueError(
            f"`{key}: {path}` has num_labels = {labels}, and a reward is one number. Name a model of `trl reward`; a "
            "language model is none yet."
        )


def load_scorer(path: str, dtype: str, key: str = "model", new_head: bool = False) -> PreTrainedModel:
    """
    A sequence-classification model with one label, an adapter merged into its base.

    Raises:
        `ValueError`: it has no head and `new_head` is not set, or other weights are missing.
    """
    if not is_adapter(path):
        return load_classifier(path, key, new_head, dtype=dtype)
    from peft import AutoPeftModelForSequenceClassification, PeftConfig
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    check_layers_adapted(PeftConfig.from_pretrained(path), f"`{key}: {path}`")
    saved = load_peft_weights(path, device="cpu").keys()
    if not new_head and not any(".score." in name for name in saved):
        raise ValueError(
            f"`{key}: {path}` is an adapter without the head of its reward model, which would be random. Train it "
            "with `lora_modules_to_save: [score]`, or `lora_task_type: SEQ_CLS`."
        )
    options = {"num_labels": 1, "dtype": dtype, "use_safetensors": True}
    with naming(path, key), whole_language_model(path, key, new_head=True):  # its head is the adapter's
        scorer = AutoPeftModelForSequenceClassification.from_pretrained(path, **options)
    expected = get_peft_model_state_dict(scorer, save_embedding_layers=False).keys()
    check_whole([name for name in expected - saved if not (new_head and ".score." in name)], path, key)
    scorer = scorer.merge_and_unload()
    try:  # an adapter has no config of its own, and was trained with its tokenizer's padding
        scorer.config.get_text_config().pad_token_id = tokenizer_of(path, key).pad_token_id
    except (OSError, ValueError):
        pass  # none was saved with it
    return scorer


class PreferenceReward:
    """
    The number that a reward model (a sequence-classification model with one label, as [`~trl.RewardTrainer`] trains
    it; InstructGPT, arXiv 2203.02155) gives a completion. It is read where it was trained: after the EOS token that
    ends a text, or at the end of what the chat template writes; where its padding is its EOS token, before that EOS.

    An instance is a reward function for [`~trl.GRPOTrainer`] and [`~trl.RLOOTrainer`]. Given a reward model by name,
    these leave out the EOS token of a completion to a text prompt (TRL 1.12 to 1.16): it is then read at a place that
    it was not trained on, and cannot tell a completion that ended from one that was cut. A model whose padding is its
    EOS cannot either way, since transformers takes that EOS for padding; a warning says so.

    Example:

    ```python
    >>> from trl_irl import PreferenceReward

    >>> reward = PreferenceReward("outputs/tldr/reward")
    >>> reward(["SUBREDDIT: r/tifu\\n\\nTL;DR:"], [" I ate a sock."])
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder, also as a `Path`, Hub id, adapter, or the model itself.
        batch_size (`int`, *optional*, defaults to `8`)
        dtype (`str`, *optional*, defaults to `"auto"`)
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Where none was saved with the model, or the model is not given by name.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template, the same that the trainer of the policy has under this name: TRL does not
            tell a reward function of them.
        name (`str`, *optional*, defaults to `"preference"`):
            What TRL's trainers log the reward under. Two rewards of one trainer need two names: under one, the logs
            mix them.

    Raises:
        `ValueError`: it is no reward model, it is not given by name and has no tokenizer, or `batch_size` is below 1.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        batch_size: int = 8,
        dtype: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template_kwargs: dict | None = None,
        name: str = "preference",
    ):
        check_batch_size(batch_size)
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        check_model_and_tokenizer(model, tokenizer)
        check_one_label(model, "model")
        self.chat_template_kwargs = chat_template_kwargs
        self.batch_size = batch_size
        self.tokenizer = tokenizer or tokenizer_of(model)
        if isinstance(model, str):
            with whole_weights():
                self.model = load_scorer(model, dtype).to(default_device()).eval()
        else:
            if is_peft(model):
                check_layers_adapted(model.active_peft_config, "PreferenceReward's `model`")
            self.model = model.get_base_model() if is_peft(model) else model  # the adapter's layers are in it
        self._adapters = [ActiveAdapters(model)] if is_peft(model) else []
        config = self.model.config.get_text_config()
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        # By its padding a model finds where each row of a batch ends: before an EOS that is the padding.
        if config.pad_token_id is None and isinstance(model, str) and pad != eos:
            config.pad_token_id = pad
        self._pad = config.pad_token_id
        if self._pad is None:
            self.batch_size = 1  # a row at a time needs none
        elif self._pad == eos:
            warnings.warn(
                f"The reward model's padding is its EOS token, {self.tokenizer.eos_token}: it was trained to read the "
                "token before that, and a text that ends in it gets the number of the same text when it is cut. Where "
                "the two should differ, train the reward model with a `pad_token` of its own.",
                stacklevel=2,
            )
        self._ids_are_own = True
        self.__name__ = name  # TRL's trainers log a reward function under its name

    def __call__(
        self,
        prompts: Sequence[str | list[dict] | Mapping],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **kwargs,
    ) -> list[float]:
        """One number per completion, as TRL's trainers ask for it; of the columns that they pass none is read."""
        check_no_images(kwargs, "The rows have")
        if "ended" in kwargs:
            warnings.warn("`ended` is not read: it may be a column. `score` takes it as an argument.", stacklevel=2)
        return self.score(prompts, completions, completion_ids)

    def score(
        self,
        prompts: Sequence[str | list[dict] | Mapping],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> list[float]:
        """
        One number per completion, in logits of the Bradley-Terry model: only differences mean something.

        Args:
            prompts (`Sequence[str]`, `Sequence[list[dict]]` or `Sequence[dict]`):
                Text or messages, or either with `tools` and `chat_template_kwargs`: see [`~text.encode.asked`].
            completions (`Sequence[str]` or `Sequence[list[dict]]`):
                Text or messages.
            completion_ids (`Sequence[Sequence[int]]`, *optional*):
                The completions as sampled. Those without an EOS (or another special) token at their end were cut, and
                are judged so, as far as the model can tell; without ids all are taken as finished. After text prompts
                the ids themselves are read, after messages what the chat template writes. Ids of another tokenizer
                than this model's are left aside, with a warning, and the text is judged.
            ended (`Sequence[bool]`, *optional*):
                Which completions ended by themselves, in the last of their ids if there are ids. The others were cut,
                and nothing is written behind them.
        """
        check_alike(prompts=prompts, completions=completions, completion_ids=completion_ids, ended=ended)
        prompts = with_template_arguments(prompts, self.chat_template_kwargs)
        if completion_ids is not None and self._are_own(completions, completion_ids, ended):
            if ended is None:
                ended = [self._ends_a_text(ids) for ids in completion_ids]
            if all(isinstance(prompt, str) for prompt in prompts):
                rows = zip(prompts, completion_ids, ended, strict=True)
                return self.of_ids([prompt_ids(self.tokenizer, x) + self._ended_as_own(*said) for x, *said in rows])
        rows = [
            {**as_row(prompt), "completion": checked(completion, "completion", f"Row {i}")}
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        ended = [True] * len(rows) if ended is None else ended
        return self.of_ids(self._whole_ids(rows, ended))

    def _ended_as_own(self, ids: Sequence[int], ended: bool) -> list[int]:
        """With this model's EOS at the end, where the policy ends in another token of the same vocabulary."""
        return [*ids[:-1], self.tokenizer.eos_token_id] if ended else list(ids)

    def _ends_a_text(self, ids: Sequence[int]) -> bool:
        """Whether the last token is a special one or the EOS."""
        last = self.tokenizer.added_tokens_decoder.get(ids[-1]) if len(ids) else None
        return (last is not None and last.special) or (len(ids) > 0 and ids[-1] == self.tokenizer.eos_token_id)

    def _whole_ids(self, rows: Sequence[dict], ended: Sequence[bool]) -> list[list[int]]:
        ids = []
        for i, (row, end) in enumerate(zip(rows, ended, strict=True)):
            with naming_row(f"Row {i}"):
                ids.append(whole_ids(self.tokenizer, row, end))
        return ids

    def _are_own(
        self,
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[Sequence[int]],
        ended: Sequence[bool] | None,
    ) -> bool:
        """Whether ids are of this model's tokenizer; if once they are not, they are never taken again."""
        if self._ids_are_own:
            known = [False] * len(completions) if ended is None else ended
            rows = zip(completions, completion_ids, known, strict=True)
            read = (said_and_read(self.tokenizer, *row) for row in rows)
            differing = next(((text, ours) for text, ours, is_own in read if not is_own), None)
            if differing is not None:
                self._ids_are_own = False
                warnings.warn(
                    f"The policy's tokens are not the reward model's: ids that the policy reads as "
                    f"{differing[0][:60]!r} are {differing[1][:60]!r} here. Completions are judged as text instead, "
                    "and in training all as finished: which of them were cut cannot be seen. A reward model with the "
                    "policy's tokenizer tells them apart.",
                    stacklevel=3,
                )
        return self._ids_are_own

    def of_ids(self, rows: Sequence[list[int]]) -> list[float]:
        """
        One number per row: token ids of prompt and completion, read at the last one.

        Raises:
            `ValueError`: a row is empty, does not fit into the model's context, or gets no finite number.
        """
        context = context_length(self.model.config)
        if empty := [i for i, row in enumerate(rows) if not row]:
            raise ValueError(f"Row {empty[0]} has no token, neither of a prompt nor of a completion: leave it out.")
        for i, length in over(context, dict(enumerate(map(len, rows)))).items():
            raise ValueError(
                f"Row {i} has {length} tokens, prompt and completion together, and the reward model's context is "
                f"{context}: it has never seen what comes later. Leave such rows out, or shorten them."
            )
        rewards: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            rewards += self._logits(rows[start : start + self.batch_size])
        for i, reward in enumerate(rewards):
            if not math.isfinite(reward):
                raise ValueError(
                    f"The reward model gives row {i} the reward {reward}. Its weights ({self.model.dtype}) are not "
                    "finite, or too large for their data type: load it with `dtype` bfloat16 or float32, or train it "
                    "anew."
                )
        return rewards

    @torch.no_grad()
    def _logits(self, rows: Sequence[list[int]]) -> list[float]:
        for adapters in self._adapters:
            adapters.check()
        batch = padded_batch(rows, self._pad or 0, device=self.model.device)
        with in_mode(self.model, training=False):  # a model that is given itself may be in training
            return self.model(**batch).logits[:, 0].float().tolist()

    def pair_accuracy(self, pairs: Sequence[dict]) -> float:
        """
        The share of pairs ([`of_pairs`]) whose `chosen` gets more, which `trl reward` logs as `eval_accuracy`.

        Raises:
            `ValueError`: there is no pair, or one that is none.
        """
        if not pairs:
            raise ValueError("There are no `pairs`.")
        return sum(a > b for a, b in zip(*self.of_pairs(pairs), strict=True)) / len(pairs)

    def of_pairs(self, pairs: Sequence[dict]) -> tuple[list[float], list[float]]:
        """
        What the two sides of preference pairs get.

        Args:
            pairs (`Sequence[dict]`):
                With `chosen` and `rejected`, text or messages, and `prompt` unless both have it in themselves; `tools`
                and `chat_template_kwargs` reach the chat template.

        Raises:
            `ValueError`: a side is missing, or is neither text nor messages.
        """
        for i, pair in enumerate(pairs):
            for key in ("chosen", "rejected"):
                checked(pair.get(key), key, f"Pair {i}")
        chosen, rejected = (
            self.of_ids(self._whole_ids([{**pair, "completion": pair[key]} for pair in pairs], [True] * len(pairs)))
            for key in ("chosen", "rejected")
        )
        return chosen, rejected
