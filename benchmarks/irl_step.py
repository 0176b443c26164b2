"""
Time and memory of one optimiser step: IRLTrainer, TRL's SFTTrainer, the inverse soft-Q loss on full logits, and
OnlineIRLTrainer, each in a process of its own, on the same batches; online, half of the rows are the policy's own
completions, as long as the expert's are on average.

```bash
python benchmarks/irl_step.py --device cpu --model-size 40m --vocab 151936
python benchmarks/irl_step.py --device cuda --model-size 0.5b --batch-size 8 --length 1024
python benchmarks/irl_step.py --objectives gem soft_q --in-turns  # and nll, against which they are compared
```

On a machine that others use too, times of one process after the other do not compare. With `--in-turns` all processes
are there at once and take a step each, in an order that moves on by one; a variant's cost is then the median over the
rounds of its time against the base's in the same round, and its interval that of the median's ranks.

Weights are random, tokens are GSM8K's (`--data`, a JSONL file with `question` and `answer`; generated word problems
without it), encoded by a byte-pair vocabulary learnt from them. Prints a table and, with `--json`, writes the numbers.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


SIZES = {  # hidden, intermediate, layers, heads, key-value heads, tied embeddings (as in small Qwens)
    "40m": (256, 704, 2, 4, 2, True),
    "40m-untied": (128, 352, 2, 4, 2, False),
    "135m": (576, 1536, 30, 9, 3, True),  # SmolLM2-135M, with --vocab 49152
    "0.5b": (896, 4864, 24, 14, 2, True),
    "1.5b": (1536, 8960, 28, 12, 2, True),
}
# glibc gives freed blocks back at once, so that the peak of the process is of memory in use. On a GPU, whose memory is
# not the process's, that would only slow the host down.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}
OBJECTIVES = {  # what `--objectives` compares, each with IRLTrainer
    "nll": {"objective": "nll"},
    "soft_q": {},
    "value_consistency": {"objective": "value_consistency"},
    "soft_q, value_temperature 2": {"value_temperature": 2.0},
    "dft": {"objective": "dft"},
    "focal": {"objective": "focal"},
    "z_loss": {"objective": "z_loss"},
    "entropy": {"objective": "entropy"},
    "label_smoothing": {"objective": "label_smoothing"},
    "gem": {"objective": "gem"},
    "gem, log-sigmoid": {"objective": "gem", "gem_form": "log_sigmoid"},
}
_READY, _RESULT = "READY", "RESULT "  # what a process says before each step, and at its end
VARIANTS = ("IRLTrainer", "SFTTrainer", "full-logits IRL", "OnlineIRLTrainer")


def make_rows(path: str | None, count: int, length: int) -> list[dict]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if path:
        examples = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        pairs = [(f"QUESTION: {e['question']}\n\nSOLUTION:", f" {e['answer']}") for e in examples]
    else:
        from trl_irl.tasks.arithmetic import make_arithmetic

        pairs = [(row["prompt"], row["completion"]) for row in make_arithmetic()["train"]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=["<pad>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator((p + c for p, c in pairs[:4000]), trainer)
    rows, carry = [], ([], [])
    for prompt, completion in pairs:
        # Rows are filled: long contexts hold several problems one after another, each scored on its solution.
        prompt_ids, completion_ids = tokenizer.encode(prompt).ids, [*tokenizer.encode(completion).ids, 1]
        carry = (carry[0] + prompt_ids + completion_ids, carry[1] + [-100] * len(prompt_ids) + completion_ids)
        if len(carry[0]) >= length or length <= 256:
            rows.append({"input_ids": carry[0][:length], "labels": carry[1][:length]})
            carry = ([], [])
        if len(rows) == count:
            return rows
    return (rows * (count // len(rows) + 1))[:count]


def model_config(options: argparse.Namespace):
    """A Qwen2 of the size, vocabulary and context of the options."""
    from transformers import Qwen2Config

    hidden, intermediate, layers, heads, kv_heads, tied = SIZES[options.model_size]
    return Qwen2Config(
        vocab_size=options.vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max(options.length, 512),
        tie_word_embeddings=tied,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )


def measure(variant: str, options: argparse.Namespace) -> dict:
    """Train a few steps in this process and report the median step and the peak memory."""
    import torch
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed
    from transformers.modeling_outputs import CausalLMOutput
    from trl import SFTConfig, SFTTrainer

    from trl_irl import IRLConfig, IRLTrainer, OnlineIRLConfig, OnlineIRLTrainer
    from trl_irl.soft_q import soft_q_terms

    class FullLogitsTrainer(IRLTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")[:, 1:]
            logits = model(**inputs, use_cache=False).logits[:, :-1].float()
            q = logits.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
            terms = soft_q_terms(q, logits.logsumexp(2), labels, self.stop_token_ids)
            loss = (terms.nll.sum() + self.args.lambda_td * terms.reward.square().sum()) / num_items_in_batch
            return (loss, CausalLMOutput(logits=logits)) if return_outputs else loss

    if options.threads:
        torch.set_num_threads(options.threads)
    on_cuda = options.device == "cuda"

    class Clock(TrainerCallback):
        def __init__(self):
            self.times = []

        def on_step_begin(self, args, state, control, **kwargs):
            if options.in_turns:
                print(_READY, flush=True)
                sys.stdin.readline()
            if on_cuda:
                if state.global_step == options.warmup:
                    torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            if on_cuda:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter() - self.start)

    steps = options.warmup + options.steps
    rows = make_rows(options.data, options.batch_size * steps, options.length)
    config = model_config(options)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    clock = Clock()
    settings = {
        "per_device_train_batch_size": options.batch_size,
        "max_steps": steps,
        "max_length": options.length,
        "pad_to_multiple_of": options.length,
        "bf16": on_cuda if options.precision is None else options.precision == "bfloat16",
        "use_cpu": not on_cuda,
        "gradient_checkpointing": options.gradient_checkpointing,
        "logging_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_cuda,
    }
    if variant != "SFTTrainer":  # which keeps its own default: chunked in TRL 1.12, fused in 1.16
        settings["loss_type"] = "nll"
    if variant != "SFTTrainer" and options.logit_buffer_mb:
        settings["logit_buffer_mb"] = options.logit_buffer_mb
    trainer_class, config_class = {
        "IRLTrainer": (IRLTrainer, IRLConfig),
        "SFTTrainer": (SFTTrainer, SFTConfig),
        "full-logits IRL": (FullLogitsTrainer, IRLConfig),
        "OnlineIRLTrainer": (OnlineIRLTrainer, OnlineIRLConfig),
    }.get(variant, (IRLTrainer, IRLConfig))
    settings |= OBJECTIVES.get(variant, {})
    if variant == "OnlineIRLTrainer":
        prompts = [next(i for i, label in enumerate(row["labels"]) if label != -100) for row in rows]
        settings["per_device_train_batch_size"] = options.batch_size // 2
        scored = statistics.fmean(sum(label != -100 for label in row["labels"]) for row in rows)
        settings["max_completion_length"] = min(round(scored), options.length - max(prompts))
    dataset = Dataset.from_list(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_config(config, dtype=torch.float32),
            args=config_class(output_dir=folder, **settings),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    # Weights, gradients and Adam's two moments, float32 each. On the CPU the rest is what the process grew by beyond
    # them since before the model was built.
    states = 16 * parameters
    if on_cuda:
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "variant": variant,
        "precision": "bfloat16" if trainer.args.bf16 else "float32",
        "parameters": parameters,
        "seconds": statistics.median(clock.times[options.warmup :]),
        "times": clock.times[options.warmup :],
        "peak_mib": peak / 2**20,
        "beyond_states_mib": (peak - states) / 2**20,
        "scored_tokens": sum(label != -100 for row in rows for label in row["labels"][1:]) / steps,
        "loss": trainer.state.log_history[-1]["train_loss"],
        "loss_type": trainer.args.loss_type,
        "trl": trl.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
    }


class Worker:
    """A process that measures a variant; with `--in-turns` it waits before each step."""

    def __init__(self, variant: str, vocab: int, options: argparse.Namespace):
        command = [sys.executable, __file__, *sys.argv[1:], "--vocab", str(vocab), "--worker", variant]
        environment = {**os.environ, **(_ALLOCATOR if options.device == "cpu" else {})}
        self._variant, self._said = variant, []
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        if options.in_turns:
            self._read_until(_READY)

    def step(self) -> None:
        """Let it take a step, and wait until it has."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read_until((_READY, _RESULT))

    def result(self) -> dict:
        if not self._said or not self._said[-1].startswith(_RESULT):
            self._read_until(_RESULT)
        self._process.communicate()
        return json.loads(self._said[-1].removeprefix(_RESULT))

    def _read_until(self, beginning: str | tuple[str, ...]) -> None:
        for line in self._process.stdout:
            self._said.append(line)
            if line.startswith(beginning):
                return
        self._errors.seek(0)
        sys.exit(f"{self._variant} failed:\n{''.join(self._said)[-2000:]}\n{self._errors.read()[-4000:]}")


def paired_ratio(times: list[float], base: list[float]) -> tuple[float, float, float]:
    """
    Median of the ratios of each round, and the interval of at least 95 % for it that two of them are the ends of (of
    all n, the k-th from below and from above: it misses where fewer than k lie on one side, which is binomial).
    """
    ratios = sorted(x / y for x, y in zip(times, base, strict=True))
    n, k = len(ratios), 0
    while 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n <= 0.05:
        k += 1
    if k == 0:
        raise ValueError(f"{n} rounds have no interval of 95 %; take 6 or more.")
    return statistics.median(ratios), ratios[k - 1], ratios[-k]


def time_against(cell: dict, base: dict) -> str:
    """A cell's time in those of another, and the interval where they took turns."""
    if not cell.get("in_turns") or len(cell["times"]) < 6:
        return f"{cell['seconds'] / base['seconds']:.2f}"
    if cell is base:
        return "1.00"
    middle, low, high = paired_ratio(cell["times"], base["times"])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    shared = Path(__file__).parents[2] / "shared/data/gsm8k/train.jsonl"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model-size", choices=list(SIZES), default="40m")
    parser.add_argument("--vocab", type=int, nargs="+", default=[151_936])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="autocast; bfloat16 on a GPU if unset")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens per row, prompt and solution")
    parser.add_argument("--steps", type=int, default=8, help="steps to measure")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's default")
    parser.add_argument("--logit-buffer-mb", default=None, help="in MiB, or auto; IRLConfig's default if unset")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--objectives", nargs="*", choices=list(OBJECTIVES), help="these objectives, or all, instead of variants"
    )
    parser.add_argument("--in-turns", action="store_true", help="a step of each, and again")
    parser.add_argument("--data", default=str(shared) if shared.is_file() else None)
    parser.add_argument("--json", help="file to write the numbers to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        options.vocab = options.vocab[0]
        print(_RESULT + json.dumps(measure(options.worker, options)))
        return

    variants = options.variants
    if options.objectives is not None:
        variants = [name for name in OBJECTIVES if name in ("nll", *options.objectives) or not options.objectives]
    results = []
    for vocab in options.vocab:
        workers = (Worker(variant, vocab, options) for variant in variants)  # one after the other
        if options.in_turns:
            workers = list(workers)
            for step in range(options.warmup + options.steps):
                first = step % len(workers)
                for worker in workers[first:] + workers[:first]:
                    worker.step()
        for worker in workers:
            results.append({"vocab": vocab, "in_turns": options.in_turns, **worker.result()})
            if options.json:  # after each, for a run that is cut off
                Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    first = results[0]
    print(
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, TRL {first['trl']}, "
        f"{options.model_size}, batch {options.batch_size} x {options.length} tokens of which "
        f"{first['scored_tokens']:.0f} scored"
    )
    against = "SFT" if options.objectives is None else "nll"
    columns = ("vocabulary", "variant", "s/step", "peak MiB", "beyond states MiB", f"time vs {against}")
    print(f"\n| {' | '.join(columns)} | memory vs {against} |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for result in results:
        same = [r for r in results if r["vocab"] == result["vocab"]]
        base = next((r for r in same if r["variant"] in ("SFTTrainer", "nll")), None)
        time_ratio = time_against(result, base) if base else ""
        memory_ratio = f"{result['peak_mib'] / base['peak_mib']:.2f}" if base else ""
        print(
            f"| {result['vocab']} | {result['variant']} | {result['seconds']:.3f} | {result['peak_mib']:.0f} "
            f"| {result['beyond_states_mib']:.0f} | {time_ratio} | {memory_ratio} |"
        )


if __name__ == "__main__":
    main()
