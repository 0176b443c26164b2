"""
Performance against diversity: sample from models over temperatures and compare what they say.

```bash
trl-irl evaluate --models outputs/mle outputs/irl --task gsm8k --temperatures 0 0.5 1.0 --output_dir outputs/evaluation
```
"""

import json
from dataclasses import dataclass, field
from pathlib import Path


TASKS = ("gsm8k", "arithmetic")


@dataclass
class EvaluateArguments:
    """
    Arguments of the `evaluate` command.

    Args:
        models (`list[str]`):
            Folders, Hub ids or adapters; `name=path` gives one a name in the report. The first is the baseline.
        task (`str`):
            `"gsm8k"` (from `dataset_name` if set, else the Hub) or `"arithmetic"` (generated).
        dataset_name (`str`, *optional*):
            A local file or folder, or a Hub id, in place of the Hub's GSM8K.
        split (`str`, *optional*, defaults to `"test"`)
        num_prompts (`int`, *optional*):
            Only the first so many prompts.
        temperatures (`list[float]`, *optional*, defaults to `[0.0, 0.5, 1.0]`):
            0 is greedy decoding, one completion a prompt.
        num_samples (`int`, *optional*, defaults to `4`):
            Completions a prompt and seed.
        seeds (`list[int]`, *optional*, defaults to `[0]`)
        top_p (`float`, *optional*, defaults to `1.0`)
        max_new_tokens (`int`, *optional*, defaults to `256`)
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated together.
        dtype (`str`, *optional*, defaults to `"auto"`):
            The models' data type.
        output_dir (`str`, *optional*, defaults to `"outputs/evaluation"`)
    """

    models: list[str] = field(metadata={"help": "Folders, Hub ids or adapters; `name=path` names one in the report."})
    task: str = field(metadata={"help": "gsm8k or arithmetic.", "choices": list(TASKS)})
    dataset_name: str | None = field(default=None, metadata={"help": "Local data or a Hub id for GSM8K."})
    split: str = field(default="test", metadata={"help": "The split whose prompts are asked."})
    num_prompts: int | None = field(default=None, metadata={"help": "Only the first so many prompts."})
    temperatures: list[float] = field(
        default_factory=lambda: [0.0, 0.5, 1.0], metadata={"help": "0 is greedy decoding."}
    )
    num_samples: int = field(default=4, metadata={"help": "Completions a prompt and seed."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of the sampling."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 is off."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    batch_size: int = field(default=64, metadata={"help": "Sequences generated together."})
    dtype: str = field(
        default="auto",
        metadata={"help": "The models' data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Where samples and report go."})

    def __post_init__(self):
        for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("batch_size", 1), ("num_prompts", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}: {value}` is out of range. Set it to {least} or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p: {self.top_p}` is a probability above 0, up to 1 (off).")
        if any(temperature < 0 for temperature in self.temperatures):
            raise ValueError(f"`temperatures: {self.temperatures}` must be 0 (greedy) or more.")
        repeated = {name for name in self.named_models() if list(self._names()).count(name) > 1}
        if repeated:
            raise ValueError(f"`models` has two called {', '.join(repeated)}. Name them: `first=path second=path`.")

    def _names(self):
        for model in self.models:
            name, has_name, path = model.rpartition("=")
            yield name if has_name else Path(path).name

    def named_models(self) -> dict[str, str]:
        """Path or Hub id of each model, by its name in the report."""
        return dict(zip(self._names(), (model.rpartition("=")[2] for model in self.models), strict=True))


def load_rows(arguments: EvaluateArguments) -> list[dict]:
    """The prompts and references of the task's split."""
    from ..tasks.arithmetic import make_arithmetic
    from ..tasks.gsm8k import load_gsm8k

    splits = make_arithmetic() if arguments.task == "arithmetic" else load_gsm8k(arguments.dataset_name)
    if arguments.split not in splits:
        raise ValueError(f"`split: {arguments.split}` is not among the dataset's, which are {', '.join(splits)}.")
    return list(splits[arguments.split])[: arguments.num_prompts]


def weights_of(path: str) -> list:
    """What tells a folder's weights from later ones under the same name: their files' sizes and times."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def sample_cells(
    name: str, path: str, rows: list[dict], arguments: EvaluateArguments
) -> dict[float, list[list[dict]]]:
    """For each temperature one cell a seed; the model is loaded only if a cell is not on disk yet."""
    from functools import cache

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..evaluation.cells import CellKey, load_or_sample
    from ..evaluation.sampling import sample

    @cache
    def loaded():
        tokenizer = AutoTokenizer.from_pretrained(path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(path, dtype=arguments.dtype, use_safetensors=True)
        return model.to(device), tokenizer

    prompts, weights = [row["prompt"] for row in rows], weights_of(path)
    cells: dict[float, list[list[dict]]] = {}
    for temperature in arguments.temperatures:
        # Greedy decoding has one completion a prompt, whatever the seed.
        seeds, count = (arguments.seeds[:1], 1) if temperature == 0 else (arguments.seeds, arguments.num_samples)
        for seed in seeds:
            options = {"num_samples": count, "top_p": arguments.top_p, "batch_size": arguments.batch_size}
            options |= {"max_new_tokens": arguments.max_new_tokens}
            told = {"path": str(path), "weights": weights, "dtype": arguments.dtype, **options}
            settings = {**told, "prompts": prompts}

            def draw(temperature=temperature, seed=seed, options=options):
                model, tokenizer = loaded()
                title = f"{name}, temperature {temperature:g}, seed {seed}"
                return sample(
                    model, tokenizer, prompts, temperature=temperature, seed=seed, description=title, **options
                )

            cell = load_or_sample(CellKey(name, temperature, seed, settings), Path(arguments.output_dir), rows, draw)
            cells.setdefault(temperature, []).append(cell)
    return cells


def main(arguments: EvaluateArguments) -> None:
    from statistics import fmean

    from ..evaluation import comparison
    from ..evaluation.cells import values_by_prompt
    from ..evaluation.report import print_rows
    from ..tasks.files import check_local_model, check_local_path, check_writable
    from ..tasks.final_answer import answer_text, is_correct
    from ..tasks.math_answer import MathVerifier

    for path in arguments.named_models().values():
        check_local_path(path, "models")
        check_local_model(path, "models")
    check_writable(arguments.output_dir, "output_dir")
    rows = load_rows(arguments)
    output_dir = Path(arguments.output_dir)
    values: comparison.Values = {}
    lengths, lines = {}, []
    with MathVerifier() as verifier:
        scores = {
            "accuracy": is_correct,
            "accuracy_math": lambda text, row: verifier.is_equal(answer_text(text), answer_text(row["completion"])),
        }
        for name, path in arguments.named_models().items():
            for temperature, cells in sample_cells(name, path, rows, arguments).items():
                lines += [line for cell in cells for line in cell]
                of_seeds = [values_by_prompt(cell, rows, scores) for cell in cells]
                values[name, temperature] = {
                    metric: [fmean(of_prompt) for of_prompt in zip(*(v[metric] for v in of_seeds), strict=True)]
                    for metric in of_seeds[0]
                }
            mine = [line for line in lines if line["model"] == name]
            lengths[name] = [completion["length"] for line in mine for completion in line["completions"]]
        unjudged = verifier.failures

    results = comparison.summarise(values)
    (output_dir / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison.write_tables(results, output_dir)
    metrics = comparison.metric_names(results)
    best_k = [name for name in metrics if name.startswith("pass@")][-1]
    shown = ("accuracy", "accuracy_math", best_k, "self_bleu", "distinct", "length", "ended")
    shown = [name for name in shown if name in metrics]
    rows_shown = comparison.table(results, shown)
    pictures = comparison.plot(results, lengths, output_dir)
    baseline = next(iter(arguments.named_models()))
    _write_report(output_dir, arguments, len(rows), rows_shown, values, baseline, pictures, unjudged)

    print_rows(comparison.table(results, shown, intervals=False), f"{arguments.task}, {len(rows)} prompts")
    print(f"Report: {output_dir / 'report.md'}")


def _write_report(output_dir, arguments, prompts, rows_shown, values, baseline, pictures, unjudged) -> None:
    from ..evaluation import comparison
    from ..evaluation.report import markdown

    parts = [
        f"# {', '.join(arguments.named_models())} on {arguments.task}",
        f"{prompts} prompts of the split `{arguments.split}`, {arguments.num_samples} samples each and seed (one when "
        f"greedy), seeds {', '.join(map(str, arguments.seeds))}, at most {arguments.max_new_tokens} tokens. Means "
        "over prompts, with 95 % bootstrap intervals over prompts. `accuracy` compares the number after `####`, "
        "`accuracy_math` is math-verify's judgement; lower `self_bleu` and higher `distinct` are more diverse; "
        "`length` is in tokens; `ended` is the share of completions that stopped by themselves.",
        markdown(rows_shown),
    ]
    if unjudged:
        parts.append(f"{unjudged} answers could not be judged by math-verify in time, and count as wrong there.")
    differences = comparison.differences(values, baseline)
    if differences:
        shown = [name for name in rows_shown[0][2:] if any(name in result.metrics for result in differences)]
        parts += [
            f"## Minus {baseline}, at the same temperature",
            "Paired by prompt. A flatter policy is more diverse at every temperature, so compare accuracies at equal "
            "diversity too: in the picture a model is better where its line lies above and to the right.",
            markdown(comparison.table(differences, shown)),
        ]
    parts += [f"![{name}]({name})" for name in pictures]
    (output_dir / "report.md").write_text("\n\n".join(parts) + "\n")


def make_parser():
    from .parser import RecipeParser

    return RecipeParser((EvaluateArguments,), prog="trl-irl evaluate")


def run(argv: list[str] | None = None) -> int:
    """The command: what is wrong becomes one message; the exit status is 0, or 2 then."""
    from .failures import report

    parser = make_parser()
    (arguments,) = parser.parse(argv)
    try:
        main(arguments)
        return 0
    except (ValueError, OSError, ImportError) as error:
        report(parser.prog, error)
        return 2


if __name__ == "__main__":
    from trl_irl.commands.failures import leave

    leave(run())
