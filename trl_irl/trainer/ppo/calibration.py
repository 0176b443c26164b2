"""Rewards shifted, scaled and cut, so that demonstrations get 0 on average."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ...text.padding import padded
from .ppo_reward_model import RewardFunctionModel
from .trl_ppo import get_reward


class _Calibrated(nn.Module):
    """A reward model's head, shifted, scaled and cut."""

    def __init__(self, score: nn.Module, shift: float, scale: float, clip: float | None):
        super().__init__()
        self.inner, self.shift, self.scale, self.clip = score, shift, scale, clip

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        reward = (self.inner(hidden) - self.shift) / self.scale
        return reward if self.clip is None else reward.clamp(-self.clip, self.clip)


@torch.no_grad()
def calibrate(
    reward_model: nn.Module,
    demonstrations: Sequence[tuple[list[int], list[int]]],
    pad_token_id: int,
    scale: bool = False,
    clip: float | None = None,
    batch_size: int = 8,
) -> tuple[float, float]:
    """
    From here on the reward model gives these demonstrations 0 on average.

    Args:
        reward_model (`nn.Module`):
            As `PPOTrainer` takes it, before it gets it.
        demonstrations (`Sequence[tuple[list[int], list[int]]]`):
            Token ids of prompts and responses; none leaves rewards where they are.
        pad_token_id (`int`)
        scale (`bool`, *optional*, defaults to `False`):
            Whether to divide by their standard deviation.
        clip (`float`, *optional*):
            Then cut every reward to lie within `-clip` and `clip`.
        batch_size (`int`, *optional*, defaults to `8`)

    Returns:
        `tuple[float, float]`: the mean and the standard deviation of the demonstrations' rewards before.
    """
    device = next(reward_model.parameters(), torch.empty(0)).device
    rewards: list[float] = []
    for start in range(0, len(demonstrations), batch_size):
        chosen = demonstrations[start : start + batch_size]
        sides = zip(zip(*chosen, strict=True), ("left", "right"), strict=True)
        prompts, responses = (padded(rows, pad_token_id, side, device=device) for rows, side in sides)
        width = prompts.size(1)
        if isinstance(reward_model, RewardFunctionModel):
            reward_model.backbone.prompt_width = width
        _, scores, _ = get_reward(reward_model, torch.cat([prompts, responses], 1), pad_token_id, width)
        rewards += scores.float().tolist()
    mean, std = (float(np.mean(rewards)), float(np.std(rewards))) if rewards else (0.0, 0.0)
    reward_model.score = _Calibrated(reward_model.score, mean, std if scale and std > 0 else 1.0, clip)
    return mean, std
