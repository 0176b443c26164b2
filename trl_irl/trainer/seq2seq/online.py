"""Online IRL for encoder-decoder models: the decoder's own completions beside the demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from ...text.context import context_length
from ..online_irl.config import OnlineIRLConfig
from ..online_irl.online_training import OnlineTraining
from ..online_irl.policy_samples import PolicySample, joined
from ..online_irl.trainer import check_objective, check_prompts
from ..runtime.models import default_output_dir
from .config import Seq2SeqIRLConfig
from .trainer import Seq2SeqIRLTrainer


@dataclass
class Seq2SeqOnlineIRLConfig(OnlineIRLConfig, Seq2SeqIRLConfig):
    r"""
    Configuration of [`Seq2SeqOnlineIRLTrainer`]: [`OnlineIRLConfig`] with what [`Seq2SeqIRLConfig`] says of prompts
    and completions. vLLM has no encoder-decoder models; `use_vllm` is refused.

    Args:
        max_completion_length (`int`, *optional*, defaults to `256`):
            Longest completion in tokens, of the demonstrations and of the policy.
    """

    max_completion_length: int = field(
        default=256, metadata={"help": "Longest completion in tokens, of the demonstrations and of the policy."}
    )

    def check_sides(self) -> None:
        super().check_sides()
        if self.use_vllm:
            raise ValueError("`use_vllm=True`, and vLLM has no encoder-decoder models. Set it to False.")


class Seq2SeqOnlineIRLTrainer(OnlineTraining, Seq2SeqIRLTrainer):
    """
    [`OnlineIRLTrainer`] for encoder-decoder models, on [`Seq2SeqIRLTrainer`]: see both. Completions are sampled by
    `generate`.

    Args:
        model, args and so on: as for [`Seq2SeqIRLTrainer`], `args` being a [`Seq2SeqOnlineIRLConfig`] (if `None`, the
            defaults, with `output_dir` named after the model).

    Raises:
        `TypeError`: `args` is not a [`Seq2SeqOnlineIRLConfig`].
        `ValueError`: the data has no prompts.
        `GenerationError`: for 20 generations no completion ended, or all were empty.
    """

    _tag_names = ["trl", "online-irl", "seq2seq"]
    _name = "online IRL (online IQ-Learn)"

    def __init__(
        self,
        model,
        args: Seq2SeqOnlineIRLConfig | None = None,
        data_collator=None,
        train_dataset=None,
        *others,
        **kwargs,
    ):
        if args is None:
            args = Seq2SeqOnlineIRLConfig(default_output_dir(model, "online-IRL"))
        if not isinstance(args, Seq2SeqOnlineIRLConfig):
            raise TypeError(f"`args` is a `{type(args).__name__}`. Build a `Seq2SeqOnlineIRLConfig`.")
        check_prompts(train_dataset)
        check_objective(kwargs.get("objective"))
        super().__init__(model, args, data_collator, train_dataset, *others, **kwargs)
        self._begin_online()

    def _check_room(self) -> None:
        context = context_length(self._causal_lm.config)
        if isinstance(self.train_dataset, Dataset) and context is not None:
            if self.args.max_completion_length > context:
                raise ValueError(
                    f"`max_completion_length={self.args.max_completion_length}` does not fit into the decoder's "
                    f"context of {context} tokens. Lower it."
                )

    def _check_streamed(self, lengths: list[int]) -> None:
        pass  # rows are checked as they are read, and the encoder has a context of its own

    def _prompts_of(self, batch: dict[str, Any]) -> list[list[int]]:
        rows = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True)
        return [ids[mask].tolist() for ids, mask, labels in rows if (labels != -100).any()]

    def _with_policy_rows(self, batch: dict[str, Any], samples: list[PolicySample]) -> dict[str, Any]:
        rows = [one.prompt for one in samples], [one.completion for one in samples]
        return joined(batch, *rows, self._tokenizer.pad_token_id, self.args.pad_to_multiple_of)
