"""
The demo: a tiny base model, fine-tuned once by MLE and once by IRL, compared. No download, no GPU.

```bash
make demo    # or: trl-irl demo --output_dir outputs/demo
```
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0)
_PLOTTED = ("nll", "td_loss", "entropy", "eval_nll")


@dataclass
class DemoArguments:
    """
    Arguments of the `demo` command.

    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/demo"`):
            Folder for the models, the logs and the report.
        num_prompts (`int`, *optional*, defaults to `200`):
            Test problems to evaluate on, at most 200.
        num_samples (`int`, *optional*, defaults to `4`):
            Samples a problem at each temperature.
        max_steps (`int`, *optional*):
            Cut every training to so many steps: a look at the machinery, not at the result.
    """

    output_dir: str = field(default="outputs/demo", metadata={"help": "Folder for models, logs and the report."})
    num_prompts: int = field(default=200, metadata={"help": "Test problems to evaluate on, at most 200."})
    num_samples: int = field(default=4, metadata={"help": "Samples a problem at each temperature."})
    max_steps: int | None = field(default=None, metadata={"help": "Cut every training to so many steps."})

    def __post_init__(self):
        if not 1 <= self.num_prompts <= 200:
            raise ValueError(f"`num_prompts: {self.num_prompts}` must be between 1 and 200.")
        if self.num_samples < 2:
            raise ValueError(f"`num_samples: {self.num_samples}` must be 2 or more: self-BLEU compares samples.")


def build_base_model(folder: Path) -> None:
    """
    Save a small untrained Llama and its tokenizer, built from the words of the arithmetic task. A number is one token,
    so that a model of a million weights can learn the sums.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, set_seed

    from ..tasks.arithmetic import make_arithmetic, make_arithmetic_facts

    texts = [row["prompt"] + row["completion"] for row in make_arithmetic()["train"]]
    texts += make_arithmetic_facts()["train"]["text"]
    pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+| ?[A-Za-z]+|\n+|####|[^A-Za-z\d\s]| "), "isolated")
    pieces = {piece for text in texts for piece, _ in pre_tokenizer.pre_tokenize_str(text)}
    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, *sorted(pieces | {str(n) for n in range(100)})])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _recipe(name: str) -> Path:
    # In a wheel the recipes lie inside the package, in a checkout beside it.
    package = Path(__file__).parents[1]
    candidates = [folder / "recipes/arithmetic" / name for folder in (package, package.parent)]
    return next(path for path in candidates if path.is_file())


def train_recipe(name: str, model: Path, output_dir: Path, **overrides) -> float:
    """
    Run a recipe of `recipes/arithmetic` as a user would; its progress shows, its log goes to a file beside
    `output_dir`.

    Args:
        name (`str`): the recipe's name, without `.yaml`.
        model (`Path`): folder of the model to train.
        output_dir (`Path`): folder to save it to.
        **overrides: keys of the recipe to override; `None` leaves the recipe's value.

    Returns:
        `float`: seconds it took.
    """
    command = [sys.executable, "-m", "trl_irl.cli", "irl", "--accelerate_config", "cpu"]
    command += ["--config", str(_recipe(f"{name}.yaml")), "--model_name_or_path", str(model)]
    command += ["--output_dir", str(output_dir)]
    for key, value in overrides.items():
        command += [] if value is None else [f"--{key}", str(value)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    log = output_dir.with_suffix(".log")
    start = time.perf_counter()
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, env=environment).returncode
    if code != 0:
        raise SystemExit(f"Training {name} failed; its log is {log}.")
    return time.perf_counter() - start


def evaluate_model(name: str, folder: Path, rows: list[dict], num_samples: int) -> list:
    """A [`~evaluation.report.Cell`] for each of `TEMPERATURES`."""
    from statistics import fmean

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..evaluation.metrics import distinct_share, self_bleu
    from ..evaluation.report import Cell
    from ..evaluation.sampling import sample_completions
    from ..tasks.final_answer import is_correct

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    cells = []
    for temperature in TEMPERATURES:
        samples = sample_completions(
            model,
            tokenizer,
            [row["prompt"] for row in rows],
            max_new_tokens=80,
            temperature=temperature,
            num_samples=num_samples if temperature > 0 else 1,
            batch_size=100,
            description=f"{name}, temperature {temperature:g}",
        )
        correct = [
            fmean(is_correct(sample, row) for sample in group) for group, row in zip(samples, rows, strict=True)
        ]
        diversity = ()
        if temperature > 0:
            diversity = fmean(map(self_bleu, samples)), fmean(map(distinct_share, samples))
        cells.append(Cell(name, temperature, fmean(correct), *diversity))
    return cells


def _write_report(output_dir: Path, cells: list, seconds: dict[str, float], arguments: DemoArguments) -> None:
    from ..evaluation.report import markdown_table, plot_accuracy_against_diversity, plot_training, write_csv

    histories = {
        name: json.loads((output_dir / name.lower() / "trainer_state.json").read_text())["log_history"]
        for name in ("MLE", "IRL")
    }
    plot_training(histories, _PLOTTED, output_dir / "training.png")
    plot_accuracy_against_diversity(cells, output_dir / "accuracy_diversity.png")
    write_csv(cells, output_dir / "metrics.csv")
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    (output_dir / "report.md").write_text(
        f"""# MLE against IRL on arithmetic word problems

A Llama of 0.9 M weights, pretrained by `recipes/arithmetic/base.yaml`, then fine-tuned on the same demonstrations once
by `mle.yaml` and once by `irl.yaml`, which differ in the objective alone. {arguments.num_prompts} test problems,
{arguments.num_samples} samples each. Accuracy is of the final answer, over all samples; self-BLEU compares the samples
of a problem with each other (lower is more diverse); distinct is the share of different ones.

{markdown_table(cells)}

![Accuracy against diversity](accuracy_diversity.png)

Every point is a temperature. A model is better than another where its line lies above and to the right; a flatter
policy alone only moves along a line.

![Training curves](training.png)

Trained on {os.cpu_count()} CPU cores: {times}. One seed, a tiny model: this shows the machinery at work, not what
holds at scale.
"""
    )


def main(arguments: DemoArguments) -> None:
    from ..evaluation.report import print_table
    from ..tasks.arithmetic import make_arithmetic

    start = time.perf_counter()
    output_dir = Path(arguments.output_dir)
    folders = {name: output_dir / name for name in ("untrained", "base", "mle", "irl")}
    output_dir.mkdir(parents=True, exist_ok=True)
    build_base_model(folders["untrained"])
    seconds = {}
    for name, model, title in (
        ("base", "untrained", "1/4 Pretraining a base model on simpler text"),
        ("mle", "base", "2/4 Fine-tuning it by maximum likelihood"),
        ("irl", "base", "3/4 Fine-tuning it by inverse reinforcement learning"),
    ):
        print(title, flush=True)
        seconds[name] = train_recipe(name, folders[model], folders[name], max_steps=arguments.max_steps)
    print("4/4 Sampling solutions of held-out problems", flush=True)
    rows = list(make_arithmetic()["test"])[: arguments.num_prompts]
    cells = []
    for name in ("MLE", "IRL"):
        cells += evaluate_model(name, folders[name.lower()], rows, arguments.num_samples)
    _write_report(output_dir, cells, seconds, arguments)
    print_table(cells, f"{arguments.num_prompts} held-out problems, {arguments.num_samples} samples each")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes. Report: {output_dir / 'report.md'}")


if __name__ == "__main__":
    from .parser import RecipeParser

    main(*RecipeParser((DemoArguments,), prog="trl-irl demo").parse())
