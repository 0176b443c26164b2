"""A run that is killed goes on from its newest whole checkpoint and ends where it would have ended."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.test_irl import ROOT, run, write_recipe
from trl_irl.trainer.checkpoints import newest_checkpoint


def test_newest_checkpoint_skips_what_was_not_written_to_its_end(tmp_path):
    assert newest_checkpoint(str(tmp_path / "nowhere")) is None
    assert newest_checkpoint(str(tmp_path)) is None
    for step, state in {2: "{}", 10: "{}", 12: '{"cut": ', 14: None}.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    with pytest.warns(UserWarning, match="not written to its end") as warned:
        assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")  # and not -2, as text would sort
    assert len(warned) == 2


def test_kill_and_resume(model_folder, tmp_path):
    """kill -9 at a random moment after a random checkpoint: the same weights and schedule as without the kill."""
    options = {"max_steps": 40, "save_steps": 3, "mle_warmup_steps": 10, "lambda_td_warmup_steps": 20, "seed": 1}
    recipe = write_recipe(tmp_path, model_folder, **options, resume_from_checkpoint=True)
    command = ["trl_irl.cli", "irl", "--config", recipe, "--accelerate_config", "cpu"]
    run(*command, "--output_dir", tmp_path / "whole")

    rng = random.Random()
    victim = 3 * rng.randint(1, 8)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env=environment,
        start_new_session=True,  # the launcher and the training die together
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / f"run/checkpoint-{victim}").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(rng.random() * 0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run/model.safetensors").exists(), "it had ended before it was killed"

    run(*command)
    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6)
