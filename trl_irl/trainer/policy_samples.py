"""The policy's own completions: sampled, kept for later steps, and put into a batch beside the expert's rows."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PretrainedConfig, PreTrainedModel
from trl.generation.vllm_generation import VLLMGeneration

from ..text.context import context_length
from ..text.generation import as_it_is
from ..text.stop_tokens import cut_at_stop


# Generations in a row without one completion that ends, or with empty ones alone, before the run is ended.
MAX_WITHOUT_END = 20


class GenerationError(RuntimeError):
    """The policy samples nothing that there is something to learn from."""


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


def prompts_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """Token ids of each row before its first scored one; rows with nothing scored are left out."""
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        scored = (labels[mask] != -100).nonzero()
        if len(scored):
            found.append(ids[mask][: scored[0]].tolist())
    return found


def check_prompt(length: int, where: str) -> None:
    """
    Raises:
        `ValueError`: a prompt, of the row that `where` names, has no token.
    """
    if not length:
        raise ValueError(
            f"{where} has an empty prompt, without one token for the policy to go on from. Leave such rows out, or "
            "begin prompts with some text."
        )


def check_room(
    config: PretrainedConfig, longest_prompt: int, max_completion_length: int, whose: str = "the model's"
) -> None:
    """
    Raises:
        `ValueError`: prompt and completion, in tokens, are longer than the context; `whose` says which model's.
    """
    context = context_length(config)
    if context is not None and longest_prompt + max_completion_length > context:
        raise ValueError(
            f"The longest prompt has {longest_prompt} tokens, which leaves no room for `max_completion_length="
            f"{max_completion_length}` in {whose} context of {context}. Lower it, or leave such rows out."
        )


@torch.no_grad()
def sample_policy(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    stop_tokens: Collection[int],
    pad_token_id: int,
    max_completion_length: int,
    temperature: float,
    batch_size: int,
    synced_gpus: bool = False,
) -> list[PolicySample]:
    """
    One completion of each prompt, drawn from the policy as it is: no nucleus, no top-k.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Unwrapped, in any mode; it is left in it.
        prompts (`Sequence[list[int]]`):
            Token ids.
        stop_tokens (`Collection[int]`):
            Tokens that end a completion.
        pad_token_id (`int`):
            It is masked, so it may be a stop token.
        max_completion_length (`int`):
            In tokens.
        temperature (`float`), batch_size (`int`), synced_gpus (`bool`):
            See `generate` of transformers.
    """
    was_training = model.training
    model.eval()
    found = []
    for start in range(0, len(prompts), batch_size):
        chosen = prompts[start : start + batch_size]
        width = max(map(len, chosen))
        ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in chosen], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in chosen], device=model.device)
        with as_it_is(model):
            generated = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_completion_length,
                eos_token_id=sorted(stop_tokens),
                pad_token_id=pad_token_id,
                synced_gpus=synced_gpus,
            )
        rows = generated[:, width:].tolist()
        found += [PolicySample.cut(*pair, stop_tokens) for pair in zip(chosen, rows, strict=True)]
    model.train(was_training)
    return found


def sample_with_vllm(
    vllm: VLLMGeneration, prompts: Sequence[list[int]], stop_tokens: Collection[int], accelerator: Accelerator
) -> list[PolicySample]:
    """
    One completion of each prompt, drawn by vLLM from the policy's weights of now; all ranks take part.

    Args:
        vllm ([`~trl.generation.vllm_generation.VLLMGeneration`])
        prompts (`Sequence[list[int]]`):
            Token ids; one or more, and as many as there happen to be on each rank.
        stop_tokens (`Collection[int]`), accelerator ([`~accelerate.Accelerator`])
    """
    vllm.sync_weights()
    # With a server, TRL cuts what comes back into equal parts for the ranks.
    most = max(gather_object([len(prompts)]))
    asked = [*prompts, *[prompts[0]] * (most - len(prompts))]
    rows = vllm.generate(prompts=asked, images=None, num_generations=1)[1]
    return [PolicySample.cut(prompt, list(row), stop_tokens) for prompt, row in zip(prompts, rows, strict=False)]


def with_policy_rows(
    batch: dict[str, torch.Tensor], samples: Sequence[PolicySample], pad_token_id: int, multiple_of: int | None = None
) -> dict[str, torch.Tensor]:
    """
    The batch with a row a sample after its own, padded on the right, and `is_policy`, a bool a row.

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
    width = max([batch["input_ids"].size(1), *map(len, rows)])
    width += -width % (multiple_of or 1)
    fillers = {"input_ids": pad_token_id, "labels": -100, "attention_mask": 0}
    new = {
        "input_ids": rows,
        "labels": [[-100] * len(sample.prompt) + sample.completion for sample in samples],
        "attention_mask": [[1] * len(row) for row in rows],
    }
    joined = {}
    for name, filler in fillers.items():
        own = batch[name]
        own = torch.nn.functional.pad(own, (0, width - own.size(1)), value=filler)
        added = torch.tensor([row + [filler] * (width - len(row)) for row in new[name]], device=own.device)
        joined[name] = torch.cat([own, added.to(own.dtype).view(-1, width)])
    is_policy = [False] * len(batch["input_ids"]) + [True] * len(samples)
    return {**joined, "is_policy": torch.tensor(is_policy, device=joined["input_ids"].device)}


class ReplayBuffer:
    """
    A rank's latest samples, oldest out first.

    Args:
        size (`int`):
            How many to keep; 0 keeps none.
        told (`dict`):
            What a buffer must have in common with the run that goes on with it: tokens, ranks and so on.
    """

    def __init__(self, size: int, told: dict):
        self.told = {"size": size, **told}
        self._samples: deque[PolicySample] = deque(maxlen=size)

    def add(self, samples: Sequence[PolicySample]) -> None:
        self._samples.extend(samples)

    def draw(self, count: int) -> list[PolicySample]:
        """So many of them without repetition, or all if there are fewer; by Python's own random state."""
        return random.sample(list(self._samples), min(count, len(self._samples)))

    def save(self, path: Path) -> None:
        path.write_text(
            json.dumps({"told": self.told, "samples": [asdict(sample) for sample in self._samples]}), encoding="utf-8"
        )

    def load(self, path: Path) -> None:
        """
        Raises:
            `ValueError`: it is not there, or of another run.
        """
        if not path.is_file():
            raise ValueError(
                f"The checkpoint has no replay buffer ({path.name}), and `replay_size={self.told['size']}`. Set "
                "`replay_size: 0`, or resume from a checkpoint of a run with replay on as many processes."
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in self.told.items() if saved["told"].get(name) != value]
        if differing:
            name = differing[0]
            raise ValueError(
                f"The replay buffer of the checkpoint is of another run: its {name} is {saved['told'].get(name)}, and "
                f"this run's is {self.told[name]}. Resume with the settings of that run, or set `replay_size: 0`."
            )
        self._samples.clear()
        self._samples.extend(PolicySample(**sample) for sample in saved["samples"])


class GenerationWatch:
    """
    Ends a run that only samples completions there is nothing to learn from.

    Args:
        accelerator ([`~accelerate.Accelerator`])
        max_completion_length (`int`):
            Of the sampling, in tokens.
        weights (`str`):
            What else to lower, beside the learning rate, when the policy has lost its words.
    """

    def __init__(self, accelerator: Accelerator, max_completion_length: int, weights: str):
        self.accelerator, self.max_completion_length, self.weights = accelerator, max_completion_length, weights
        self._without_end = 0

    def see(self, completions: Sequence[Sequence[int]], ended: Sequence[bool]) -> None:
        """
        All ranks take part, with their own completions (token ids) and whether each ends in a stop token.

        Raises:
            `GenerationError`: for 20 generations no completion ended, or all were empty.
        """
        empty = all(end and len(completion) == 1 for completion, end in zip(completions, ended, strict=True))
        some = self.accelerator.reduce(
            torch.tensor([float(any(ended)), float(not empty)], device=self.accelerator.device), reduction="sum"
        )
        self._without_end = 0 if some.min() > 0 else self._without_end + 1
        if self._without_end >= MAX_WITHOUT_END:
            what = (
                f"no completion ended within `max_completion_length={self.max_completion_length}` tokens. Raise it"
                if some[0] == 0
                else "every completion was empty: the policy only says its stop token. Lower `learning_rate` or "
                f"{self.weights}"
            )
            raise GenerationError(
                f"For {self._without_end} generations {what}, or start from a model that imitates the data already "
                "(`trl sft`, `trl-irl irl`)."
            )
