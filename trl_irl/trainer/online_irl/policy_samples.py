"""The completions of the policy: how they are kept for later steps, and how a batch takes them beside the expert."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from trl.generation.vllm_generation import VLLMGeneration

from ...text.padding import padded
from ...text.stop_tokens import cut_at_stop


@dataclass(frozen=True)
class PolicySample:
    """
    Attributes:
        prompt (`list[int]`): token ids.
        completion (`list[int]`): token ids, up to its stop token; it was cut where it ends in none.
    """

    prompt: list[int]
    completion: list[int]

    @classmethod
    def cut(cls, prompt: list[int], completion: list[int], stop_tokens: Collection[int]) -> PolicySample:
        """With what was generated after a stop token left out."""
        return cls(prompt, cut_at_stop(completion, stop_tokens))


def scored_to_the_stop(batch: dict[str, torch.Tensor], stop_tokens: Collection[int]) -> dict[str, torch.Tensor]:
    """
    A batch whose rows are scored up to the first stop token among their labels. A chat template may write a newline
    behind it, or more turns, which no completion of the policy has: scored, they would be what the objective tells
    the expert by.
    """
    labels = batch["labels"]
    stops = torch.isin(labels, torch.tensor(sorted(stop_tokens), device=labels.device))
    behind = stops.cumsum(-1) - stops.long() > 0
    return {**batch, "labels": labels.masked_fill(behind, -100)}


def prompts_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """Token ids of each row before its first scored one; rows with nothing scored are left out."""
    prompts = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        scored = (labels[mask] != -100).nonzero()
        if len(scored):
            prompts.append(ids[mask][: scored[0]].tolist())
    return prompts


def prompt_lengths(dataset: Dataset) -> np.ndarray:
    """How many tokens of each row come before the first that is scored; all of them where none is."""
    lengths = []
    for table in dataset.with_format("arrow").iter(batch_size=10_000):
        labels = table["labels"].combine_chunks()
        starts, ends = labels.offsets[:-1].to_numpy(), labels.offsets[1:].to_numpy()
        scored = np.append(np.flatnonzero(labels.values.to_numpy() != -100), ends[-1])
        lengths.append(np.minimum(scored[np.searchsorted(scored, starts)], ends) - starts)
    return np.concatenate(lengths)


def same_number(prompts: Sequence[list[int]], stop_tokens: Collection[int]) -> list[list[int]]:
    """
    The prompts, and as many more behind them as another rank has, which a rank may have fewer of since rows with
    nothing to learn are left out: all ranks sample together, so many times. All ranks take part.
    """
    most = max(gather_object([len(prompts)]))
    filler = prompts[0] if prompts else [min(stop_tokens)]
    return [*prompts, *[filler] * (most - len(prompts))]


def sample_with_vllm(
    vllm: VLLMGeneration, prompts: Sequence[list[int]], stop_tokens: Collection[int], accelerator: Accelerator
) -> list[PolicySample]:
    """
    One completion of each prompt, drawn by vLLM from the policy's weights of now; all ranks take part.

    Args:
        vllm ([`~trl.generation.vllm_generation.VLLMGeneration`])
        prompts (`Sequence[list[int]]`):
            Token ids; as many as there happen to be on each rank.
        stop_tokens (`Collection[int]`), accelerator ([`~accelerate.Accelerator`])
    """
    vllm.sync_weights()
    # With a server, TRL cuts what comes back into equal parts for the ranks.
    asked = same_number(prompts, stop_tokens)
    rows = vllm.generate(prompts=asked, images=None, num_generations=1)[1]
    return [PolicySample.cut(prompt, list(row), stop_tokens) for prompt, row in zip(prompts, rows, strict=False)]


def with_policy_rows(
    batch: dict[str, torch.Tensor], samples: Sequence[PolicySample], pad_token_id: int, multiple_of: int | None = None
) -> dict[str, torch.Tensor]:
    """
    The batch with a row per sample after its own, padded on the right, and `is_policy`, a bool per row.

    Raises:
        `ValueError`: the batch has columns that a sample cannot be given.
    """
    unknown = sorted(batch.keys() - {"input_ids", "labels", "attention_mask"})
    if unknown:
        raise ValueError(
            f"The data collator gives {', '.join(unknown)} beside token ids, and the policy's completions have none. "
            "Leave `data_collator` unset."
        )
    rows = [sample.prompt + sample.completion for sample in samples]
    labels = [[-100] * len(sample.prompt) + sample.completion for sample in samples]
    return joined(batch, rows, labels, pad_token_id, multiple_of)


def joined(
    batch: dict[str, torch.Tensor],
    input_ids: Sequence[list[int]],
    labels: Sequence[list[int]],
    pad_token_id: int,
    multiple_of: int | None = None,
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels` of a batch with these rows behind its own, and `is_policy`."""
    new = {
        "input_ids": (input_ids, pad_token_id),
        "labels": (labels, -100),
        "attention_mask": ([[1] * len(row) for row in input_ids], 0),
    }
    both = {}
    for name, (rows, filler) in new.items():
        own = batch[name]
        width = max([own.size(1), *map(len, rows)])
        width += -width % (multiple_of or 1)
        own = torch.nn.functional.pad(own, (0, width - own.size(1)), value=filler)
        both[name] = torch.cat([own, padded(rows, filler, width=width, device=own.device).to(own.dtype)])
    is_policy = [False] * len(batch["input_ids"]) + [True] * len(input_ids)
    return {**both, "is_policy": torch.tensor(is_policy, device=both["input_ids"].device)}


class ReplayBuffer:
    """
    A rank's latest samples, oldest out first.

    Args:
        size (`int`):
            How many to keep; 0 keeps none.
        identity (`dict`):
            What a buffer must have in common with the run that goes on with it: tokens, ranks and so on.
    """

    def __init__(self, size: int, identity: dict):
        self.identity = {"size": size, **identity}
        self._samples: deque[PolicySample] = deque(maxlen=size)

    def add(self, samples: Sequence[PolicySample]) -> None:
        self._samples.extend(samples)

    def draw(self, count: int) -> list[PolicySample]:
        """So many of them without repetition, or all if there are fewer; by Python's own random state."""
        return random.sample(list(self._samples), min(count, len(self._samples)))

    def save(self, path: Path) -> None:
        content = {"told": self.identity, "samples": [asdict(sample) for sample in self._samples]}
        path.write_text(json.dumps(content), encoding="utf-8")

    def load(self, path: Path) -> None:
        """
        Raises:
            `ValueError`: it is not there, or of another run.
        """
        if not path.is_file():
            raise ValueError(
                f"The checkpoint has no replay buffer ({path.name}), and `replay_size={self.identity['size']}`. Set "
                "`replay_size: 0`, or resume from a checkpoint of a run with replay on as many processes."
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in self.identity.items() if saved["told"].get(name) != value]
        if differing:
            name = differing[0]
            raise ValueError(
                f"The replay buffer of the checkpoint is of another run: its {name} is {saved['told'].get(name)}, and "
                f"this run's is {self.identity[name]}. Resume with the settings of that run, or set `replay_size: 0`."
            )
        self._samples.clear()
        self._samples.extend(PolicySample(**sample) for sample in saved["samples"])
