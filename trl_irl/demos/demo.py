"""
The demo: a tiny base model, fine-tuned once by MLE and once by IRL, compared. No download, no GPU.

```bash
make demo    # or: trl-irl demo --output_dir outputs/demo
```
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..commands.console.command import command
from .recipe_runs import log_history, run_recipe


TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0)
# At every evaluation of the fine-tuning, 40 problems of the validation split.
_GENERATE = {
    "eval_generations": 40,
    "eval_num_samples": 2,
    "eval_temperature": 0.7,
    "eval_max_new_tokens": 80,
    "eval_generation_batch_size": 80,
}
_PLOTTED = ("nll", "td_loss", "eval_nll", "eval_accuracy", "eval_self_bleu")


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
            Samples per problem at each temperature.
        max_steps (`int`, *optional*):
            Cut every training to so many steps: a look at the machinery, not at the result.
    """

    output_dir: str = field(default="outputs/demo", metadata={"help": "Folder for models, logs and the report."})
    num_prompts: int = field(default=200, metadata={"help": "Test problems to evaluate on, at most 200."})
    num_samples: int = field(default=4, metadata={"help": "Samples per problem at each temperature."})
    max_steps: int | None = field(default=None, metadata={"help": "Cut every training to so many steps."})

    def __post_init__(self):
        if not 1 <= self.num_prompts <= 200:
            raise ValueError(f"`num_prompts: {self.num_prompts}` must be between 1 and 200.")
        if self.num_samples < 2:
            raise ValueError(f"`num_samples: {self.num_samples}` must be 2 or more: self-BLEU compares samples.")


def build_base_model(folder: Path, seed: int = 0) -> None:
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
    set_seed(seed)
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


def pretrained_base(folder: Path, seed: int = 0, **overrides) -> Path:
    """
    The demo's base model in `folder/base`, trained by `recipes/arithmetic/base.yaml` if it is not there: five minutes
    on a CPU core. `seed` draws its weights and the order of its rows; `overrides` are keys of that recipe, or
    `threads`.
    """
    base = folder / "base"
    if not (base / "trainer_state.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        build_base_model(folder / "untrained", seed)
        run_recipe("trl-irl irl", "base", folder / "untrained", base, seed=seed, **overrides)
    return base


def _write_report(output_dir: Path, seconds: dict[str, float]) -> None:
    from ..evaluation.rendering import plot_training

    histories = {name: log_history(output_dir / name.lower()) for name in ("MLE", "IRL")}
    plot_training(histories, _PLOTTED, output_dir / "training.png")
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    report = output_dir / "report.md"
    report.write_text(
        f"""{report.read_text(encoding="utf-8")}
## Training

A Llama of 0.9 M weights, pretrained by `recipes/arithmetic/base.yaml`, then fine-tuned on the same demonstrations once
by `mle.yaml` and once by `irl.yaml`, which differ in the objective alone. Trained on {os.cpu_count()} CPU cores:
{times}. One seed, a tiny model: this shows the machinery at work, not what holds at scale.

`eval_accuracy` and `eval_self_bleu` are of {_GENERATE["eval_generations"]} validation problems,
{_GENERATE["eval_num_samples"]} samples each at T = {_GENERATE["eval_temperature"]}, generated during training.

![Training curves](training.png)
""",
        encoding="utf-8",
    )


def main(arguments: DemoArguments) -> None:
    from ..commands import evaluate
    from ..evaluation.metrics import check_installed
    from ..tasks.files import check_writable

    start = time.perf_counter()
    output_dir = Path(arguments.output_dir)
    folders = {name: output_dir / name for name in ("untrained", "base", "mle", "irl")}
    check_installed()
    check_writable(arguments.output_dir, "output_dir")
    output_dir.mkdir(parents=True, exist_ok=True)
    build_base_model(folders["untrained"])
    seconds = {}
    for name, model, title in (
        ("base", "untrained", "1/4 Pretraining a base model on simpler text"),
        ("mle", "base", "2/4 Fine-tuning it by maximum likelihood"),
        ("irl", "base", "3/4 Fine-tuning it by inverse reinforcement learning"),
    ):
        print(title, flush=True)
        options = {"max_steps": arguments.max_steps, **({} if name == "base" else _GENERATE)}
        seconds[name] = run_recipe("trl-irl irl", name, folders[model], folders[name], **options)
    print("4/4 Sampling solutions of held-out problems", flush=True)
    evaluate.main(
        evaluate.EvaluateArguments(
            models=[f"{name}={folders[name.lower()]}" for name in ("MLE", "IRL")],
            task="arithmetic",
            temperatures=list(TEMPERATURES),
            num_prompts=arguments.num_prompts,
            num_samples=arguments.num_samples,
            max_new_tokens=80,
            batch_size=100,
            output_dir=str(output_dir),
        )
    )
    _write_report(output_dir, seconds)
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes in all.")


def _kept(arguments: DemoArguments) -> str:
    return f"What was done is in {arguments.output_dir}; the same command begins anew."


make_parser, run = command("demo", DemoArguments, __doc__, main, _kept)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
