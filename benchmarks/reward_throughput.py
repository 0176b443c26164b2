"""
Time and memory of reading rewards off a model, against one forward pass with full logits on the same batch, each in a
process of its own.

```bash
.venv/bin/python -m benchmarks.reward_throughput
.venv/bin/python -m benchmarks.reward_throughput --device cuda --model-size 0.5b --batch-size 16 --length 1024
```

The full-logits pass is `model(input_ids, attention_mask)` and nothing more: it has not even looked at a logit. Two
batches: GSM8K's (or generated word problems'), of which solutions are scored, and the same with every token scored.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.irl_step import _ALLOCATOR, SIZES, make_rows, model_config


VARIANTS = ("rewards", "full logits")


def _status(name: str) -> int:
    """Bytes in memory now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(variant: str, everything: bool, options: argparse.Namespace) -> dict:
    """Median seconds of a batch and the peak memory beyond the model's weights, in this process."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from trl_irl.rewards.token_values import token_values

    if options.threads:
        torch.set_num_threads(options.threads)
    on_cuda = options.device == "cuda"
    rows = [(row["input_ids"], row["labels"]) for row in make_rows(options.data, options.batch_size, options.length)]
    if everything:
        rows = [(ids, [-100, *ids[1:]]) for ids, _ in rows]
    set_seed(0)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    model = AutoModelForCausalLM.from_config(model_config(options), dtype=dtype).to(options.device).eval()

    def run() -> None:
        if variant == "rewards":
            token_values(model, rows, {1}, batch_size=options.batch_size)
            return
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows], device=options.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows], device=options.device)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, use_cache=False)

    def synchronised_time() -> float:
        if on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    token_values(model, [([5, 6], [-100, 6])], {1})  # a small batch first: what code needs is not of the data
    if on_cuda:
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="utf-8"
        )  # the maximum starts anew, at what is there now
        before = _status("VmRSS")
    seconds = []
    for _ in range(options.warmup + options.repeats):
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        start = synchronised_time()
        run()
        seconds.append(synchronised_time() - start)
    peak = torch.cuda.max_memory_allocated() if on_cuda else _status("VmHWM")
    return {
        "seconds": statistics.median(seconds[options.warmup :]),
        "mib": (peak - before) / 2**20,
        "tokens": sum(len(ids) for ids, _ in rows),
        "scored": sum(label != -100 for _, labels in rows for label in labels[1:]),
        "device": torch.cuda.get_device_name() if on_cuda else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def main() -> None:
    shared = Path(__file__).parents[2] / "shared/data/gsm8k/train.jsonl"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model-size", choices=list(SIZES), default="40m")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="longest row, in tokens")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's default")
    parser.add_argument("--data", default=str(shared) if shared.is_file() else None)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        variant, batch = options.worker
        print("RESULT " + json.dumps(measure(variant, batch == "everything", options)))
        return
    lines, kept = [], []
    for batch in ("solutions", "everything"):
        found = {}
        for variant in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.reward_throughput", *sys.argv[1:], "--worker", variant, batch]
            run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_ALLOCATOR})
            results = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
            if not results:
                sys.exit(f"{variant} failed:\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}")
            found[variant] = json.loads(results[0].removeprefix("RESULT "))
            setting = {"length": options.length, "vocab": options.vocab, "model": options.model_size}
            kept.append({"variant": variant, "batch": batch, **setting, **found[variant]})
            if options.json:
                options.json.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        ours, full = (found[variant] for variant in VARIANTS)
        lines.append(
            f"| {batch} | {ours['scored']} of {ours['tokens']} | {ours['tokens'] / ours['seconds']:.0f} "
            f"| {full['tokens'] / full['seconds']:.0f} | {full['seconds'] / ours['seconds']:.2f}x "
            f"| {ours['mib']:.0f} | {full['mib']:.0f} | {ours['mib'] / full['mib']:.2f}x |"
        )
    print(f"{ours['device']}, torch {ours['torch']}, {options.model_size}, vocabulary {options.vocab}")
    print("\n| scored | tokens | rewards, tokens/s | full logits, tokens/s | speed | MiB | MiB, full | memory |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
