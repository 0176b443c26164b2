"""
How alike the experts' own texts of one prompt are: the self-BLEU of four of them, by which to read the levels of the
studies. Below it a model is asked for more diversity than its data have.

```bash
.venv/bin/python -m benchmarks.expert_diversity --e2e data/e2e    # writes results/expert_diversity.json
```

Of a generated word problem the generator words four solutions; of a representation of E2E's test split four of its
references are drawn. The metric is that of `trl-irl evaluate`, over texts of four completions per prompt as there.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

from benchmarks.seeds import RESULTS
from trl_irl.evaluation.metrics import self_bleu
from trl_irl.evaluation.statistics import mean_of
from trl_irl.tasks.arithmetic import different_problems
from trl_irl.tasks.e2e import load_e2e


TEXTS = 4


def of_arithmetic(problems: int = 300) -> list[list[str]]:
    rng = random.Random(0)
    drawn = itertools.islice(different_problems(rng), problems)
    return [[problem.solution(rng) for _ in range(TEXTS)] for problem in drawn]


def of_e2e(folder: Path) -> list[list[str]]:
    rng = random.Random(0)
    references = load_e2e(str(folder))["test"]["references"]
    return [rng.sample(list(texts), TEXTS) for texts in references if len(texts) >= TEXTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--e2e", type=Path, default=Path("data/e2e"), help="folder with E2E's files")
    options = parser.parse_args()
    found = {}
    for name, texts in (("arithmetic", of_arithmetic()), ("e2e", of_e2e(options.e2e))):
        interval = mean_of([self_bleu(of_prompt) for of_prompt in texts]).interval()
        found[name] = {"prompts": len(texts), "texts": TEXTS, "self_bleu": interval.mean}
        found[name] |= {"low": interval.low, "high": interval.high}
        print(f"{name}: {interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}] over {len(texts)} prompts")
    (RESULTS / "expert_diversity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
