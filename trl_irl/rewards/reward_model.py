"""[`SoftQReward`] as the reward model of TRL's PPO, which asks for a backbone and a head, not for a function."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from .soft_q_reward import SoftQReward


class SoftQRewardModel(nn.Module):
    """
    The `reward_model` of TRL 1.12's `PPOTrainer`. It scores a response exactly as the
    [`SoftQReward`] it is made of scores those token ids: up to the first stop token, as a completion that was cut if
    there is none, and an empty one with what an empty completion gets.

    PPO reads a reward model as `score(backbone(...).hidden_states[-1])` at the response's last token. Here the
    backbone gives the return of the whole response at every position, and the head passes it on. PPO does not say
    where in a row the response begins, so the policy's `generate` is watched: what follows the width of its last
    prompts is the response.

    Args:
        reward ([`SoftQReward`]):
            Over the policy's own tokens.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The very object that PPO gets as `model`; its `generate` is replaced on this instance.

    Example:

    ```python
    >>> reward_model = SoftQRewardModel(SoftQReward("outputs/irl", clip=5.0), policy)
    >>> trainer = PPOTrainer(args, tokenizer, policy, ref_policy, reward_model, train_dataset, value_model)
    ```
    """

    base_model_prefix = "backbone"

    def __init__(self, reward: SoftQReward, policy: PreTrainedModel | PeftModel):
        super().__init__()
        self.backbone = _Returns(reward)
        self.score = nn.Identity()
        self.config = reward.model.config  # DeepSpeed's preparation looks there
        generate = policy.generate

        @functools.wraps(generate)
        def watched(*args, **kwargs):
            prompts = args[0] if args else kwargs["input_ids"]
            self.backbone.prompt_width = prompts.size(1)
            return generate(*args, **kwargs)

        policy.generate = watched


class _Returns(nn.Module):
    def __init__(self, reward: SoftQReward):
        super().__init__()
        self.reward, self.prompt_width = reward, None
        self.models = nn.ModuleList(m for m in (reward.model, reward.ref_model) if m is not None)  # they move along

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs) -> BaseModelOutput:
        if self.prompt_width is None:
            raise RuntimeError(
                "The policy has not generated anything yet, so it is not known where the responses begin. Give "
                "SoftQRewardModel the model that PPOTrainer trains, the same object."
            )
        start = self.prompt_width
        rows = list(zip(input_ids, attention_mask.bool(), strict=True))
        returns = self.reward(
            prompts=[ids[:start][mask[:start]].tolist() for ids, mask in rows],
            completion_ids=[self._completion(ids[start:], mask[start:]) for ids, mask in rows],
        )
        at_every_position = torch.tensor(returns, device=input_ids.device)[:, None, None].expand(*input_ids.shape, 1)
        return BaseModelOutput(hidden_states=(at_every_position,))

    def _completion(self, ids: torch.Tensor, mask: torch.Tensor) -> list[int]:
        tokenizer, stop_tokens = self.reward.tokenizer, self.reward.stop_tokens
        found = ids[mask].tolist()
        stop = next((i for i, token in enumerate(found) if token in stop_tokens), None)
        if stop is not None:
            return found[: stop + 1]
        # PPO pads a response only after its stop token. Where EOS is the padding token, that one is masked too.
        if len(found) < len(ids) and tokenizer.pad_token_id in stop_tokens:
            found.append(tokenizer.pad_token_id)
        return found
