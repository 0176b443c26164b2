"""A reward function as the reward model of TRL's PPO, which asks for a backbone and a head instead."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from ...text.stop_tokens import cut_at_stop


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ...rewards.soft_q_reward import SoftQReward

TokenReward = Callable[[list[list[int]], list[list[int]]], Sequence[float]]


class RewardError(RuntimeError):
    """A reward function failed, or gave what is no reward."""


class RewardFunctionModel(nn.Module):
    """
    The `reward_model` of TRL 1.12's `PPOTrainer`, made of a function of token ids.

    PPO reads a reward model as `score(backbone(...).hidden_states[-1])` at the response's last token. Here the
    backbone gives the reward of the whole response at every position, and the head passes it on. PPO does not say
    where in a row the response begins, so the policy's `generate` is watched: what follows the width of its last
    prompts is the response. The function gets it up to its first stop token; one without a stop token was cut.

    Args:
        function (`Callable`):
            From prompts and responses, lists of token ids, to one number each.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The very object that PPO gets as `model`; its `generate` is replaced on this instance.
        stop_tokens (`Collection[int]`):
            Tokens that end a response.
        pad_token_id (`int`, *optional*):
            The tokenizer's, in case it is a stop token as well.
        models (`Iterable[nn.Module]`, *optional*):
            Models inside the function, to be moved and prepared with this one.

    Raises:
        [`RewardError`]: at a call, if the function raises, or gives a number that is not finite or too few or many.
    """

    base_model_prefix = "backbone"

    def __init__(
        self,
        function: TokenReward,
        policy: PreTrainedModel | PeftModel,
        stop_tokens: Collection[int],
        pad_token_id: int | None = None,
        models: Iterable[nn.Module] = (),
    ):
        super().__init__()
        self.backbone = _Returns(function, stop_tokens, pad_token_id, models)
        self.score = nn.Identity()
        self.config: PretrainedConfig = policy.config  # DeepSpeed's preparation looks there
        generate = policy.generate

        @functools.wraps(generate)
        def watched(*args, **kwargs):
            prompts = args[0] if args else kwargs["input_ids"]
            self.backbone.prompt_width = prompts.size(1)
            return generate(*args, **kwargs)

        policy.generate = watched


class SoftQRewardModel(RewardFunctionModel):
    """
    A [`SoftQReward`] as [`RewardFunctionModel`]: every response gets what the reward gives its token ids.

    Args:
        reward ([`SoftQReward`]):
            Over the policy's own tokens.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The very object that PPO gets as `model`.

    Example:

    ```python
    >>> reward_model = SoftQRewardModel(SoftQReward("outputs/irl", clip=5.0), policy)
    >>> trainer = PPOTrainer(args, tokenizer, policy, ref_policy, reward_model, train_dataset, value_model)
    ```
    """

    def __init__(self, reward: SoftQReward, policy: PreTrainedModel | PeftModel):
        super().__init__(
            lambda prompts, responses: reward(prompts=prompts, completion_ids=responses),
            policy,
            reward.stop_tokens,
            reward.tokenizer.pad_token_id,
            (model for model in (reward.model, reward.ref_model) if model is not None),
        )


def read_as_trained(scorer: PreTrainedModel, eos_token_id: int) -> nn.Module:
    """
    A sequence-classification model as PPO's reward model. PPO reads one at the EOS token of a response; a model that
    was trained with EOS as its padding (as `trl reward` does where the tokenizer has no other) takes every EOS at the
    end for padding and was trained to be read before. Any other stays as it is.
    """
    pads = scorer.config.get_text_config().pad_token_id
    return _ReadBeforeEos(scorer, eos_token_id) if pads == eos_token_id else scorer


class _ReadBeforeEos(nn.Module):
    """The scorer, whose hidden states at EOS tokens are those of the last other token before."""

    base_model_prefix = "backbone"

    def __init__(self, scorer: PreTrainedModel, eos_token_id: int):
        super().__init__()
        self.backbone = _LastOther(getattr(scorer, scorer.base_model_prefix), eos_token_id)
        self.score, self.config = scorer.score, scorer.config


class _LastOther(nn.Module):
    def __init__(self, inner: nn.Module, eos_token_id: int):
        super().__init__()
        self.inner, self.eos_token_id = inner, eos_token_id

    def forward(self, input_ids: torch.Tensor, **kwargs) -> BaseModelOutput:
        hidden = self.inner(input_ids=input_ids, **kwargs).hidden_states[-1]
        places = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
        last = places.where(input_ids != self.eos_token_id, 0).cummax(dim=1).values
        return BaseModelOutput(hidden_states=(hidden.gather(1, last[:, :, None].expand_as(hidden)),))


class OtherEndsForgiven(nn.Module):
    """
    A reward model of PPO (or a function as one) that gives `penalty` back to responses which end in a stop token other
    than the tokenizer's EOS: TRL takes `missing_eos_penalty` off every response without that one token.

    Args:
        inner (`nn.Module`):
            As PPO takes it.
        eos_token_id (`int`), stop_tokens (`Collection[int]`), pad_token_id (`int`):
            The tokenizer's EOS, all that ends a response, and what pads one.
        penalty (`float`)
    """

    base_model_prefix = "backbone"

    def __init__(
        self, inner: nn.Module, eos_token_id: int, stop_tokens: Collection[int], pad_token_id: int, penalty: float
    ):
        super().__init__()
        self.inner, self.config, self.penalty = inner, inner.config, penalty
        self.eos_token_id, self.pads_with_eos = eos_token_id, pad_token_id == eos_token_id
        self.others = sorted(set(stop_tokens) - {eos_token_id})
        self.prompt_width: int | None = None  # of the prompts that were asked last; nothing is given back without
        self._given_back: torch.Tensor | None = None

    def backbone(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs):
        ids, mask = (x[:, self.prompt_width or input_ids.size(1) :] for x in (input_ids, attention_mask.bool()))
        has_eos = (ids == self.eos_token_id) & mask
        if self.pads_with_eos:  # then TRL takes padding for an end
            has_eos |= ~mask
        other = torch.isin(ids, torch.tensor(self.others, device=ids.device)) & mask
        self._given_back = self.penalty * (other.any(1) & ~has_eos.any(1)).float()
        own = getattr(self.inner, self.inner.base_model_prefix)
        return own(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        reward = self.inner.score(hidden)
        # In float32, so that what TRL takes off and what is given back are the same number.
        return reward.float() + self._given_back[:, None, None] if self._given_back.any() else reward


class _Returns(nn.Module):
    def __init__(self, function, stop_tokens, pad_token_id, models):
        super().__init__()
        self.function, self.stop_tokens, self.pad_token_id = function, frozenset(stop_tokens), pad_token_id
        self.models = nn.ModuleList(models)
        self.prompt_width: int | None = None

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs) -> BaseModelOutput:
        if self.prompt_width is None:
            raise RuntimeError(
                "The policy has not generated anything yet, so it is not known where the responses begin. Give the "
                "reward model the model that PPOTrainer trains, the same object."
            )
        rows = list(zip(input_ids, attention_mask.bool(), strict=True))
        start = self.prompt_width
        prompts = [ids[:start][mask[:start]].tolist() for ids, mask in rows]
        rewards = self._rewards(prompts, [self._response(ids[start:], mask[start:]) for ids, mask in rows])
        at_every_position = torch.tensor(rewards, device=input_ids.device)[:, None, None].expand(*input_ids.shape, 1)
        return BaseModelOutput(hidden_states=(at_every_position,))

    def _rewards(self, prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
        try:
            # PPO needs a number for each: what SoftQReward knows nothing of has the sum of nothing.
            rewards = [0.0 if reward is None else float(reward) for reward in self.function(prompts, responses)]
        except Exception as error:  # it may be a user's function
            raise RewardError(f"The reward function failed: {type(error).__name__}: {error}") from error
        if len(rewards) != len(responses):
            raise RewardError(f"The reward function gave {len(rewards)} rewards for {len(responses)} responses.")
        wrong = next((i for i, reward in enumerate(rewards) if not math.isfinite(reward)), None)
        if wrong is not None:
            raise RewardError(
                f"The reward function gave {rewards[wrong]} for a response of {len(responses[wrong])} tokens. Rewards "
                "must be finite numbers."
            )
        return rewards

    def _response(self, ids: torch.Tensor, mask: torch.Tensor) -> list[int]:
        response = ids[mask].tolist()
        cut = cut_at_stop(response, self.stop_tokens)
        if cut and cut[-1] in self.stop_tokens:
            return cut
        # PPO pads a response only after its stop token. Where EOS is the padding token, that one is masked too.
        if len(response) < len(ids) and self.pad_token_id in self.stop_tokens:
            response.append(self.pad_token_id)
        return response
