"""Import paths that the documentation of 0.1.0 named: they go on working, and say where things are now."""

import importlib
import subprocess
import sys
import warnings

import pytest

import trl_irl
from trl_irl._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_what_the_new_one_gives(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    new = MOVED[old]
    try:
        there = importlib.import_module(new)
    except ImportError as error:
        pytest.skip(f"{new}: {error}")
    with pytest.warns(DeprecationWarning, match=rf"`{old}` is called `{new}` now") as told:
        found = importlib.import_module(old)
    assert told[0].filename == importlib.__file__  # whoever imports, not the machinery
    public = [name for name in vars(there) if not name.startswith("_")]
    assert public and all(getattr(found, name) is getattr(there, name) for name in public)


# Written down by hand from what 0.1.0 had, so that the table cannot lose a line unseen.
OLD = {
    "commands.demo": "build_base_model",
    "commands.failures": "run_reporting",
    "commands.noise": "silence",
    "commands.recipe_runs": "run_recipe",
    "commands.rlhf_demo": "rloo_recipe",
    "commands.task_arguments": "TaskArguments",
    "commands.terminal": "use_terminal",
    "evaluation.matched": "difference_at_levels",
    "evaluation.sampling": "sample_completions",
    "rewards": "Discriminator RewardError RewardFunctionModel SoftQRewardModel PreferenceReward SoftQReward",
    "rewards.discriminator": "Discriminator",
    "rewards.held_out": "held_out_sums",
    "rewards.loading": "load_language_model",
    "rewards.reward_model": "SoftQRewardModel",
    "rewards.settings": "saved_settings",
    "soft_q.objective": "soft_q_terms",
    "soft_q.online_objective": "value_drop",
    "trainer": "GAILConfig GAILTrainer IRLConfig IRLTrainer OnlineIRLConfig OnlineIRLTrainer",
    "trainer.checkpoints": "newest_checkpoint",
    "trainer.gail_config": "GAILConfig",
    "trainer.gail_trainer": "GAILTrainer",
    "trainer.irl_config": "IRLConfig",
    "trainer.irl_trainer": "IRLTrainer",
    "trainer.online_irl_config": "OnlineIRLConfig",
    "trainer.online_irl_trainer": "OnlineIRLTrainer",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", OLD)
def test_what_0_1_0_had_is_still_there(old):
    try:
        module = importlib.import_module(f"trl_irl.{old}")
        for name in OLD[old].split():
            assert callable(getattr(module, name))
    except ImportError as error:
        if "trl_irl" in str(error):
            raise
        pytest.skip(str(error))  # PPO needs what TRL no longer has


def test_a_name_that_left_its_package_says_where_it_is():
    with pytest.warns(DeprecationWarning, match=r"`trl_irl\.trainer\.gail\.discriminator\.Discriminator` now") as told:
        assert trl_irl.rewards.Discriminator.__module__ == "trl_irl.trainer.gail.discriminator"
    assert told[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = trl_irl.rewards.Nothing


def test_an_old_path_can_be_run():
    done = subprocess.run([sys.executable, "-m", "trl_irl.commands.demo", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output_dir" in done.stdout


@pytest.mark.any_trl
def test_what_readmes_showed():
    code = "from trl_irl.evaluation.sampling import sample_completions as old\n"
    code += "from trl_irl.text.sampling import sample_completions as new\nassert old is new"
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert "<string>:1: DeprecationWarning: `trl_irl.evaluation.sampling` is called" in done.stderr


def test_new_paths_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert importlib.reload(trl_irl).__all__


def test_the_public_names_are_there_and_lazy():
    """The public names; one that is a reward comes without the trainers."""
    code = "import sys, trl_irl\nfor name in ('PreferenceReward', 'SoftQReward'): getattr(trl_irl, name)\n"
    code += "print(sorted(m for m in ('trl', 'peft', 'bitsandbytes', 'trl_irl.trainer') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    trainers = {
        f"{kind}{what}"
        for kind in ("IRL", "OnlineIRL", "GAIL", "Seq2SeqIRL", "Seq2SeqOnlineIRL")
        for what in ("Config", "Trainer")
    }
    assert set(trl_irl.__all__) == trainers | {"PreferenceReward", "SoftQReward", "evaluate"}
    assert done.stdout.strip() == "[]"


def test_an_editor_can_complete_the_names():
    for package in (trl_irl, trl_irl.rewards, trl_irl.evaluation, trl_irl.trainer):
        assert set(package.__all__) <= set(dir(package))
