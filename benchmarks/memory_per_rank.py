"""
Peak memory a rank of the `irl` command on two CPU processes, data parallel (the whole model on each) against ZeRO-2,
ZeRO-3 and FSDP2, on a model whose weights, gradients and Adam moments are most of it.

DeepSpeed by default keeps a billion gathered parameters and gradient buckets of half a billion elements, each more
than this whole model, so "zero3" is measured twice: as shipped, and with these limits scaled down with the model.

`.venv/bin/python -m benchmarks.memory_per_rank` (3 minutes on 2 cores; `--launchers ddp zero3` for a part)
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml


SCALED = {  # elements
    "stage3_max_live_parameters": 10_000_000,
    "stage3_max_reuse_distance": 10_000_000,
    "stage3_prefetch_bucket_size": 5_000_000,
    "reduce_bucket_size": 5_000_000,
}


def worker(recipe: str, scaled: bool) -> None:
    """One rank: the command, with its memory before the model is there and at its peak."""
    import psutil
    from transformers import TrainerCallback

    from tests.distributed.observed_irl import allow_fsdp_on_cpu
    from trl_irl.commands import irl
    from trl_irl.commands.console.failures import leave

    allow_fsdp_on_cpu()
    arguments = irl.make_parser().parse(["--config", recipe])
    before = psutil.Process().memory_info().rss / 2**20

    class Report(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            path = Path(args.output_dir, f"rank-{os.environ.get('RANK', 0)}.json")
            path.write_text(json.dumps({"before": before, "peak": peak}), encoding="utf-8")

    trainer, _ = irl.make_trainer(*arguments)
    trainer.add_callback(Report)
    if scaled:
        trainer.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"].update(SCALED)
    trainer.train()
    trainer.end()
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launchers", nargs="+", default=["ddp", "zero2", "zero3", "zero3-scaled", "fsdp2"])
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()

    from tests.conftest import make_model, make_tokenizer
    from tests.distributed.launchers import cpu_twin
    from tests.trainer.conftest import ROWS

    kept = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sizes = {
            "hidden_size": arguments.hidden_size,
            "intermediate_size": 4 * arguments.hidden_size,
            "num_hidden_layers": arguments.layers,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
        }
        model = make_model("llama", **sizes)
        weights = sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder / "model")
        make_tokenizer().save_pretrained(folder / "model")
        del model
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        states = weights * 16 / 2**20
        print(f"{weights / 1e6:.0f} M weights: weights, gradients and Adam's moments in float32 are {states:.0f} MiB.")
        print("| launcher | peak MiB per rank, beyond the imports |\n|---|---:|", flush=True)
        for launcher in arguments.launchers:
            output = folder / launcher
            output.mkdir()
            recipe = {
                "model_name_or_path": str(folder / "model"),
                "dataset_name": str(folder / "rows.jsonl"),
                "output_dir": str(output),
                "max_steps": 4,
                "per_device_train_batch_size": 2,
                "gradient_checkpointing": True,
                "bf16": False,
                "use_cpu": True,
                "save_strategy": "no",
                "report_to": "none",
            }
            (output / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
            command = [sys.executable, "-m", "accelerate.commands.launch"]
            command += ["--config_file", str(cpu_twin(launcher.removesuffix("-scaled"), 2, output))]
            command += ["-m", "benchmarks.memory_per_rank", "--worker", str(output / "recipe.yaml")]
            command += ["--scaled"] if launcher.endswith("-scaled") else []
            # glibc gives what is freed back to the system at once, so that the peak is of what was in use.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
            result = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert result.returncode == 0, result.stderr[-3000:]
            ranks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("rank-*.json"))]
            peaks = [rank["peak"] - rank["before"] for rank in ranks]
            kept.append({"launcher": launcher, "weights": weights, "states_mib": states, "peak_mib": peaks})
            if arguments.json:
                arguments.json.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            print(f"| {launcher} x2 | {', '.join(f'{peak:.0f}' for peak in peaks)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], "--scaled" in sys.argv)
    else:
        main()
