"""
Average the weights of models that began as one, such as a base and what was fine-tuned from it, or two checkpoints.

```bash
trl-irl average --models Qwen/Qwen2.5-0.5B outputs/gsm8k/irl_full --weights 0.3 0.7 --output_dir outputs/averaged
```
"""

import shlex
from dataclasses import dataclass, field

from .console.command import command


@dataclass
class AverageArguments:
    """
    Arguments of the `average` command.

    Args:
        models (`list[str]`):
            Folders or Hub ids of whole models, or of LoRA adapters of one base, and that base. What is beside the
            weights (tokenizer, configuration) is that of the first that a trainer has saved, else of the first.
        weights (`list[float]`, *optional*):
            One each, with the sum 1; alike if unset. Beyond 0 and 1 they extrapolate.
        output_dir (`str`, *optional*, defaults to `"outputs/averaged"`):
            A new folder.
    """

    models: list[str] = field(default_factory=list, metadata={"help": "Folders, Hub ids or adapters of one base."})
    weights: list[float] | None = field(default=None, metadata={"help": "One each, with the sum 1; alike if unset."})
    output_dir: str = field(default="outputs/averaged", metadata={"help": "A new folder for the average."})

    def __post_init__(self):
        if len(self.models) < 2:
            raise ValueError("`models`: name two or more to average.")
        if self.weights is None:
            self.weights = [1 / len(self.models)] * len(self.models)


def main(arguments: AverageArguments) -> None:
    """Write the average."""
    from ..tasks.files import check_local_model, check_writable
    from ..trainer.runtime.averaging import average

    for path in arguments.models:
        check_local_model(path, "models")
    check_writable(arguments.output_dir, "output_dir")
    average(arguments.models, arguments.weights, arguments.output_dir)
    for path, weight in zip(arguments.models, arguments.weights, strict=True):
        print(f"{weight:6.3f}  {path}")
    print(f"Averaged into {arguments.output_dir}. Next, with your data in place of data.jsonl:")
    models = shlex.join([f"first={arguments.models[0]}", f"averaged={arguments.output_dir}"])
    print(f"  trl-irl evaluate --models {models} --dataset_name data.jsonl --split train")


make_parser, run = command("average", AverageArguments, __doc__, main)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
