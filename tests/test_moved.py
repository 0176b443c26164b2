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
    """The nine public names, each alone in a process of its own, without the trainers where it is a reward."""
    code = "import sys, trl_irl\nfor name in trl_irl.__all__[-3:-1]: getattr(trl_irl, name)\n"
    code += "print(sorted(m for m in ('trl', 'peft', 'bitsandbytes', 'trl_irl.trainer') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert trl_irl.__all__[-3:] == ["PreferenceReward", "SoftQReward", "evaluate"]
    assert done.stdout.strip() == "[]"
