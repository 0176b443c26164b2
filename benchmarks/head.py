"""
Time and memory of the head alone, forward and backward: hidden states and a weight in, their gradients out. The bare
products are what no head can do without; the rivals are the likelihood's, of whatever is installed.

```bash
.venv-latest/bin/python benchmarks/head.py --tokens 400 --hidden 512 --vocab 32128
python benchmarks/head.py --device cuda --dtype bfloat16 --tokens 8192 --hidden 4096 --vocab 151936
```

Each head runs in a process of its own, of the rivals those that are installed. Prints a table and, with `--json`, adds
the numbers to a file.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def bare_products(hidden, weight, labels) -> None:
    """Logits in the dtype given, and their products with weight and hidden states; nothing else."""
    logits = hidden @ weight.t()
    hidden.grad, weight.grad = logits @ weight, logits.t() @ hidden


def full_logits(hidden, weight, labels) -> None:
    """The likelihood on float32 logits, as autograd does it."""
    import torch

    torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum").backward()


def soft_q(hidden, weight, labels, logit_buffer_mb: float | None = None) -> None:
    """Ours: Q, V and the entropy, with the gradient of the inverse soft-Q loss."""
    from trl_irl.soft_q.buffer import DEFAULT_LOGIT_BUFFER_MB
    from trl_irl.soft_q.projection import Projection
    from trl_irl.soft_q.values import soft_q_values

    values = soft_q_values(hidden, Projection(weight), labels, logit_buffer_mb or DEFAULT_LOGIT_BUFFER_MB)
    reward = values.q[:-1] - values.v[1:]
    ((values.v - values.q).sum() + 0.1 * reward.square().sum()).backward()


def soft_q_kept(hidden, weight, labels) -> None:
    """Ours, with a buffer that holds all logits."""
    soft_q(hidden, weight, labels, logit_buffer_mb=9 * len(hidden) * len(weight) / 2**20)


def of_trl(hidden, weight, labels) -> None:
    """SFTTrainer's."""
    from trl.trainer import utils

    if hasattr(utils, "add_fused_lm_head"):  # TRL 1.16
        # The size is that of its `add_fused_lm_head`.
        outputs = utils._ChunkedLogProbFunction.apply(
            hidden, weight, None, labels, 1.0, utils._CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy")
        )
        (-outputs[0].sum()).backward()
        return
    from trl.trainer import sft_trainer  # TRL 1.12; can go with it

    size = sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE
    sft_trainer._chunked_cross_entropy_loss(hidden[None], weight, size, shift_labels=labels[None])[0].backward()


def liger(hidden, weight, labels) -> None:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    liger_fused_linear_cross_entropy(hidden, weight, labels, reduction="sum").backward()


def cut_cross_entropy(hidden, weight, labels) -> None:
    from cut_cross_entropy import linear_cross_entropy

    linear_cross_entropy(hidden, weight, labels, reduction="sum").backward()


HEADS: dict[str, Callable] = {
    "bare products": bare_products,
    "soft-Q": soft_q,
    "soft-Q, logits kept": soft_q_kept,
    "full logits": full_logits,
    "TRL": of_trl,
    "Liger": liger,
    "cut cross-entropy": cut_cross_entropy,
}
RIVALS = ("liger_kernel", "cut_cross_entropy")  # where they are installed


def measure(name: str, options: argparse.Namespace) -> dict:
    """The least and the median time of some calls, and the peak of memory beyond the inputs and their gradients."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    hidden = torch.empty(options.tokens, options.hidden, device=device, dtype=dtype).normal_().requires_grad_()
    weight = torch.empty(options.vocab, options.hidden, device=device, dtype=dtype).normal_(std=0.02).requires_grad_()
    labels = torch.randint(0, options.vocab, (options.tokens,), device=device)
    head, times = HEADS[name], []
    own = 2 * (hidden.numel() + weight.numel()) * hidden.element_size()

    def peak() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated() - own
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before

    head(hidden[:8].detach().requires_grad_(), weight.detach()[:64].requires_grad_(), labels[:8] % 64)  # loads code
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + own // 2
    for call in range(options.warmup + options.calls):
        hidden.grad = weight.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()
            if call == options.warmup:
                torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        head(hidden, weight, labels)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    if options.profile:
        _profile(lambda: head(hidden, weight, labels), options.profile)
    times = sorted(times[options.warmup :])
    return {"least": times[0], "median": times[len(times) // 2], "beyond": peak()}


def _profile(call: Callable[[], None], path: Path) -> None:
    """The operations of one call, the longest first, as a table in a file."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
    on_gpu = any(event.device_time_total for event in found.key_averages())
    table = found.key_averages().table(sort_by="device_time_total" if on_gpu else "cpu_time_total", row_limit=25)
    path.write_text(table, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=32128)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of a CPU; all if unset")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--profile", type=Path, help="file for a table of the operations of one call")
    parser.add_argument("--json", type=Path, help="file to add the numbers to")
    parser.add_argument("--head", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.head:
        return print(json.dumps(measure(options.head, options)))
    shape = {name: getattr(options, name) for name in ("device", "dtype", "tokens", "hidden", "vocab", "threads")}
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}
    cells, failed = [], False
    for name in options.heads:
        command = [sys.executable, __file__, *sys.argv[1:], "--head", name]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if run.returncode:
            why = run.stderr.strip().splitlines()[-1]
            failed |= not any(f"No module named '{package}" in why for package in RIVALS)
            print(f"{name}: {why}", file=sys.stderr)
            continue
        cells.append({"head": name, **shape, "torch": _version("torch"), "trl": _version("trl")})
        cells[-1] |= json.loads(run.stdout.splitlines()[-1])
    print("| head | ms | against bare products | MiB beyond inputs and gradients |\n|---|---:|---:|---:|")
    base = next((cell["least"] for cell in cells if cell["head"] == "bare products"), float("nan"))
    for cell in cells:
        ratio, beyond = cell["least"] / base, cell["beyond"] / 2**20
        print(f"| {cell['head']} | {1000 * cell['least']:.1f} | {ratio:.2f} | {beyond:.0f} |")
    if options.json:
        before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else []
        options.json.write_text(json.dumps([*before, *cells], indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit("A head failed, see above.")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
