"""A discriminator that is a second adapter on the policy's own base, so that the base lies in memory once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from .discriminator import Discriminator


NAME = "discriminator"


class SharedDiscriminator(Discriminator):
    """
    A [`Discriminator`] of the policy's base, quantised or not, an adapter beside the policy's and a head of its own.
    It neither sees nor trains the policy's adapter, nor the policy its.

    Args:
        policy ([`~peft.PeftModel`]):
            Not wrapped by anything yet; it gets an adapter called "discriminator", which is not active.
        level (`str`):
            See [`Discriminator`].
        lora_r (`int`):
            The adapter's rank, on all linear layers but the output head.
    """

    def __init__(self, policy: PeftModel, level: str, lora_r: int):
        self._policys = policy.active_adapter
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear")
        policy.add_adapter(NAME, config)
        policy.set_adapter(self._policys)
        super().__init__(policy, level)

    def _head(self) -> torch.nn.Module:
        config = self._classifier.config.get_text_config()
        score = torch.nn.Linear(config.hidden_size, 1, bias=False)
        torch.nn.init.normal_(score.weight, std=getattr(config, "initializer_range", 0.02))
        return score

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        own = {name: weight for name, weight in self.model.named_parameters() if f".{NAME}." in name}
        return {**own, "score.weight": self._score.weight}

    @contextmanager
    def active(self) -> Iterator[None]:
        # Makes its adapter the one that runs and is trained; under gradient checkpointing it runs again in backward.
        self.model.set_adapter(NAME)
        try:
            yield
        finally:
            self.model.set_adapter(self._policys)

    def to(self, device: torch.device) -> None:
        self._score.to(device)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write it to a folder as the adapter of a reward model on the policy's base."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.model.peft_config[NAME])
        config.task_type, config.modules_to_save, config.inference_mode = TaskType.SEQ_CLS, ["score"], True
        config.save_pretrained(folder)
        state = get_peft_model_state_dict(self.model, adapter_name=NAME)
        state["base_model.model.score.weight"] = self._score.weight
        state = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
        save_file(state, folder / "adapter_model.safetensors")
        tokenizer.save_pretrained(folder)
