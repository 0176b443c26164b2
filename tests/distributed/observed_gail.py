"""`trl-irl gail`, and on each rank a file of the discriminator's weights after every update."""

import json
import os
from pathlib import Path

from tests.distributed.observed_irl import allow_fsdp_on_cpu
from trl_irl.commands import gail
from trl_irl.commands.console.failures import leave
from trl_irl.trainer.gail.discriminator_training import Adversary


_update = Adversary.update


def _observed(self, expert, policy):
    measured = _update(self, expert, policy)
    line = {name: weight.double().abs().sum().item() for name, weight in self.weights.items()}
    with (Path(self.args.output_dir) / f"rank-{os.environ['RANK']}.jsonl").open("a") as file:
        file.write(json.dumps({"rows": [len(expert), len(policy)], **measured, "weights": line}) + "\n")
    return measured


Adversary.update = _observed

if __name__ == "__main__":
    allow_fsdp_on_cpu()
    leave(gail.run())
