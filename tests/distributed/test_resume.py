"""Three of the kills of `tests/slow/kill_and_resume.py`."""

import importlib.util
import random

import pytest

from tests.distributed.launchers import make_inputs, run
from tests.slow.kill_and_resume import OPTIONS, kill_and_resume


@pytest.mark.any_trl
@pytest.mark.parametrize("launcher, processes", [("cpu", 1), ("ddp", 2), ("zero3", 2)])
def test_kill_and_resume(launcher, processes, tmp_path):
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    inputs = make_inputs(tmp_path)
    expected = run(inputs, "whole", launcher, processes, **OPTIONS)
    difference, _ = kill_and_resume(inputs, "run", launcher, processes, random.Random(seed), expected)
    assert difference == 0
