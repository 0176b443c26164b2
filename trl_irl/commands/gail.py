"""
Fine-tune against a discriminator that learns to tell the model's completions from the demonstrations (GAIL).

```bash
trl-irl gail --config recipes/arithmetic/gail.yaml --accelerate_config cpu
```

It takes the keys of `trl-irl irl` for data, model and adapter, and those of [`GAILConfig`].
"""

from . import irl


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig

    from ..evaluation.callback import GenerationArguments
    from ..trainer import GAILConfig
    from .parser import RecipeParser

    arguments = (irl.IRLScriptArguments, GAILConfig, ModelConfig, DatasetMixtureConfig, GenerationArguments)
    return RecipeParser(arguments, __doc__, prog="trl-irl gail")


def run(argv: list[str] | None = None) -> int:
    """The command; see [`~commands.failures.run_training`]."""
    return irl.run_with(make_parser(), argv)


if __name__ == "__main__":
    from trl_irl.commands.failures import leave

    leave(run())
