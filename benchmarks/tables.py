"""
The tables of the documentation from the raw numbers in `results/`.

```bash
.venv/bin/python -m benchmarks.tables            # writes them between their markers
.venv/bin/python -m benchmarks.tables --check    # says which would change, and exits with 1 then
```

A table stands between `<!-- table: NAME -->` and `<!-- end -->` in the README or a page of `docs/`; NAME is one of
`TABLES`. A test asks that all of them are up to date, and that no table of measured numbers stands elsewhere.
"""

import argparse
import json
import re
from pathlib import Path
from statistics import fmean

from benchmarks.seeds import RESULTS, read_rows, shown


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_TABLE = re.compile(r"(?<=<!-- table: )(\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def markdown(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text, and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join([f"| {' | '.join(header)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)])


def read_json(name: str):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def demo() -> str:
    """What `make demo` printed, and the share that answered."""
    columns = {"accuracy": 100, "answered": 100, "pass@4": 100, "self_bleu": 1, "distinct": 1, "ended": 100}
    rows = []
    for cell in read_json("demo.json"):
        found = {
            name: factor * cell["metrics"][name]["mean"] for name, factor in columns.items() if name in cell["metrics"]
        }
        texts = [
            f"{found[name]:.{2 if name == 'distinct' else 1}f}{' %' if factor == 100 else ''}" if name in found else ""
            for name, factor in columns.items()
        ]
        rows.append([cell["model"], f"T = {cell['temperature']:g}" if cell["temperature"] else "greedy", *texts])
    header = ["model", "decoding", "accuracy", "answered", "pass@4", "self-BLEU", "distinct", "ended"]
    return markdown(header, rows, left=2)


def demo_equal_diversity() -> str:
    """MLE's accuracy and pass@4 at equal self-BLEU, and IRL's minus it, with 95 % intervals over prompts."""
    found = read_json("demo_differences.json")["at_equal_diversity"]
    levels = sorted({one["self_bleu"] for one in found}, reverse=True)
    rows = []
    for metric in dict.fromkeys(one["metric"] for one in found):
        for model, minus in dict.fromkeys((one["model"], one["minus"]) for one in found):
            cells = []
            for level in levels:
                key = (model, metric, level)
                value = next(one["value"] for one in found if (one["model"], one["metric"], one["self_bleu"]) == key)
                mean, low, high = (100 * value[name] for name in ("mean", "low", "high"))
                cells.append(f"{mean:.1f}" if minus is None else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
            rows.append([metric, model if minus is None else f"{model} - {minus}", *cells])
    return markdown(["metric", "model", *(f"self-BLEU {level:g}" for level in levels)], rows, left=2)


def diversity(size: int) -> str:
    from benchmarks.diversity_study import at_equal_diversity, runs_of

    return at_equal_diversity(runs_of(RESULTS / "diversity_study.jsonl", size))


def first_screen() -> str:
    """Two rows of [`diversity`] for the README."""
    lines = [line.split(" | ") for line in diversity(300).splitlines() if "---" not in line]
    columns = [lines[0].index(f"{metric} at 80") for metric in ("accuracy", "pass@4")]
    cells = {
        line[0].removeprefix("| "): [line[i].removesuffix(" |").removesuffix(" *") for i in columns] for line in lines
    }
    seeds = next(line[1] for line in lines if line[0] == "| mle")
    header = [f"generated word problems, 0.9 M weights, {seeds} seeds"]
    header += [f"{metric} at self-BLEU 80" for metric in ("accuracy", "pass@4")]
    irl = "IRL, `lambda_td: 0.1`, `td_scale: 1` (difference, 95 % interval over seeds)"
    return markdown(header, [["MLE", *cells["mle"]], [irl, *cells["0.1 mask"]]])


def online() -> str:
    from benchmarks.online_study import report

    return report(read_rows(RESULTS / "online_study.jsonl")).split("\n\n")[0]


def toy() -> str:
    from benchmarks.correctable_mdp import report

    return report(read_json("correctable_mdp.json"))


def reward() -> str:
    """How well each reward tells right from wrong, and what choosing by it gives."""
    seeds = read_rows(RESULTS / "reward_study.jsonl")
    models = ("mle", "irl")

    def auroc(reward: str) -> list[str]:
        found = {model: [] for model in models}
        for seed in seeds:
            for one in seed["agreement"]:
                if one["reward"] == reward:
                    found[one["model"]].append(one["AUROC in prompt"]["mean"])
        return [shown(found[model], digits=2) for model in models]

    def best(way: str) -> list[str]:
        found = {model: [] for model in models}
        for seed in seeds:
            for one in seed["best_of_n"]:
                if (one["way"], one["temperature"]) == (way, 1.0):
                    found[one["model"]].append(one["scores"]["8"]["mean"])
        return [shown(found[model], 100) + " %" for model in models]

    rows = [["(a random choice)", "0.5", "0.5", *best("random")], ["(majority vote)", "", "", *best("majority vote")]]
    kinds = {
        "log_ratio": "`log_ratio` of {} to its base",
        "likelihood": "likelihood under {}",
        "soft_q": "`soft_q` of {}",
    }
    for kind, told in kinds.items():
        for judge in models:
            name = f"{judge} {kind} mean"
            rows.append([told.format(judge.upper()), *auroc(name), *best(name)])
    rows.append(["(an oracle)", "1", "1", *best("oracle")])
    header = ["reward, mean over tokens", "AUROC in prompt, MLE's samples", "IRL's samples", "best of 8, MLE at T = 1"]
    return markdown([*header, "IRL at T = 1"], rows)


def rlhf() -> str:
    from benchmarks.rlhf_study import report

    return report(read_rows(RESULTS / "rlhf_study.jsonl")).split("\n\n")[1].strip()


def rlhf_demo() -> str:
    """What `make rlhf-demo` printed."""
    cells, training = read_json("rlhf_demo.json"), read_json("rlhf_demo_training.json")
    named = {"base": "base", "SFT": "SFT", "PPO": "PPO from SFT, on the reward model", "IRL": "IRL"}
    rows = []
    for name, told in (named | {"RLOO": "RLOO from IRL, on IRL's reward"}).items():
        greedy, sampled = (
            next(cell["metrics"] for cell in cells if (cell["model"], cell["temperature"]) == (name, temperature))
            for temperature in (0.0, 1.0)
        )
        texts = [f"{100 * greedy['accuracy']['mean']:.1f} %", f"{100 * sampled['accuracy']['mean']:.1f} %"]
        texts += [f"{sampled['reward']['mean']:.2f}", f"{100 * sampled['win_rate']['mean']:.1f} %"]
        texts.append(f"{sampled['self_bleu']['mean']:.1f}")
        rows.append([told, *texts, f"{training['kl'][name]:.2f}" if name in training["kl"] else ""])
    header = ["model", "greedy", "T = 1", "reward, T = 1", "win rate, T = 1", "self-BLEU, T = 1", "KL (nats)"]
    return markdown(header, rows)


def pretrained_start() -> str:
    """The nll against SFT's at equal steps, in percent, and the squared reward at the end."""
    cells = read_json("pretrained_start.json")
    last = {"gsm8k": "nll at 60", "e2e": "nll at 70"}

    def of(data: str, objective: str, key: str) -> list[float]:
        found = [cell for cell in cells if (cell["data"], cell["objective"]) == (data, objective)]
        return [cell[key] for cell in sorted(found, key=lambda cell: cell["seed"])]

    sft = {data: of(data, "SFT", key) for data, key in last.items()}
    rows = [["SFT", *(f"{fmean(values):.3f}" for values in sft.values()), ""]]
    named = {
        "IRL, defaults": "IRL, the defaults",
        "IRL, lambda_td 1": "`lambda_td: 1`",
        "IRL, td_scale 1, lambda_td 0.003": "`td_scale: 1`, `lambda_td: 0.003`",
        "IRL, td_scale 1": "`td_scale: 1`, the paper's objective at 0.1",
    }
    for objective, told in named.items():
        texts = []
        for data, key in last.items():
            more = [100 * (a / b - 1) for a, b in zip(of(data, objective, key), sft[data], strict=True)]
            texts.append(f"{fmean(more):+.1f} % ({', '.join(f'{value:+.1f}' for value in more)})")
        at_end = "; ".join(f"{fmean(of(data, objective, 'td_loss')):.0f}" for data in last)
        rows.append([told, *texts, at_end])
    header = ["SmolLM2-135M-Instruct, all weights", "GSM8K chat, 60 steps of 4", "E2E, 70 steps of 16"]
    return markdown([*header, "td_loss at the end"], rows)


def speed() -> str:
    """A step of each trainer on a CPU, against SFTTrainer's."""
    rows = []
    cells = read_json("irl_step_cpu.json")
    for cell in cells:
        sft = next(one for one in cells if (one["vocab"], one["variant"]) == (cell["vocab"], "SFTTrainer"))
        told = [f"{cell['seconds']:.3f}", f"{cell['peak_mib']:.0f}", f"{cell['beyond_states_mib']:.0f}"]
        told += [f"{cell[key] / sft[key]:.2f}" for key in ("seconds", "peak_mib")]
        rows.append([str(cell["vocab"]), cell["variant"], *told])
    header = ["vocabulary", "variant", "s/step", "peak MiB", "beyond states MiB", "time vs SFT", "memory vs SFT"]
    return markdown(header, rows, left=2)


TABLES = {
    "demo": demo,
    "demo_equal_diversity": demo_equal_diversity,
    "first_screen": first_screen,
    "online": online,
    "toy": toy,
    "reward": reward,
    "rlhf": rlhf,
    "pretrained_start": pretrained_start,
}


def filled(page: str) -> str:
    """A page with all of its tables made anew."""
    return _TABLE.sub(lambda found: f"{found[1]} -->\n\n{TABLES[found[1]]()}\n\n", page)


def named_in(page: str) -> list[str]:
    return [found[1] for found in _TABLE.finditer(page)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something would change")
    options = parser.parse_args()
    changed = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if (new := filled(page)) != page:
            changed.append(str(path.relative_to(ROOT)))
            if not options.check:
                path.write_text(new, encoding="utf-8")
    print(f"{'Out of date' if options.check else 'Written'}: {', '.join(changed) or 'nothing'}.")
    raise SystemExit(bool(options.check and changed))


if __name__ == "__main__":
    main()
