"""Arguments of online IRL."""

import math
from dataclasses import dataclass, field

from ...soft_q.objectives import CHI2_ON
from ..irl.config import IRLConfig
from ..runtime.vllm_arguments import VLLMArguments


@dataclass
class OnlineIRLConfig(VLLMArguments, IRLConfig):
    r"""
    Configuration of [`OnlineIRLTrainer`]: [`IRLConfig`] with the keys below.

    Args:
        > Parameters that control sampling

        online_fraction (`float`, *optional*, defaults to `1.0`):
            Probability that an optimiser step samples from the policy; the other steps are offline.
        num_generations (`int`, *optional*, defaults to `1`):
            Completions per prompt.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Longest sampled completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the sampling, above 0. At 1 the samples are the policy's own, as the objective has them.
        replay_size (`int`, *optional*, defaults to `0`):
            How many earlier samples to keep and mix in, over all ranks, oldest out first; 0 takes fresh ones only.
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            ZeRO-3: gather all weights on each GPU while sampling. `False` is slower and needs no room for them.
        use_vllm, vllm_mode, vllm_server_base_url, vllm_gpu_memory_utilization and so on:
            As in [`~trl.RLOOConfig`]: sampling by vLLM, in this process or on a server.

        > Parameters that control the objective

        policy_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the policy's tokens in the mixture, from 0 (offline) to 1.
        chi2_on (`str`, *optional*, defaults to `"mixture"`):
            Over which tokens the squared reward is: `"mixture"`, or `"expert"`, which diverges in practice.
    """

    online_fraction: float = field(default=1.0, metadata={"help": "Probability that a step samples."})
    num_generations: int = field(default=1, metadata={"help": "Completions per prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest sampled completion, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampling, above 0."})
    replay_size: int = field(default=0, metadata={"help": "Earlier samples to keep and mix in; 0 is fresh ones only."})
    ds3_gather_for_generation: bool = field(
        default=True, metadata={"help": "ZeRO-3: gather all weights on each GPU while sampling."}
    )
    policy_weight: float = field(default=0.5, metadata={"help": "Weight of the policy's tokens in the mixture."})
    chi2_on: str = field(
        default="mixture", metadata={"help": "Over which tokens the squared reward is.", "choices": list(CHI2_ON)}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, least, most in (("online_fraction", 0, 1), ("policy_weight", 0, 1)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"`{name}={value}` is out of range: it lies between {least} and {most}.")
        for name, least in (("num_generations", 1), ("max_completion_length", 1), ("replay_size", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}={getattr(self, name)}` is out of range. Set it to {least} or more.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"`temperature={self.temperature}` must be above 0, and finite: greedy completions are no samples of "
                "the policy."
            )
        if told := self.strengths_told():
            raise ValueError(
                f"`{told[0]}={getattr(self, told[0])}` has no online form: train with `IRLTrainer`, or unset it."
            )
        if self.objective != "soft_q":
            raise ValueError(
                f"`objective={self.objective!r}` has no online form: train with `IRLTrainer`, or unset it."
            )
        if self.chi2_on not in CHI2_ON:
            raise ValueError(f"`chi2_on={self.chi2_on!r}` is unknown; there are {', '.join(CHI2_ON)}.")
        if self.completion_only_loss is False:
            raise ValueError(
                "`completion_only_loss=False` scores the prompts' tokens as well, and online IRL tells a prompt, of "
                "which it samples a completion, by its tokens not being scored. Leave it unset, or train offline with "
                "`IRLTrainer`, which takes it."
            )
        if self.packing or self.padding_free:
            raise ValueError(
                "`packing` and `padding_free` put several rows into one, and the policy's completions are added row "
                "by row. Set both to False."
            )
