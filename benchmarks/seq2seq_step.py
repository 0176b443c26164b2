"""
Time, memory and tokens per second of encoder-decoder training: Seq2SeqIRLTrainer, padded and packed, and transformers'
Seq2SeqTrainer, each in a process of its own, on the same rows in the lengths that they have.

```bash
python -m benchmarks.seq2seq_step --size tiny --vocab 250112 --json results/seq2seq_step_cpu.json  # mT5's vocabulary
python -m benchmarks.seq2seq_step --size small --vocab 32128    # T5's
```

Weights are random, tokens are GSM8K's (`--data`, a JSONL file with `question` and `answer`; generated word problems
without it), encoded by a byte-pair vocabulary learnt from them. A packed step has as many rows as a padded one, in
fewer and fuller ones.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.irl_step import _ALLOCATOR, make_rows


SIZES = {  # d_model, d_ff, layers, heads
    "tiny": (256, 512, 2, 4),
    "small": (512, 1024, 8, 6),  # T5 v1.1 and mT5 of that name
}
VARIANTS = ("Seq2SeqTrainer", "Seq2SeqIRLTrainer", "Seq2SeqIRLTrainer, packed")


def pairs(options: argparse.Namespace, count: int) -> list[dict]:
    """Rows of `input_ids` and `labels`, prompt and completion apart, in the order of the data."""
    found = []
    for row in make_rows(options.data, count, 256):
        start = next((i for i, label in enumerate(row["labels"]) if label != -100), None)
        if start:
            found.append({"input_ids": [*row["input_ids"][:start], 1], "labels": row["labels"][start:]})
    return found


def padding(options: argparse.Namespace) -> list[dict]:
    """Of batches, padded and packed: the share of padding, and the pairs of tokens that attention looks at."""
    from trl_irl.trainer.seq2seq.packing import first_fit

    lengths = [(len(row["input_ids"]), len(row["labels"])) for row in pairs(options, 1024)]

    def cell(batch: str, count: int, groups: list[list[int]]) -> dict:
        rows = [[sum(lengths[i][side] for i in group) for side in (0, 1)] for group in groups]
        random.Random(0).shuffle(rows)
        tokens = attended = 0
        for start in range(0, len(rows) - count + 1, count):
            prompts, completions = (max(row[side] for row in rows[start : start + count]) for side in (0, 1))
            tokens += count * (prompts + completions)
            attended += count * (prompts**2 + completions**2 + prompts * completions)
        full = len(rows) // count * count
        used, said = sum(map(sum, rows[:full])), len(lengths) * full / len(rows)
        return {"batch": batch, "padding": 1 - used / tokens, "attended_per_row": attended / said}

    cells = [cell(f"{count} rows, padded", count, [[i] for i in range(len(lengths))]) for count in (16, 32)]
    for room in ((192, 256), (640, 640)):
        groups = first_fit(lengths, room)
        count = round(16 * len(groups) / len(lengths))
        cells.append(cell(f"{count} packed rows of {room[0]} and {room[1]}", count, groups))
    return cells


def measure(variant: str, options: argparse.Namespace) -> dict:
    """Train a few steps in this process and report the median step and the peak memory."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import (
        DataCollatorForSeq2Seq,
        MT5Config,
        MT5ForConditionalGeneration,
        PreTrainedTokenizerFast,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
        set_seed,
    )

    from trl_irl import Seq2SeqIRLConfig, Seq2SeqIRLTrainer

    class Clock(TrainerCallback):
        def __init__(self):
            self.times = []

        def on_step_begin(self, args, state, control, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.times.append(time.perf_counter() - self.start)

    width, inner, layers, heads = SIZES[options.size]
    config = MT5Config(
        vocab_size=options.vocab,
        d_model=width,
        d_ff=inner,
        num_layers=layers,
        num_heads=heads,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        dropout_rate=options.dropout,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    steps = options.warmup + options.steps
    rows = Dataset.from_list(pairs(options, options.batch_size * steps))
    keys = {"max_steps": steps, "use_cpu": True, "bf16": options.bf16, "logging_steps": steps, "report_to": "none"}
    keys |= {"save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": options.batch_size}
    keys |= {"gradient_checkpointing": False}
    clock, before = Clock(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    set_seed(0)
    model = MT5ForConditionalGeneration(config)
    # As it is drawn, a loss of 130 nats: most probabilities are then denormal numbers, and products of those slow. A
    # trained model has none of them.
    torch.nn.init.normal_(model.lm_head.weight, std=width**-0.5)
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": model, "train_dataset": rows, "processing_class": tokenizer, "callbacks": [clock]}
        if variant == "Seq2SeqTrainer":
            given["data_collator"] = DataCollatorForSeq2Seq(tokenizer)
            trainer = Seq2SeqTrainer(args=Seq2SeqTrainingArguments(folder, **keys), **given)
            per_step = options.batch_size
        else:
            packing = variant.endswith("packed")
            room = dict(zip(("max_length", "max_completion_length"), options.room, strict=True)) if packing else {}
            args = Seq2SeqIRLConfig(folder, packing=packing, logit_buffer_mb=options.buffer, **room, **keys)
            trainer = Seq2SeqIRLTrainer(args=args, **given)
            per_step = options.batch_size
            if packing:  # as many rows per step
                share = len(trainer.train_dataset) / len(rows)
                trainer.args.per_device_train_batch_size = max(1, round(options.batch_size * share))
                trainer._train_batch_size = trainer.args.per_device_train_batch_size
                per_step = trainer._train_batch_size / share
        trainer.train()
    tokens = statistics.fmean(len(row["input_ids"]) + len(row["labels"]) for row in rows)
    seconds = statistics.median(clock.times[options.warmup :])
    parameters = sum(p.numel() for p in model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "variant": variant,
        "size": options.size,
        "vocab": options.vocab,
        "parameters": parameters,
        "dropout": options.dropout,
        "room": options.room,
        "logit_buffer_mb": options.buffer,
        "rows_per_step": per_step,
        "seconds": seconds,
        "tokens_per_second": tokens * per_step / seconds,
        "peak_mib": peak / 2**20,
        "beyond_states_mib": (peak - 16 * parameters) / 2**20,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bf16": options.bf16,
    }


def main() -> None:
    shared = Path(__file__).parents[2] / "shared/data/gsm8k/train.jsonl"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--vocab", type=int, default=250_112)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="steps to measure")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--room", type=int, nargs=2, default=[192, 256], help="tokens of a packed row, on each side")
    parser.add_argument("--buffer", default="128", help="logit_buffer_mb of our trainer")
    parser.add_argument("--dropout", type=float, default=0.1, help="T5's own is 0.1")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--padding", action="store_true", help="only count how much of a batch is padding")
    parser.add_argument("--data", default=str(shared) if shared.is_file() else None)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print("RESULT " + json.dumps(measure(options.worker, options)))
        return
    if options.padding:
        found = padding(options)
        print(*found, sep="\n")
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return
    results = []
    for variant in options.variants:
        command = [sys.executable, "-m", "benchmarks.seq2seq_step", *sys.argv[1:], "--worker", variant]
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_ALLOCATOR})
        lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            sys.exit(f"{variant} failed:\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}")
        results.append(json.loads(lines[0].removeprefix("RESULT ")))
        if options.json:  # after each, for a run that is cut off
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    base = results[0]
    print("| trainer | s/step | tokens/s | peak MiB | beyond states MiB | time | memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for one in results:
        per_row = [x["seconds"] / x["rows_per_step"] for x in (one, base)]
        print(
            f"| {one['variant']} | {one['seconds']:.3f} | {one['tokens_per_second']:,.0f} | {one['peak_mib']:.0f} | "
            f"{one['beyond_states_mib']:.0f} | {per_row[0] / per_row[1]:.2f} | "
            f"{one['peak_mib'] / base['peak_mib']:.2f} |"
        )


if __name__ == "__main__":
    main()
