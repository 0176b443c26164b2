"""
The first steps of a pretrained model: is IRL at its defaults as good as SFT in likelihood, at equal steps?

```bash
python -m benchmarks.pretrained_start --model FOLDER --gsm8k train.jsonl --e2e devset.csv \
    --output results/pretrained_start.json
```

The mean nll (nats per token) over the tokens of the last five training steps, batches and seed alike for all, in
bfloat16. Likelihood is `objective: nll`, which is SFTTrainer's loss. One cell per data set, objective and seed, each
kept in the file as it is done: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from trl_irl import IRLConfig, IRLTrainer


OBJECTIVES = {
    "SFT": {"objective": "nll"},
    "IRL, defaults": {},
    "IRL, td_scale 1": {"td_scale": 1.0},
    "IRL, lambda_td 1": {"lambda_td": 1.0},
    "IRL, td_scale 1, lambda_td 0.003": {"td_scale": 1.0, "lambda_td": 0.003},
}
SETTINGS = {
    "gsm8k": {"max_steps": 60, "per_device_train_batch_size": 4, "max_length": 256},
    "e2e": {"max_steps": 70, "per_device_train_batch_size": 16, "max_length": 128},
}
SHOWN = (20, 60, 70)  # steps


def chat(prompt: str, answer: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def load(name: str, path: Path, seed: int) -> Dataset:
    if name == "gsm8k":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [chat(row["question"], row["answer"]) for row in rows if len(row["question"] + row["answer"]) < 500]
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [chat(f"Describe the restaurant: {row['mr']}", row["ref"]) for row in csv.DictReader(file)]
    return Dataset.from_list(rows).shuffle(seed=seed)


def run(model: str, name: str, data: Dataset, objective: dict, seed: int, folder: str) -> dict[str, float]:
    keys = {
        "output_dir": folder,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": True,
        "learning_rate": 2e-5,
        "logging_steps": 5,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "seed": seed,
        "disable_tqdm": True,
        **SETTINGS[name],
    }
    set_seed(seed)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = IRLTrainer(policy, IRLConfig(**keys, **objective), train_dataset=data, processing_class=tokenizer)
    trainer.train()
    logs = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    found = {f"nll at {step}": logs[step]["nll"] for step in SHOWN if step in logs}
    if objective.get("objective") != "nll":
        first = logs[min(logs)]
        found |= {
            "td_scale": first["td_scale"],
            "td_loss at 5": first["td_loss"],
            "td_loss": logs[max(logs)]["td_loss"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--e2e", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, help="instead of 60 (gsm8k) and 70 (e2e)")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.steps:
        for settings in SETTINGS.values():
            settings["max_steps"] = arguments.steps
    cells = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else []
    done = {(cell["data"], cell["objective"], cell["seed"]) for cell in cells}
    for seed in arguments.seeds:
        for name in SETTINGS:
            path = getattr(arguments, name)
            for objective in arguments.objectives:
                if path is None or (name, objective, seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    found = run(arguments.model, name, load(name, path, seed), OBJECTIVES[objective], seed, folder)
                device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
                cells.append({"data": name, "objective": objective, "seed": seed, "device": device, **found})
                arguments.output.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
                print(cells[-1], flush=True)


if __name__ == "__main__":
    main()
