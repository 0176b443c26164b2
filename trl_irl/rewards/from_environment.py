"""
[`SoftQReward`] and [`PreferenceReward`] by their dotted path, for recipes of `trl grpo` and `trl rloo`: they can name
a reward function, not build one, so its arguments come from the environment, which such a recipe can set.

```yaml
reward_funcs:
- trl_irl.rewards.from_environment.soft_q_reward
env:
  TRL_IRL_REWARD:
    model: outputs/gsm8k/irl_full
    aggregate: mean
```

From a shell: `export TRL_IRL_REWARD=outputs/gsm8k/irl_full`, or `'{model: outputs/gsm8k/irl_full, aggregate: mean}'`.
`preference_reward` is a reward model that `trl reward` trained, named by `TRL_IRL_PREFERENCE_REWARD`.
"""

import ast
import inspect
import os
from functools import cache

import yaml

from .preference_reward import PreferenceReward
from .soft_q_reward import SoftQReward


VARIABLE = "TRL_IRL_REWARD"
PREFERENCE_VARIABLE = "TRL_IRL_PREFERENCE_REWARD"
_REWARDS = {
    "soft_q_reward": (VARIABLE, SoftQReward),
    "preference_reward": (PREFERENCE_VARIABLE, PreferenceReward),
}


@cache
def _reward(variable: str, kind: type, value: str) -> SoftQReward | PreferenceReward:
    try:
        arguments = ast.literal_eval(value)  # TRL writes what stands under `env` as Python does: None, 1e-05
    except (ValueError, SyntaxError, TypeError):
        try:
            arguments = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"`{variable}={value}` cannot be read as YAML: {error}") from error
    if isinstance(arguments, str | int | float):  # a folder may be named 2024
        arguments = {"model": arguments if isinstance(arguments, str) else value.strip()}
    if not isinstance(arguments, dict) or arguments.get("model") is None:
        raise ValueError(f"`{variable}={value}` names no `model`: set it to a folder, a Hub id, or `{{model: ...}}`.")
    known = [name for name in inspect.signature(kind).parameters if name != "tokenizer"]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ValueError(f"`{variable}` has the unknown key `{unknown[0]}`. There are {', '.join(known)}.")
    try:
        return kind(**arguments)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`{variable}`: {error}") from error
    except (TypeError, AttributeError) as error:  # of a dtype that torch has not
        raise ValueError(f"`{variable}={value}` has a value of another kind than its key takes: {error}") from error


def __getattr__(name: str) -> SoftQReward | PreferenceReward:
    # Built when TRL's script looks the name up, after it has set the recipe's `env` and before it loads the policy.
    if name not in _REWARDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    variable, kind = _REWARDS[name]
    if variable not in os.environ:
        raise ValueError(
            f"The environment has no `{variable}`, which names the model that holds the reward. Set it under `env:` "
            f"in the recipe, or `export {variable}=path/of/the/model`."
        )
    return _reward(variable, kind, os.environ[variable])
