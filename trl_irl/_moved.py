"""
Import paths of version 0.1.0 that the documentation named, for one release: they import from where things are now, and
say so with a `DeprecationWarning`. This file can go with version 0.3.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


MOVED = {
    "trl_irl.commands.demo": "trl_irl.demos.demo",
    "trl_irl.commands.failures": "trl_irl.commands.console.failures",
    "trl_irl.commands.noise": "trl_irl.commands.console.noise",
    "trl_irl.commands.recipe_runs": "trl_irl.demos.recipe_runs",
    "trl_irl.commands.rlhf_demo": "trl_irl.demos.rlhf_demo",
    "trl_irl.commands.task_arguments": "trl_irl.tasks.arguments",
    "trl_irl.commands.terminal": "trl_irl.commands.console.terminal",
    "trl_irl.evaluation.matched": "trl_irl.evaluation.equal_diversity",
    "trl_irl.evaluation.sampling": "trl_irl.text.sampling",
    "trl_irl.rewards.discriminator": "trl_irl.trainer.gail.discriminator",
    "trl_irl.rewards.held_out": "trl_irl.rewards.held_out_loss",
    "trl_irl.rewards.loading": "trl_irl.rewards.frozen_models",
    "trl_irl.rewards.reward_model": "trl_irl.trainer.ppo.ppo_reward_model",
    "trl_irl.rewards.settings": "trl_irl.rewards.soft_q_settings",
    "trl_irl.soft_q.objective": "trl_irl.soft_q.terms",
    "trl_irl.soft_q.online_objective": "trl_irl.soft_q.objectives.online",
    "trl_irl.trainer.checkpoints": "trl_irl.trainer.runtime.checkpoints",
    "trl_irl.trainer.gail_config": "trl_irl.trainer.gail.config",
    "trl_irl.trainer.gail_trainer": "trl_irl.trainer.gail.trainer",
    "trl_irl.trainer.irl_config": "trl_irl.trainer.irl.config",
    "trl_irl.trainer.irl_trainer": "trl_irl.trainer.irl.trainer",
    "trl_irl.trainer.online_irl_config": "trl_irl.trainer.online_irl.config",
    "trl_irl.trainer.online_irl_trainer": "trl_irl.trainer.online_irl.trainer",
}

# Names that a package itself gave, by package: where each is now.
MOVED_NAMES = {
    "trl_irl.rewards": {
        "Discriminator": "trl_irl.trainer.gail.discriminator",
        "RewardError": "trl_irl.trainer.ppo.ppo_reward_model",
        "RewardFunctionModel": "trl_irl.trainer.ppo.ppo_reward_model",
        "SoftQRewardModel": "trl_irl.trainer.ppo.ppo_reward_model",
    },
}


class _Moved(MetaPathFinder, InspectLoader):
    """Finds an old path, warns, and fills its module with the names of the new one; `python -m` runs the new one."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def get_source(self, fullname: str) -> str:
        return f"import runpy\nrunpy.run_module({MOVED[fullname]!r}, run_name='__main__', alter_sys=True)\n"

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(
            f"`{module.__name__}` is called `{new}` now; the old name goes with version 0.3.",
            DeprecationWarning,
            stacklevel=2,  # Python counts no frame of its import machinery
        )
        names = vars(import_module(new))
        module.__dict__.update({name: value for name, value in names.items() if not name.startswith("__")})


def with_old_names(package: str, get: Callable[[str], object]) -> Callable[[str], object]:
    """A package's `__getattr__` that gives the names of [`MOVED_NAMES`] too, and warns; `get` gives the others."""

    def get_either(name: str):
        if name not in MOVED_NAMES[package]:
            return get(name)
        home = MOVED_NAMES[package][name]
        warnings.warn(
            f"`{package}.{name}` is `{home}.{name}` now; the old name goes with version 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(home), name)

    return get_either


def keep_old_paths() -> None:
    """From here on the paths of [`MOVED`] can be imported, once for a process."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
