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
import re
from functools import cache, partial
from pathlib import Path
from statistics import fmean

from benchmarks import cost_tables
from benchmarks.seeds import RESULTS, read_json, read_rows, shown
from trl_irl.evaluation.comparison import AtDiversity, Result, sampler_of, table, table_at_equal_diversity
from trl_irl.evaluation.rendering import markdown
from trl_irl.evaluation.statistics import Interval


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_TABLE = re.compile(r"(?<=<!-- table: )(\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def demo() -> str:
    """What `make demo` printed, and how many samples of a problem differ."""
    return _printed("demo", ["accuracy", "answered", "pass@4", "self_bleu", "distinct", "ended"])


def demo_equal_diversity() -> str:
    """MLE's accuracy and pass@4 at equal self-BLEU, and IRL's minus it, with 95 % intervals over prompts."""
    return _at_equal_diversity("demo")


def real_demo() -> str:
    """What `make real-demo` printed."""
    return _printed("real_demo", ["slots_right", "bleu", "rougeL", "self_bleu", "length", "ended", "nll", "td_loss"])


def real_demo_equal_diversity() -> str:
    """MLE's share of slots at equal self-BLEU, and IRL's minus it, with 95 % intervals over prompts."""
    return _at_equal_diversity("real_demo")


def _printed(name: str, columns: list[str]) -> str:
    """A report's means by model and sampler."""
    cells = read_json(f"{name}.json")
    found = [Result(cell["model"], sampler_of(cell), intervals(cell["metrics"])) for cell in cells]
    return markdown(table(found, columns, intervals=False))


def _at_equal_diversity(name: str) -> str:
    """A report's differences at equal self-BLEU."""
    found = read_json(f"{name}_differences.json")["at_equal_diversity"]
    return markdown(table_at_equal_diversity([AtDiversity(**{**one, **intervals(one)}) for one in found]))


def intervals(found: dict) -> dict[str, Interval]:
    """Those of the values that are intervals."""
    return {name: Interval(**value) for name, value in found.items() if isinstance(value, dict)}


def first_screen() -> str:
    """MLE, soft-Q and its best rivals at one diversity, for the README."""
    header, *rows = _referee_rows("referee", 300, "By the best sampler at each diversity")
    of = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    columns = ["accuracy at 80", "pass@4 at 80", "accuracy, greedy"]
    told = {"MLE": "MLE", "soft-Q": "IRL (soft-Q)", "value consistency": "value consistency"}
    told |= {"z-loss around a constant": "z-loss around a measured constant"}
    told |= {name: name for name in ("z-loss", "label smoothing", "GEM, log-sigmoid")}
    first = f"300 generated word problems, 0.9 M weights, {of['soft-Q']['seeds']} seeds: points above MLE"
    cells = [[told[name], *(of[name][column].removesuffix(" *") for column in columns)] for name in told]
    return markdown([[first, *(column.replace("at 80", "at self-BLEU 80") for column in columns)], *cells], left=1)


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
    return markdown([[*header, "IRL at T = 1"], *rows], left=1)


def rlhf() -> str:
    from benchmarks.rlhf_study import report

    return report(read_rows(RESULTS / "rlhf_study.jsonl")).split("\n\n")[1].strip()


def diversity_300() -> str:
    return _diversity(300)


def diversity_2500() -> str:
    return _diversity(2500)


def _diversity(size: int) -> str:
    """MLE and both values of `terminal_value` at equal diversity."""
    from benchmarks.diversity_study import at_equal_diversity, runs_of

    return markdown(at_equal_diversity(runs_of(RESULTS / "diversity_study.jsonl", size)), left=1)


def terminal_value() -> str:
    """What `terminal_value: mask` changes against `zero` at T = 1."""
    from benchmarks.diversity_study import STEPS, mask_minus_zero, runs_of

    found = {size: mask_minus_zero(runs_of(RESULTS / "diversity_study.jsonl", size)) for size in STEPS}
    rows = [["demonstrations", *(f"{name}, T = 1" for name in next(iter(found.values())))]]
    return markdown([*rows, *([f"{size:,}", *cells.values()] for size, cells in found.items())], left=1)


def rlhf_demo() -> str:
    """What `make rlhf-demo` printed."""
    told = read_json("rlhf_demo.json")
    of = {(cell["model"], cell["temperature"]): cell["metrics"] for cell in told["cells"]}
    names = {
        "base": "base",
        "SFT": "SFT",
        "PPO": "PPO from SFT, on the reward model",
        "IRL": "IRL",
        "RLOO": "RLOO from IRL, on IRL's reward",
    }
    rows = [["model", "greedy", "T = 1", "reward, T = 1", "win rate, T = 1", "self-BLEU, T = 1", "KL (nats)"]]
    for name, title in names.items():
        greedy, at_1 = of[name, 0.0], {key: value["mean"] for key, value in of[name, 1.0].items()}
        kl = told["training"]["kl"].get(name)
        shares = (greedy["accuracy"]["mean"], at_1["accuracy"])
        cells = [*(f"{100 * share:.1f} %" for share in shares), f"{at_1['reward']:.2f}"]
        cells += [f"{100 * at_1['win_rate']:.1f} %", f"{at_1['self_bleu']:.1f}", "" if kl is None else f"{kl:.2f}"]
        rows.append([title, *cells])
    return markdown(rows, left=1)


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
    return markdown([[*header, "td_loss at the end"], *rows], left=1)


def overfitting() -> str:
    """Held-out likelihood at its best and at the end of a training that goes on for too long."""
    from benchmarks.overfitting import RECORD, summary

    return markdown(summary("arithmetic", read_rows(RECORD)), left=2)


def stillness() -> str:
    """How still each arm of the referee holds V, beside what it gains."""
    from benchmarks.referee import HERE, finished, plan_of
    from benchmarks.referee_report import differences, tested
    from benchmarks.stillness import SIZE, table

    plan = plan_of(HERE / "referee.yaml")
    rows = tested(finished(plan, RESULTS / "referee.jsonl"), SIZE)
    found = differences(plan, rows, "frontier", "MLE", list(plan["arms"]))
    gains = {name: columns["accuracy at 80"] for name, columns in found.items() if name != "MLE"}
    return markdown(table(plan, read_rows(RESULTS / "stillness.jsonl"), gains))


def bases() -> str:
    """The arms that stand out in the referee, on base models of other seeds."""
    return _bases("frontier", [*_FIRST[:5], "pass@4 at 80", "nll"])


def bases_each() -> str:
    return _bases("each", ["arm", "seed", *_FIRST[1:5], "pass@4 at 80", "nll"])


def _bases(which: str, columns: list[str]) -> str:
    from benchmarks.bases import RECORD, tables
    from benchmarks.referee import HERE, plan_of
    from benchmarks.referee_report import columns_of

    found = columns_of(tables(plan_of(HERE / "referee.yaml"), read_rows(RECORD))[which], columns)
    return markdown([["base" if name == "seed" else name for name in found[0]], *found[1:]], left=1)


def _referee(study: str, size: int, title: str, columns: list[str] | None = None) -> str:
    """A table of the report of a study by the referee, or some of its columns."""
    from benchmarks.referee_report import columns_of

    found = _referee_rows(study, size, title)
    return markdown(found if columns is None else columns_of(found, columns), left=2 if title == "shares" else 1)


@cache
def _referee_rows(study: str, size: int, title: str) -> list[list[str]]:
    from benchmarks.referee import HERE, finished, plan_of
    from benchmarks.referee_report import shares, tables

    plan = plan_of(HERE / f"{study}.yaml")
    rows = finished(plan, RESULTS / f"{study}.jsonl")
    return shares(plan, rows, size) if title == "shares" else tables(plan, rows, size)[title]


_FRONTIER = "By the best sampler at each diversity"
_FIRST = ["arm", "accuracy at 90", "accuracy at 80", "accuracy at 70", "accuracy, greedy", "nll"]
_SECOND = ["arm", "pass@4 at 90", "pass@4 at 80", "pass@4 at 70", "area, accuracy", "area, pass@4"]
_T5 = ["arm", "accuracy at 80", "accuracy at 65", "accuracy, greedy"]
_LEVELS = [f"accuracy at {level}" for level in (80, 70, 60)]
_PASS = [f"pass@4 at {level}" for level in (80, 70, 60)]
_TRIED = ["arm", "strength", "learning_rate", *_LEVELS]
_E2E = [f"{metric} at {level}" for metric in ("bleu", "slots_right") for level in (80, 60, 40)]
_E2E += ["bleu, greedy", "slots_right, greedy", "nll"]
REFEREE = {
    "referee_300": ("referee", 300, _FRONTIER, _FIRST),
    "referee_300_more": ("referee", 300, _FRONTIER, _SECOND),
    "referee_300_rival": ("referee", 300, "Against the best rival by validation", _FIRST),
    "referee_300_rivals": (
        "referee",
        300,
        "Soft-Q against each rival",
        ["soft-Q minus", "accuracy at 80", "accuracy, greedy", "pass@4 at 90", "pass@4 at 80", "pass@4 at 70"],
    ),
    "referee_300_temperatures": ("referee", 300, "By temperatures alone", _FIRST),
    "referee_300_hull": ("referee", 300, "By a draw between two samplers", _FIRST[:4]),
    "referee_300_chosen": ("referee", 300, "What was chosen", None),
    "referee_300_shares": ("referee", 300, "shares", None),
    "referee_2500": ("referee", 2500, _FRONTIER, ["arm", "seeds", *_FIRST[1:]]),
    "referee_2500_more": ("referee", 2500, _FRONTIER, _SECOND),
    "referee_2500_lower": ("referee", 2500, "By a draw between two samplers, at lower levels", None),
    "referee_2500_chosen": ("referee", 2500, "What was chosen", None),
    "referee_2500_tried": (
        "referee",
        2500,
        "What was tried, on validation",
        ["arm", "strength", "learning_rate", "steps", "nll", "accuracy on the frontier"],
    ),
    "smollm2_300_each": (
        "real_model_arithmetic",
        300,
        "Each run",
        ["arm", "seed", *_LEVELS, *(f"{level}, drawn" for level in _LEVELS), "accuracy, greedy", "nll"],
    ),
    "smollm2_300": (
        "real_model_arithmetic",
        300,
        _FRONTIER,
        ["arm", "seeds", *_LEVELS, *_PASS, "accuracy, greedy", "nll"],
    ),
    "smollm2_300_hull": (
        "real_model_arithmetic",
        300,
        "By a draw between two samplers",
        ["arm", "seeds", *_LEVELS, *_PASS],
    ),
    "smollm2_300_tried": (
        "real_model_arithmetic",
        300,
        "What was tried, on validation",
        [*_TRIED, "pass@4 at 80", "area, accuracy", "accuracy, greedy", "nll"],
    ),
    "smollm2_300_tried_hull": (
        "real_model_arithmetic",
        300,
        "What was tried, on validation, by a draw between two samplers",
        _TRIED,
    ),
    "e2e_1000": ("real_model_e2e", 1000, _FRONTIER, ["arm", "seeds", *_E2E]),
    "e2e_1000_hull": ("real_model_e2e", 1000, "By a draw between two samplers", ["arm", "seeds", *_E2E[:6]]),
    "e2e_1000_each": ("real_model_e2e", 1000, "Each run", ["arm", "seed", *_E2E]),
    "e2e_1000_tried": (
        "real_model_e2e",
        1000,
        "What was tried, on validation",
        ["arm", "strength", "learning_rate", *_E2E, "bleu on the frontier"],
    ),
    "e2e_lora_tried": (
        "real_model_e2e_lora",
        1000,
        "What was tried, on validation",
        ["arm", "strength", "learning_rate", *_E2E, "bleu on the frontier"],
    ),
    "e2e_lora": ("real_model_e2e_lora", 1000, _FRONTIER, ["arm", "seeds", *_E2E]),
    "e2e_lora_hull": ("real_model_e2e_lora", 1000, "By a draw between two samplers", ["arm", "seeds", *_E2E[:6]]),
    "e2e_lora_each": ("real_model_e2e_lora", 1000, "Each run", ["arm", "seed", *_E2E]),
    "t5_1000": ("t5", 1000, _FRONTIER, [*_T5, "nll"]),
    "t5_1000_more": ("t5", 1000, _FRONTIER, ["arm", "pass@4 at 80", "pass@4 at 65", "area, accuracy", "area, pass@4"]),
    "t5_1000_temperatures": ("t5", 1000, "By temperatures alone", _T5),
    "t5_1000_chosen": ("t5", 1000, "What was chosen", None),
}

TABLES = {
    "demo": demo,
    "demo_equal_diversity": demo_equal_diversity,
    "stillness": stillness,
    "bases": bases,
    "bases_each": bases_each,
    "real_demo": real_demo,
    "real_demo_equal_diversity": real_demo_equal_diversity,
    "first_screen": first_screen,
    "online": online,
    "toy": toy,
    "reward": reward,
    "rlhf": rlhf,
    "rlhf_demo": rlhf_demo,
    "diversity_300": diversity_300,
    "diversity_2500": diversity_2500,
    "terminal_value": terminal_value,
    "pretrained_start": pretrained_start,
    "objective_cost": cost_tables.objective_cost,
    "real_model_step": cost_tables.real_model_step,
    "overfitting": overfitting,
    "step_cpu": cost_tables.step_cpu,
    "head_cpu": cost_tables.head_cpu,
    "seq2seq_step": cost_tables.seq2seq_step,
    "seq2seq_padding": cost_tables.seq2seq_padding,
    "reward_throughput": cost_tables.reward_throughput,
    "memory_per_rank": cost_tables.memory_per_rank,
    "scale": cost_tables.scale,
    **{name: partial(_referee, *asked) for name, asked in REFEREE.items()},
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
