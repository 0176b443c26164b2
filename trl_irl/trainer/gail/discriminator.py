"""The learned discriminator of adversarial imitation: is this completion the expert's, or the policy's?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..._modes import in_mode
from ...rewards.adapters import base_of, config_of, is_adapter
from ...rewards.frozen_models import load_classifier, whole_weights
from ...soft_q.own_forward import check_decoder_only
from ...text.padding import padded_batch


REWARD_FORMS = ("airl", "gail")
LEVELS = ("sequence", "token")

# Token ids of a prompt and of one completion of it.
Row = tuple[Sequence[int], Sequence[int]]


class Discriminator:
    """
    A sequence-classification model with one label that reads token ids of a prompt and a completion. Its output is
    the logit of D, the probability that the completion is the expert's: **above 0 is the expert, below 0 the policy**.
    GAIL (arXiv 1606.03476) has it the other way round and calls D what we call 1 - D; AIRL (arXiv 1710.11248) has it
    as here.

    It is read where each row ends, and not where `forward` of the model reads it, which is before the EOS tokens where
    these are the padding too: a completion that ended could not be told from one that was cut.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            With a causal backbone and a head called `score`, as decoders have in transformers.
        level (`str`, *optional*, defaults to `"sequence"`):
            `"sequence"` judges a completion once, after its last token. `"token"` judges what stands there after each
            token (the state and the action); the loss and the reward of a completion are means over them.

    Raises:
        `ValueError`: the model is of another kind.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, level: str = "sequence"):
        if level not in LEVELS:
            raise ValueError(f"The discriminator's level is {level!r}; there are {', '.join(LEVELS)}.")
        self.model, self.level = model, level
        self._classifier = model.get_base_model() if isinstance(model, PeftModel) else model
        self._backbone = getattr(self._classifier, self._classifier.base_model_prefix)
        self._score = self._head()

    def _head(self) -> torch.nn.Module:
        score = getattr(self._classifier, "score", None)
        labels = getattr(score, "out_features", None)
        if labels is None and score is not None:  # trained whole beside an adapter
            labels = getattr(getattr(score, "original_module", None), "out_features", None)
        if labels != 1:
            raise ValueError(
                f"The discriminator is a {type(self._classifier).__name__}, without a head `score` of one label. Take "
                "a decoder (Llama, Qwen, GPT-2 and so on) as AutoModelForSequenceClassification with num_labels=1."
            )
        return score

    @classmethod
    def load(cls, path: str, level: str = "sequence", lora_r: int = 0, dtype: str = "float32") -> Discriminator:
        """
        A discriminator on a trained backbone, with a new head unless a head was saved with it.

        Args:
            path (`str`):
                Folder or Hub id of a decoder. Of an adapter, its base is taken.
            level (`str`, *optional*, defaults to `"sequence"`)
            lora_r (`int`, *optional*, defaults to `0`):
                Rank of an adapter on all linear layers, trained with the head; 0 trains all weights.
            dtype (`str`, *optional*, defaults to `"float32"`)
        """
        if is_adapter(path):
            path = base_of(path, "discriminator_model")
        check_decoder_only(config_of(path, "discriminator_model"), f"`discriminator_model: {path}`")
        with whole_weights():
            model = load_classifier(path, "discriminator_model", new_head=True, dtype=dtype)
        if lora_r:
            config = LoraConfig(
                task_type=TaskType.SEQ_CLS,
                r=lora_r,
                lora_alpha=2 * lora_r,
                target_modules="all-linear",
                modules_to_save=["score"],
            )
            model = get_peft_model(model, config)
        return cls(model, level)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def active(self) -> AbstractContextManager:
        """Around everything that runs the model, backward included."""
        return nullcontext()

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Write it to a folder as a reward model (an adapter, with `lora_r`). `forward` reads it at the last token that
        is not padding: where it was trained, unless the tokenizer pads with EOS.
        """
        self._classifier.config.pad_token_id = tokenizer.pad_token_id
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def logits(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The logits of D, with gradient.

        Args:
            rows (`Sequence[Row]`):
                None without a completion token.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: logits, float32, and which of them count, bool, both of the shape
            `(rows, longest completion)`. With the level "sequence" only each row's last counts.
        """
        device = self._classifier.device
        longest = max(len(completion) for _, completion in rows)
        # Any id will do as padding: it is masked, and follows what is read.
        batch = padded_batch([[*prompt, *completion] for prompt, completion in rows], 0, device=device)
        hidden = self._backbone(**batch, use_cache=False).last_hidden_state

        starts = torch.tensor([len(prompt) for prompt, _ in rows], device=device)
        lengths = torch.tensor([len(completion) for _, completion in rows], device=device)
        offsets = torch.arange(longest, device=device)
        places = (starts[:, None] + offsets).clamp(max=hidden.size(1) - 1)
        hidden = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.size(-1)))
        last = lengths[:, None] - 1
        counts = offsets == last if self.level == "sequence" else offsets <= last
        # Outside autocast (DeepSpeed, a base in bfloat16) the states may be of another dtype than the head.
        head_dtype = next(self._score.parameters()).dtype
        return self._score(hidden.to(head_dtype))[..., 0].float(), counts

    def losses(self, rows: Sequence[Row], is_expert: Sequence[bool], label_smoothing: float = 0.0):
        """
        The binary cross-entropy of each row, a mean over what is judged of it.

        Args:
            rows (`Sequence[Row]`)
            is_expert (`Sequence[bool]`):
                A row's side.
            label_smoothing (`float`, *optional*, defaults to `0.0`):
                The targets are 1 minus this for the expert and this for the policy, so that logits beyond
                log((1 - s) / s) (2.2 for 0.1) are too sure of themselves.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: losses in nats, with gradient, and the share of judgements that are
            right, without; both float32 of the shape `(rows,)`.
        """
        logits, counts = self.logits(rows)
        expert = torch.tensor(is_expert, device=logits.device)[:, None].expand_as(logits)
        target = torch.where(expert, 1 - label_smoothing, label_smoothing)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        right = ((logits > 0) == expert).float()
        number = counts.sum(1)
        return (losses * counts).sum(1) / number, (right * counts).sum(1) / number

    @torch.no_grad()
    def rewards(
        self, rows: Sequence[Row], form: str = "airl", clip: float | None = None, batch_size: int = 8
    ) -> list[float]:
        """
        What the policy gets for each completion, in nats.

        Args:
            rows (`Sequence[Row]`)
            form (`str`, *optional*, defaults to `"airl"`):
                `"airl"`: log D - log(1 - D), the logit itself. `"gail"`: -log(1 - D), which is never negative and goes
                to 0 where the discriminator is sure of the policy, so that it tells bad completions apart less.
            clip (`float`, *optional*):
                Largest reward, and negative, of a judgement.
            batch_size (`int`, *optional*, defaults to `8`)
        """
        rewards: list[float] = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))  # little padding
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            with self.active(), in_mode(self.model, training=False):
                logits, counts = self.logits([rows[i] for i in chosen])
            reward = logits if form == "airl" else F.softplus(logits)
            if clip is not None:
                reward = reward.clamp(-clip, clip)
            means = (reward * counts).sum(1) / counts.sum(1)
            for i, mean in zip(chosen, means.tolist(), strict=True):
                rewards[i] = mean
        return rewards
