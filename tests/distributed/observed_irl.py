"""
The `irl` command for tests, with two additions. Each rank writes what its model was really wrapped in to `output_dir`.
And FSDP runs on CPUs: accelerate 1.15 takes `distributed_type: FSDP` there for DDP without a word, so where it decides
it is told that the processes have GPUs. The rest (mesh, sharding, collectives by gloo) is accelerate's and torch's.
"""

import json
import os
from pathlib import Path

import accelerate.accelerator
import accelerate.state
from accelerate.utils import DistributedType

import trl_irl.trainer
from trl_irl import IRLTrainer
from trl_irl.commands.console.failures import leave
from trl_irl.commands.irl import run


class _FsdpOnCpu(accelerate.state.AcceleratorState):
    def __init__(self, *args, **kwargs):
        state = accelerate.state.PartialState._shared_state
        if state.get("distributed_type") == DistributedType.MULTI_CPU:
            state["distributed_type"] = DistributedType.MULTI_GPU
        super().__init__(*args, **kwargs)


def allow_fsdp_on_cpu():
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        accelerate.accelerator.AcceleratorState = _FsdpOnCpu


class ObservedTrainer(IRLTrainer):
    def _values(self, *args, **kwargs):
        output = super()._values(*args, **kwargs)
        self.seen = [str(x.dtype) for x in (output.q, output.v)]
        return output

    def _kept(self):
        """How small a weight ZeRO-3 keeps gathered, and how many numbers of all of them."""
        if not self.is_deepspeed_enabled or self.model_wrapped.zero_optimization_stage() != 3:
            return None
        limits = self.model_wrapped._config.zero_config
        return [int(limits.param_persistence_threshold), int(limits.max_live_parameters)]

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        weight = self.accelerator.unwrap_model(self.model).get_output_embeddings().weight
        observed = {
            "wrapper": type(self.model_wrapped).__name__,
            "head": type(weight).__name__,
            "zero_stage": self.model_wrapped.zero_optimization_stage() if self.is_deepspeed_enabled else None,
            "kept": self._kept(),
            "q and v": self.seen,
            "elements_here": getattr(weight, "ds_tensor", weight).numel(),
        }
        Path(self.args.output_dir, f"observed-{os.environ['RANK']}.json").write_text(
            json.dumps(observed), encoding="utf-8"
        )
        return result


if __name__ == "__main__":
    allow_fsdp_on_cpu()
    trl_irl.trainer.IRLTrainer = ObservedTrainer
    leave(run())
