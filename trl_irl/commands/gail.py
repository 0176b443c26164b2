"""
Fine-tune against a discriminator that learns to tell the model's completions from the demonstrations (GAIL).

```bash
trl-irl gail --config recipes/arithmetic/gail.yaml --accelerate_config cpu
```

It takes the keys of `trl-irl irl` for data, model and adapter, and those of [`GAILConfig`].
"""

from .irl import training_command


make_parser, run = training_command("gail", __doc__, "GAILConfig")

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
