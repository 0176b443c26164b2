"""
The demo's comparison over several seeds of the fine-tuning, from the base model that `make demo` left.

```bash
make demo && .venv/bin/python benchmarks/demo_seeds.py --seeds 0 1 2
```
"""

import argparse
import statistics
from pathlib import Path

from trl_irl.commands.demo import TEMPERATURES, evaluate_model, train_recipe
from trl_irl.tasks.arithmetic import make_arithmetic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("outputs/demo/base"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo_seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows = list(make_arithmetic()["test"])
    cells = {}
    for seed in options.seeds:
        for name in ("mle", "irl"):
            folder = options.output_dir / f"{name}-{seed}"
            train_recipe(name, options.base, folder, seed=seed)
            for cell in evaluate_model(name.upper(), folder, rows, num_samples=4):
                cells.setdefault((cell.model, cell.temperature), []).append(cell)

    def mean_and_spread(values: list[float | None], scale: float) -> str:
        if values[0] is None:
            return ""
        scaled = [scale * value for value in values]
        return f"{statistics.mean(scaled):.1f} ± {statistics.stdev(scaled):.1f}"

    print(f"{len(options.seeds)} seeds, {len(rows)} problems, mean ± standard deviation over seeds\n")
    print("| model | decoding | accuracy (%) | self-BLEU |\n|---|---|---:|---:|")
    for model in ("MLE", "IRL"):
        for temperature in TEMPERATURES:
            group = cells[model, temperature]
            accuracy = mean_and_spread([cell.accuracy for cell in group], 100)
            diversity = mean_and_spread([cell.self_bleu for cell in group], 1)
            decoding = "greedy" if temperature == 0 else f"T = {temperature:g}"
            print(f"| {model} | {decoding} | {accuracy} | {diversity} |")


if __name__ == "__main__":
    main()
