"""
Fine-tune on demonstrations and on the model's own completions with the online inverse soft-Q objective.

```bash
trl-irl online-irl --config recipes/arithmetic/online_irl.yaml --accelerate_config cpu
```

It takes what `trl-irl irl` takes, and the keys of [`OnlineIRLConfig`].
"""

from .irl import training_command


make_parser, run = training_command("online-irl", __doc__, "OnlineIRLConfig")

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
