"""
The real GSM8K through the real command: a small Llama from scratch, once by MLE and once by IRL, and its loss curves.
Shows that the recipe's path works on real data where no model can be downloaded; such a model solves no problem.

```bash
python benchmarks/gsm8k_tiny.py --data ../shared/data/gsm8k --output_dir outputs/gsm8k_tiny
```
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, set_seed

from trl_irl.demos.recipe_runs import words_of
from trl_irl.evaluation.rendering import plot_training
from trl_irl.tasks.gsm8k import load_gsm8k


def build_model(data: str, folder: Path) -> None:
    rows = load_gsm8k(data)["train"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<pad>", "<eos>"], show_progress=False)
    backend.train_from_iterator((row["prompt"] + row["completion"] for row in rows), trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/gsm8k", help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/gsm8k_tiny"))
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    recipes = Path(__file__).parents[1] / "recipes/gsm8k"
    build_model(options.data, options.output_dir / "untrained")
    histories = {}
    for name, recipe in (("MLE", "mle.yaml"), ("IRL", "irl_full.yaml")):
        output = options.output_dir / name.lower()
        overrides = {
            "model_name_or_path": options.output_dir / "untrained",
            "dataset_name": options.data,
            "output_dir": output,
            "max_steps": options.steps,
            "max_length": 384,
            "gradient_accumulation_steps": 1,
            "learning_rate": 2e-3,
            "gradient_checkpointing": "false",
            "bf16": "false",
            "use_cpu": "true",
            "eval_strategy": "steps",
            "eval_steps": max(1, options.steps // 5),
            "save_strategy": "no",
        }
        words = words_of(overrides)
        command = [sys.executable, "-m", "trl_irl.cli", "irl", "--accelerate_config", "cpu"]
        subprocess.run([*command, "--config", str(recipes / recipe), *words], check=True)
        histories[name] = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    plot_training(histories, ("nll", "td_loss", "reward_mean", "eval_nll"), options.output_dir / "training.png")
    print("| step | nll MLE | nll IRL | td_loss MLE | td_loss IRL | lambda_td |\n|---:|---:|---:|---:|---:|---:|")
    for mle, irl in zip(*(([e for e in h if "nll" in e][4::5]) for h in histories.values()), strict=True):
        print(
            f"| {mle['step']} | {mle['nll']:.3f} | {irl['nll']:.3f} | {mle['td_loss']:.2f} | {irl['td_loss']:.2f} "
            f"| {irl['lambda_td']:.3f} |"
        )
    print(f"Curves: {options.output_dir / 'training.png'}")


if __name__ == "__main__":
    main()
