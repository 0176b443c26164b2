"""
Import paths of version 0.1.0 that the documentation named, for one release: they import from where things are now, and
say so with a `DeprecationWarning`. This file can go with version 0.3.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


MOVED = {
    "trl_irl.commands.demo": "trl_irl.demos.demo",
    "trl_irl.commands.recipe_runs": "trl_irl.demos.recipe_runs",
    "trl_irl.commands.rlhf_demo": "trl_irl.demos.rlhf_demo",
    "trl_irl.evaluation.sampling": "trl_irl.text.sampling",
    "trl_irl.rewards.discriminator": "trl_irl.trainer.gail.discriminator",
    "trl_irl.rewards.loading": "trl_irl.rewards.frozen_models",
    "trl_irl.rewards.reward_model": "trl_irl.trainer.ppo.ppo_reward_model",
    "trl_irl.trainer.gail_config": "trl_irl.trainer.gail.config",
    "trl_irl.trainer.gail_trainer": "trl_irl.trainer.gail.trainer",
    "trl_irl.trainer.irl_config": "trl_irl.trainer.irl.config",
    "trl_irl.trainer.irl_trainer": "trl_irl.trainer.irl.trainer",
    "trl_irl.trainer.online_irl_config": "trl_irl.trainer.online_irl.config",
    "trl_irl.trainer.online_irl_trainer": "trl_irl.trainer.online_irl.trainer",
}


class _Moved(MetaPathFinder, Loader):
    """Finds an old path, warns, and fills its module with the names of the new one."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(
            f"`{module.__name__}` is called `{new}` now; the old name goes with version 0.3.",
            DeprecationWarning,
            stacklevel=2,  # Python counts no frame of its import machinery
        )
        names = vars(import_module(new))
        module.__dict__.update({name: value for name, value in names.items() if not name.startswith("__")})


def keep_old_paths() -> None:
    """From here on the paths of [`MOVED`] can be imported, once for a process."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
