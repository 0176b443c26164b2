"""What `trl reward` learned from preferences, read as it was trained: of text, and as a reward function for TRL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import AutoPeftModelForSequenceClassification, PeftConfig
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .held_out import completion_text, encode, prompt_ids
from .loading import whole_weights


def check_one_label(path: str, key: str) -> None:
    """
    Raises:
        `ValueError`: it is no reward model.
    """
    if (Path(path) / "adapter_config.json").is_file():
        if PeftConfig.from_pretrained(path).task_type != "SEQ_CLS":
            raise ValueError(
                f"`{key}: {path}` is an adapter of another kind of model. Train one with `trl reward` and "
                "`lora_task_type: SEQ_CLS`."
            )
        return
    labels = AutoConfig.from_pretrained(path).num_labels
    if labels != 1:
        raise ValueError(
            f"`{key}: {path}` has num_labels = {labels}, and a reward is one number. Name a model of `trl reward`; a "
            "language model is none yet."
        )


def load_scorer(path: str, dtype: str) -> PreTrainedModel:
    """A sequence-classification model with one label, an adapter merged into its base."""
    options = {"num_labels": 1, "dtype": dtype, "use_safetensors": True}
    if not (Path(path) / "adapter_config.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(path, **options)
    return AutoPeftModelForSequenceClassification.from_pretrained(path, **options).merge_and_unload()


class PreferenceReward:
    """
    The number that a reward model (a sequence-classification model with one label, as [`~trl.RewardTrainer`] trains
    it; InstructGPT, arXiv 2203.02155) gives a completion. It is read where it was trained: after the EOS token that
    ends a text, or at the end of what the chat template writes.

    An instance is a reward function for [`~trl.GRPOTrainer`] and [`~trl.RLOOTrainer`]. Given a reward model by name,
    these leave out the EOS token of a completion to a text prompt (TRL 1.12 to 1.16): it is then read at a place that
    it was not trained on, and cannot tell a completion that ended from one that was cut.

    Example:

    ```python
    >>> from trl_irl import PreferenceReward

    >>> reward = PreferenceReward("outputs/tldr/reward")
    >>> reward(["SUBREDDIT: r/tifu\\n\\nTL;DR:"], [" I ate a sock."])
    ```

    Args:
        model (`str`):
            Folder, Hub id or adapter.
        batch_size (`int`, *optional*, defaults to `8`)
        dtype (`str`, *optional*, defaults to `"auto"`)
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Where none was saved with the model.

    Raises:
        `ValueError`: it is no reward model.
    """

    def __init__(
        self,
        model: str,
        batch_size: int = 8,
        dtype: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        check_one_label(model, "model")
        self.batch_size = batch_size
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        with whole_weights():
            self.model = load_scorer(model, dtype).eval()
        if self.model.config.pad_token_id is None:  # by it the model finds where each row of a batch ends
            self.model.config.pad_token_id = self.tokenizer.eos_token_id
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.__name__ = "preference"  # TRL's trainers log a reward function under its name

    def __call__(
        self,
        prompts: Sequence[str | list[dict]],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **kwargs,
    ) -> list[float]:
        """
        One number a completion, in logits of the Bradley-Terry model: only differences mean something.

        Args:
            prompts (`Sequence[str]` or `Sequence[list[dict]]`):
                Text or messages.
            completions (`Sequence[str]` or `Sequence[list[dict]]`):
                Text or messages.
            completion_ids (`Sequence[Sequence[int]]`, *optional*):
                After text prompts: the completions as sampled, in this model's tokens. Those without an EOS token at
                their end were cut, and are judged so; without ids all are taken as finished.
        """
        rows = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if completion_ids is not None and isinstance(prompt, str):
                rows.append(prompt_ids(self.tokenizer, prompt) + list(completion_ids[i]))
            else:
                row = {"prompt": prompt, "completion": completion_text(completion)}
                rows.append(encode(self.tokenizer, row)[0])
        return self.of_ids(rows)

    def of_ids(self, rows: Sequence[list[int]]) -> list[float]:
        """One number a row: token ids of prompt and completion, read at the last one."""
        found: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            found += self._logits(rows[start : start + self.batch_size])
        return found

    @torch.no_grad()
    def _logits(self, rows: Sequence[list[int]]) -> list[float]:
        width = max(map(len, rows))
        pad, device = self.model.config.pad_token_id, self.model.device
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        return self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()

    def pair_accuracy(self, pairs: Sequence[dict]) -> float:
        """
        The share of pairs whose `chosen` gets more than `rejected`, as `trl reward` logs it as `eval_accuracy`.

        Args:
            pairs (`Sequence[dict]`):
                With `prompt`, `chosen` and `rejected`, text or messages.
        """
        prompts = [pair["prompt"] for pair in pairs]
        chosen, rejected = (self(prompts, [pair[key] for pair in pairs]) for key in ("chosen", "rejected"))
        return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)
