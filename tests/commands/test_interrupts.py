"""Ctrl-C: one line that says what is saved and how to go on, no traceback, and a shell's status for it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.distributed.launchers import cpu_twin
from trl_irl.commands import evaluate, prepare
from trl_irl.commands.console.failures import run_training


def interrupted(words, ready, folder):
    """
    Status and messages of a command that gets SIGINT, as all its processes do from a terminal, when `ready` says so.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            stdout=file,
            stderr=file,
            env=environment,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    end = time.monotonic() + 240
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    status = process.wait(timeout=120)
    text = log.read_text(errors="replace").replace("\r", "\n")
    assert "Traceback" not in text and "Error" not in text, text[-3000:]
    return status, [line for line in text.split("\n") if "interrupted" in line]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.any_trl)])
def test_training(processes, model_folder, tmp_path):
    rows = [{"prompt": f"{i}?", "completion": f" {i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"model_name_or_path": model_folder, "dataset_name": "rows.jsonl", "output_dir": "run", "save_steps": 2}
    keys |= {"use_cpu": "true", "bf16": "false", "report_to": "none", "max_steps": 100_000, "save_total_limit": 2}
    keys |= {"per_device_train_batch_size": 1, "save_only_model": "true", "logging_steps": 1000}
    words = [word for key, value in keys.items() for word in (f"--{key}", value)]
    config = "cpu" if processes == 1 else cpu_twin("ddp", 2, tmp_path)

    def saved() -> bool:  # whichever: the first may be gone again before it is looked for
        return any(tmp_path.glob("run/checkpoint-*/trainer_state.json"))

    command = ["trl_irl.cli", "irl", *words, "--save_strategy", "steps", "--accelerate_config", config]
    status, lines = interrupted(command, saved, tmp_path)
    assert status == 130 and len(lines) == 1
    assert lines[0].startswith("trl-irl irl: interrupted. The newest checkpoint is run/checkpoint-")
    assert lines[0].endswith("; `resume_from_checkpoint: true` goes on from there.")
    checkpoint = Path(tmp_path, lines[0].split("newest checkpoint is ")[1].split(";")[0])
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] >= 2


@pytest.mark.parametrize("command, package", [("irl", "accelerate"), ("evaluate", "trl")])
def test_while_it_is_still_importing(command, package, tmp_path):
    imported = tmp_path / "begun"
    (tmp_path / f"{package}.py").write_text(f"import time\nopen({str(imported)!r}, 'w').close()\ntime.sleep(60)\n")
    status, lines = interrupted(["trl_irl.cli", command], imported.exists, tmp_path)
    assert status == 130 and lines == ["trl-irl: interrupted. Nothing was begun."]


def test_commands_that_go_on(model_folder, tmp_path, monkeypatch, capsys):
    def at_the_second_temperature(*args, temperature, **options):
        if temperature:
            raise KeyboardInterrupt
        return [[Completion("x", 1, True, [1])] for _ in args[2]]

    from trl_irl.text.sampling import Completion

    monkeypatch.setattr("trl_irl.text.sampling.sample", at_the_second_temperature)
    words = ["--models", str(model_folder), "--task", "arithmetic", "--num_prompts", "2", "--max_new_tokens", "4"]
    assert evaluate.run([*words, "--temperatures", "0", "1", "--output_dir", str(tmp_path / "report")]) == 130
    told = f"\ntrl-irl evaluate: interrupted. The same command goes on from what was sampled, which is in {tmp_path}"
    assert capsys.readouterr().err.endswith(f"{told}/report/cells.\n")
    assert len(list((tmp_path / "report/cells").glob("*.jsonl"))) == 1


def test_commands_that_write_at_the_end(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trl_irl.tasks.prepare.measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    words = ["--tokenizer", str(model_folder), "--task", "arithmetic", "--num_train_rows", "4"]
    assert prepare.run([*words, "--output_dir", str(tmp_path / "data")]) == 130
    assert capsys.readouterr().err.endswith("trl-irl prepare: interrupted. Nothing was written.\n")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("rank, resumes", [("0", True), ("0", False), ("1", True)])
@pytest.mark.parametrize("checkpoints", [0, 1])
def test_what_a_training_says(rank, resumes, checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)

    def train(*_):
        for name in ("checkpoint-10", "checkpoint-20")[: 2 * checkpoints]:
            (tmp_path / "run" / name).mkdir(parents=True)
        if checkpoints:  # the second was cut off
            (tmp_path / "run/checkpoint-10/trainer_state.json").write_text("{}")
        raise KeyboardInterrupt

    arguments = SimpleNamespace(output_dir=str(tmp_path / "run"))
    parser = SimpleNamespace(prog="trl-irl x", parse=lambda argv: (None, arguments))
    assert run_training(parser, lambda *_: None, train, [], resumes=resumes) == 130
    error = capsys.readouterr().err
    told = {True: "`resume_from_checkpoint: true`", False: "as `model_name_or_path`"}[resumes]
    if rank == "1":
        assert error == ""
    elif checkpoints:
        assert error.count("\n") == 2 and f"newest checkpoint is {tmp_path}/run/checkpoint-10; {told}" in error
    else:
        assert error.endswith("\ntrl-irl x: interrupted. No checkpoint was saved: the same command begins anew "
                              "(`save_steps` saves more often).\n")  # fmt: skip
