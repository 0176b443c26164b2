"""
[`SoftQReward`] by its dotted path, for recipes of `trl grpo` and `trl rloo`: they can name a reward function, not
build one, so its arguments come from the environment, which such a recipe can set.

```yaml
reward_funcs:
- trl_irl.rewards.from_environment.soft_q_reward
env:
  TRL_IRL_REWARD:
    model: outputs/gsm8k/irl_full
    aggregate: mean
```

From a shell: `export TRL_IRL_REWARD=outputs/gsm8k/irl_full`, or `'{model: outputs/gsm8k/irl_full, aggregate: mean}'`.
"""

import inspect
import os
from functools import cache

import yaml

from .soft_q_reward import SoftQReward


VARIABLE = "TRL_IRL_REWARD"
_ARGUMENTS = [name for name in inspect.signature(SoftQReward).parameters if name != "tokenizer"]


@cache
def _reward(told: str) -> SoftQReward:
    arguments = yaml.safe_load(told)
    if isinstance(arguments, str):
        arguments = {"model": arguments}
    if not isinstance(arguments, dict) or "model" not in arguments:
        raise ValueError(f"`{VARIABLE}={told}` names no `model`: set it to a folder, a Hub id, or `{{model: ...}}`.")
    unknown = [name for name in arguments if name not in _ARGUMENTS]
    if unknown:
        raise ValueError(f"`{VARIABLE}` has the unknown key `{unknown[0]}`. There are {', '.join(_ARGUMENTS)}.")
    return SoftQReward(**arguments)


def __getattr__(name: str) -> SoftQReward:
    # Built when TRL's script looks the name up, after it has set the recipe's `env` and before it loads the policy.
    if name != "soft_q_reward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if VARIABLE not in os.environ:
        raise ValueError(
            f"The environment has no `{VARIABLE}`, which names the model that holds the reward. Set it under `env:` "
            f"in the recipe, or `export {VARIABLE}=path/of/the/model`."
        )
    return _reward(os.environ[VARIABLE])
