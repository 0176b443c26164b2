"""
Every launcher with every option, each on two CPU processes, against one process with none of the options: the table
of largest differences. `python -m tests.slow.equal_launchers` (about 40 minutes on 2 cores); `--launchers ddp` for a
part of it.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

from tests.distributed.launchers import (
    ACCUMULATED,
    CHECKPOINTED,
    METHODS,
    largest_difference,
    make_inputs,
    run,
)


OPTIONS = {"": {}, "checkpointing": CHECKPOINTED, "accumulation": ACCUMULATED, "both": CHECKPOINTED | ACCUMULATED}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launchers", nargs="+", default=["cpu", "ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder))
        references = {
            method: run(inputs, f"one-{method}", "cpu", 1, **METHODS[method]) for method in arguments.methods
        }
        print(
            "| launcher | method | options | first loss | losses | weights |\n|---|---|---|---:|---:|---:|",
            flush=True,
        )
        for launcher, method, option in itertools.product(arguments.launchers, arguments.methods, OPTIONS):
            if (launcher, option) == ("cpu", "") or ("qlora" in method and launcher in ("zero3", "fsdp2")):
                continue  # the reference itself, and what is refused
            processes = 1 if launcher == "cpu" else 2
            overrides = {**METHODS[method], **OPTIONS[option]}
            if "per_device_train_batch_size" in overrides:
                overrides["per_device_train_batch_size"] = 2 // processes
            try:
                history, weights = run(inputs, f"{launcher}-{method}-{option}", launcher, processes, **overrides)
            except AssertionError as error:
                print(f"| {launcher} | {method} | {option} | FAILED: {str(error)[-300:]} |", flush=True)
                continue
            expected, expected_weights = references[method]
            losses = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(history, expected, strict=True)]
            difference = largest_difference(weights, expected_weights)
            row = f"{losses[0]:.0e} | {max(losses):.0e} | {difference:.0e}"
            print(f"| {launcher} x{processes} | {method} | {option} | {row} |", flush=True)


if __name__ == "__main__":
    main()
