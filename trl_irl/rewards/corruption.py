"""Whether a reward falls where the error is: one token of a good completion is replaced, and its reward looked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from .soft_q_reward import CompletionReward


@dataclass(frozen=True)
class Corruption:
    """
    Completions with one token replaced each, and where.

    Attributes:
        rows (`list[int]`): numbers of the completions, of those given, that have a token to replace.
        token_ids (`list[list[int]]`): the completions, changed.
        positions (`list[int]`): of the changed token in its completion.
    """

    rows: list[int]
    token_ids: list[list[int]]
    positions: list[int]


def corrupt(completions: Sequence[Sequence[int]], stop_tokens: Collection[int], seed: int = 0) -> Corruption:
    """
    Replace one token of each completion, drawn at random, by another that is drawn from all tokens of these
    completions; stop tokens stay.

    Args:
        completions (`Sequence[Sequence[int]]`):
            Token ids.
        stop_tokens (`Collection[int]`)
        seed (`int`, *optional*, defaults to `0`)

    Raises:
        `ValueError`: no completion has a token to replace, or there is only one token.
    """
    rng = np.random.default_rng(seed)
    pool = np.array([token for ids in completions for token in ids if token not in stop_tokens])
    if len(set(pool.tolist())) < 2:
        raise ValueError("There is no token to replace by another one: the references are empty, or all one token.")
    corruption = Corruption([], [], [])
    for row, ids in enumerate(completions):
        candidates = [i for i, token in enumerate(ids) if token not in stop_tokens]
        if not candidates:
            continue
        position = int(rng.choice(candidates))
        others = pool[pool != ids[position]]
        corruption.rows.append(row)
        corruption.positions.append(position)
        corruption.token_ids.append([*ids[:position], int(rng.choice(others)), *ids[position + 1 :]])
    return corruption


def sensitivity(
    original: Sequence[CompletionReward], corrupted: Sequence[CompletionReward], positions: Sequence[int]
) -> dict[str, np.ndarray]:
    """
    What the changed token does to the rewards.

    Args:
        original, corrupted (`Sequence[CompletionReward]`):
            Rewards of the completions before and after.
        positions (`Sequence[int]`)

    Returns:
        `dict[str, np.ndarray]`, float64 of shape `(completions,)`: `lowest`, 1 if the changed token has the lowest
        reward of its completion, and `chance`, one over the number of tokens with a reward; `place`, the share of the
        other tokens whose reward is lower (0: none, 0.5: chance), equal ones counting half; `falls`, 1 if the return
        is lower than before. NaN for a completion whose changed token has no reward, or is alone.
    """
    columns: dict[str, list[float]] = {"lowest": [], "chance": [], "place": [], "falls": []}
    for before, after, position in zip(original, corrupted, positions, strict=True):
        others = np.delete(after.rewards, position)[np.delete(after.has_reward, position)]
        of_completion = dict.fromkeys(columns, float("nan"))
        if after.has_reward[position] and len(others):
            own = after.rewards[position]
            of_completion["lowest"] = float(own < others.min())
            of_completion["chance"] = 1 / (len(others) + 1)
            of_completion["place"] = float(((others < own) + (others == own) / 2).mean())
            of_completion["falls"] = float(after.sum < before.sum)
        for name, value in of_completion.items():
            columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}
