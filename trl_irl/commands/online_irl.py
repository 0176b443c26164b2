"""
Fine-tune on demonstrations and on the model's own completions with the online inverse soft-Q objective.

```bash
trl-irl online-irl --config recipes/arithmetic/online_irl.yaml --accelerate_config cpu
```

It takes what `trl-irl irl` takes, and the keys of [`OnlineIRLConfig`].
"""

from . import irl


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig

    from ..evaluation.callback import GenerationArguments
    from ..trainer import OnlineIRLConfig
    from .parser import RecipeParser

    arguments = (irl.IRLScriptArguments, OnlineIRLConfig, ModelConfig, DatasetMixtureConfig, GenerationArguments)
    return RecipeParser(arguments, __doc__, prog="trl-irl online-irl")


def run(argv: list[str] | None = None) -> int:
    """The command; see [`~commands.failures.run_training`]."""
    return irl.run_with(make_parser(), argv)


if __name__ == "__main__":
    from trl_irl.commands.failures import leave

    leave(run())
