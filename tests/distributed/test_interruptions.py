"""A run of two processes told to end, short of a rank or a disk, or given bad rows: no hang, nothing half-written."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.distributed.launchers import finish, history, largest_difference, make_inputs, run, start, weights
from trl_irl.trainer.runtime.checkpoints import newest_checkpoint


LONG = {"max_steps": 10_000, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "logging_steps": 1000}
no_deepspeed = importlib.util.find_spec("deepspeed") is None
pytestmark = pytest.mark.any_trl
needs_deepspeed = pytest.mark.skipif(no_deepspeed, reason="DeepSpeed is not installed")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("interruptions"))


def wait_for_checkpoint(process, output):
    deadline = time.monotonic() + 120
    while newest_checkpoint(output) is None:
        assert process.poll() is None and time.monotonic() < deadline, finish(process)[2][-3000:]
        time.sleep(0.01)


def ranks(process):
    """The training processes by rank."""
    children = psutil.Process(process.pid).children(recursive=True)
    found = {}
    for child in children:
        with contextlib.suppress(psutil.Error):
            environment = child.environ()
            if "RANK" in environment and "trl_irl.commands.irl" in child.cmdline():
                found[int(environment["RANK"])] = child
    return found


@pytest.mark.parametrize("launcher, processes", [("cpu", 1), pytest.param("zero3", 2, marks=needs_deepspeed)])
def test_sigterm_to_the_launcher(launcher, processes, inputs):
    """As a scheduler ends a job: a checkpoint at the step it came in, status 0, and the run can be taken up again."""
    options = {"max_steps": 400, "save_on_signal": True, "resume_from_checkpoint": True}
    output = inputs / f"sigterm-{launcher}"
    process = start(inputs, output, launcher, processes, **{**LONG, **options, "logging_steps": 1, "save_steps": 50})
    wait_for_checkpoint(process, output)
    process.send_signal(signal.SIGTERM)
    status, stdout, stderr = finish(process)
    assert status == 0, stderr[-3000:]
    checkpoint = newest_checkpoint(output)
    step = int(checkpoint.split("-")[-1])
    assert f"Stopped by SIGTERM after step {step}. `resume_from_checkpoint: true` goes on from {checkpoint}" in stdout
    assert step % 50 or step < 400
    assert not (output / "model.safetensors").exists()

    options |= {"max_steps": step + 5, "lr_scheduler_type": "constant"}
    assert finish(start(inputs, output, launcher, processes, **options))[0] == 0
    assert [entry["step"] for entry in history(output)] == list(range(1, step + 6))


@needs_deepspeed
def test_sigterm_and_resume_end_as_if_nothing_had_happened(inputs):
    options = {"max_steps": 60, "save_on_signal": True, "resume_from_checkpoint": True, "save_strategy": "steps"}
    options |= {"save_steps": 5, "lambda_td_warmup_steps": 50}
    _, expected = run(inputs, "sigterm-whole", "zero3", 2, **options)
    output = inputs / "sigterm-again"
    process = start(inputs, output, "zero3", 2, **options)
    wait_for_checkpoint(process, output)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0 and not (output / "model.safetensors").exists()
    assert finish(start(inputs, output, "zero3", 2, **options))[0] == 0
    assert largest_difference(weights(output), expected) == 0


@pytest.mark.parametrize("launcher", ["ddp", pytest.param("zero3", marks=needs_deepspeed)])
def test_a_rank_that_dies(launcher, inputs):
    output = inputs / f"death-{launcher}"
    process = start(inputs, output, launcher, 2, **LONG)
    wait_for_checkpoint(process, output)
    ranks(process)[1].kill()
    began = time.monotonic()
    status, _, stderr = finish(process, timeout=100)
    assert status != 0 and time.monotonic() - began < 60
    assert newest_checkpoint(output) is not None
    if "[rank 0]" in stderr:  # unless the launcher ended it before it could notice
        assert "trl-irl irl: error: another process of this run died" in stderr
        assert "checkpoint-" in stderr and "`resume_from_checkpoint: true` goes on from there" in stderr


@pytest.mark.parametrize("launcher", ["ddp", pytest.param("zero3", marks=needs_deepspeed)])
def test_a_rank_that_hangs(launcher, inputs):
    """The other waits for as long as the config says, then says what it waited for, and the launcher ends them all."""
    output = inputs / f"hang-{launcher}"
    process = start(inputs, output, launcher, 2, **LONG, ddp_timeout=5)
    wait_for_checkpoint(process, output)
    hanging = ranks(process)[1]
    hanging.suspend()
    began = time.monotonic()
    try:
        status, _, stderr = finish(process, timeout=120)
    finally:
        with contextlib.suppress(psutil.Error):
            hanging.kill()
    assert status == 1 and 4 < time.monotonic() - began < 60
    assert "[rank 0] trl-irl irl: error: another process of this run died, or did not answer for" in stderr
    assert "`ddp_timeout: 5` seconds" in stderr and "goes on from there" in stderr
    assert newest_checkpoint(output) is not None


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("launcher", ["ddp", pytest.param("zero3", marks=needs_deepspeed)])
def test_a_disk_that_fills_up(launcher, inputs, small_disk):
    output = small_disk / "run"
    output.mkdir()
    process = start(inputs, output, launcher, 2, **{**LONG, "save_total_limit": None})
    status, _, stderr = finish(process, timeout=200)
    assert status == 1
    assert "trl-irl irl: error: Writing" in stderr and "MiB are free on that disk" in stderr
    assert "Traceback" not in stderr, stderr[-6000:]  # whole: which error was it that no rank knows?
    checkpoints = sorted(int(path.name.split("-")[-1]) for path in output.glob("checkpoint-*"))
    assert checkpoints, "the disk was too small for one checkpoint"
    assert f"The newest checkpoint is {output / f'checkpoint-{checkpoints[-1]}'}" in stderr
    for step in checkpoints:
        assert json.loads((output / f"checkpoint-{step}/trainer_state.json").read_text())["global_step"] == step
        assert (output / f"checkpoint-{step}/model.safetensors").stat().st_size > 0


def test_a_row_that_is_not_text(inputs, tmp_path):
    rows = [{"prompt": "One", "completion": " two"}, {"prompt": "Two", "completion": None}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    began = time.monotonic()
    output = tmp_path / "run"
    status, _, stderr = finish(start(inputs, output, "ddp", 2, dataset_name=str(tmp_path / "rows.jsonl")))
    assert status == 2 and time.monotonic() - began < 60
    for rank in (0, 1):
        assert f"[rank {rank}] trl-irl irl: error: Row 1 of the train dataset has nothing (null) as its" in stderr
    assert "Traceback" not in stderr
    assert sorted(os.listdir(output)) == ["ddp.yaml", "recipe.yaml"]  # the test's own files
