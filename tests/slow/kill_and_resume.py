"""
Kill -9 a run at a random moment, start it again with `resume_from_checkpoint: true`, and compare its end with that of
a run that was left alone: weights, losses, schedules and counts.

`python -m tests.slow.kill_and_resume --launcher zero3 --kills 20` (about 40 s a kill on 2 cores)
"""

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.distributed.launchers import finish, history, kill, largest_difference, make_inputs, run, start, weights


OPTIONS = {
    "max_steps": 30,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 15,
    "mle_warmup_steps": 6,
    "lambda_td_warmup_steps": 18,
    "resume_from_checkpoint": True,
    "seed": 1,
}


def kill_at_random(inputs, name, launcher, processes, rng, **options):
    """Start a run and kill it some time after a random step. One that was faster than that is started again."""
    output = inputs / name
    victim = OPTIONS["save_steps"] * rng.randint(1, OPTIONS["max_steps"] // OPTIONS["save_steps"] - 3)
    process = start(inputs, output, launcher, processes, **OPTIONS, **options)
    deadline = time.monotonic() + 120
    while not any(_step(path) >= victim for path in output.glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, finish(process)[2][-3000:]
        time.sleep(0.001)
    time.sleep(rng.random() * 0.1)
    kill(process)
    if (output / "model.safetensors").exists():
        shutil.rmtree(output)
        kill_at_random(inputs, name, launcher, processes, rng, **options)


def _step(path):
    return int(path.name.split("-")[-1])


def kill_and_resume(inputs, name, launcher, processes, rng, expected, **options):
    """
    Returns:
        The largest absolute difference of the final weights, and whether a half-written checkpoint was skipped.
    """
    kill_at_random(inputs, name, launcher, processes, rng, **options)
    output = inputs / name
    status, _, stderr = finish(start(inputs, output, launcher, processes, **OPTIONS, **options))
    assert status == 0, stderr[-3000:]
    expected_history, expected_weights = expected
    actual = history(output)
    assert [entry["step"] for entry in actual] == list(range(1, OPTIONS["max_steps"] + 1))
    for metric in ("loss", "learning_rate", "lambda_td", "num_tokens"):
        pairs = [(a["step"], a[metric], b[metric]) for a, b in zip(actual, expected_history, strict=True)]
        assert all(ours == theirs for _, ours, theirs in pairs), (metric, pairs)
    return largest_difference(weights(output), expected_weights), "was not written to its end" in stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launcher", default="cpu", choices=["cpu", "ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    processes = 1 if arguments.launcher == "cpu" else 2
    differences, half_written = [], 0
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder))
        expected = run(inputs, "whole", arguments.launcher, processes, **OPTIONS)
        for i in range(arguments.kills):
            difference, skipped = kill_and_resume(inputs, f"run-{i}", arguments.launcher, processes, rng, expected)
            differences.append(difference)
            half_written += skipped
            print(f"kill {i + 1}: largest difference of a weight {difference:.1e}", flush=True)
    equal = sum(difference == 0 for difference in differences)
    print(
        f"{arguments.launcher} x{processes}: {arguments.kills} kills, {equal} endings equal to the last bit, largest "
        f"difference {max(differences):.1e}; {half_written} times a half-written checkpoint was skipped."
    )


if __name__ == "__main__":
    main()
