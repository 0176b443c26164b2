"""
The referee: every objective, and the rivals that one would use instead, on `arithmetic`, each as well tuned as the
others and by its best samplers. A day on 2 cores; what is done is kept, so it can be killed and taken up.

```bash
.venv/bin/python -m benchmarks.referee             # raw numbers in results/referee.jsonl, a line per run
.venv/bin/python -m benchmarks.referee --report
```

The arms are in `referee.yaml`; `benchmarks.real_model_study` runs other plans of this kind. On seed 0 each arm chooses
its learning rate (with the first strength and steps), then its strength (with that rate), then its number of steps;
one without a strength chooses its rate and steps from all pairs, so that it tries as many. Where a plan says
`learning_rate_of: MLE`, the others take that arm's rate (on real models, where a run takes a quarter of an hour). The
choice is by the plan's first metric on the validation problems, on the frontier, in the mean over the values of
self-BLEU that the tables have. With what it has chosen an arm is trained on the other seeds, and judged on their test
problems. A seed draws its own demonstrations, problems, order of training and samples, all alike for every arm; so
differences are paired by seed, and their intervals are Student's.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.referee_report import mean_on_frontier, report
from benchmarks.seeds import RESULTS, add_row, read_rows


HERE = Path(__file__).parent
# What each run sets itself, whatever its recipe says.
_OF_RUNS = {
    *("model_name_or_path", "output_dir", "num_train_rows", "task_seed", "seed", "max_steps", "learning_rate"),
    *("eval_strategy", "do_eval", "disable_tqdm", "logging_steps"),
}
_NAMES = ("split", "demonstrations", "seed", "arm", "strength", "learning_rate", "steps")  # of a run


def plan_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def settings_of(arm: dict, strength: float | None) -> dict:
    """An arm's keys of IRLConfig at a strength."""
    keys = {key: value for key, value in arm.items() if key != "strength"}
    return keys | ({} if strength is None else {next(iter(arm["strength"])): strength})


def strengths_of(arm: dict) -> list:
    return next(iter(arm["strength"].values())) if "strength" in arm else [None]


def key_of(run: dict) -> str:
    return json.dumps([run[name] for name in _NAMES])


def done_of(plan: dict, rows: list[dict]) -> dict[str, dict]:
    """What is there, by run: of arms that are still what they were, and judged as they would be now."""
    return {
        key_of(row): row
        for row in rows
        if row["arm"] in plan["arms"]
        and row["keys"] == settings_of(plan["arms"][row["arm"]], row["strength"])
        and list(row["samplers"]) == plan[row["split"]]["samplers"]
        and _without_batch_size(row.get("judged")) == judged_by(plan, row["split"])
        and row.get("recipe") in (None, recipe_of(plan, row["keys"]))  # it was not told before
    }


def judged_by(plan: dict, split: str) -> dict:
    """What of a plan, beside its arms, decides a run's numbers."""
    told = {name: plan.get(name) for name in ("recipe", "model", "keys", "dtype", "levels", "metrics", "evaluation")}
    return _without_batch_size(told | {"split": plan[split]})


def _without_batch_size(judged: dict | None) -> dict | None:
    """How many are sampled at once is a matter of memory and time: of the first runs of a plan it may be another."""
    if judged is None or not judged.get("evaluation"):
        return judged
    evaluation = {key: value for key, value in judged["evaluation"].items() if key != "batch_size"}
    return {**judged, "evaluation": evaluation}


@functools.cache
def _recipe(path: str) -> dict:
    return yaml.safe_load((HERE.parent / path).read_text(encoding="utf-8"))


def recipe_of(plan: dict, keys: dict) -> str | None:
    """A digest of what the plan's recipe says beside an arm's keys and those of each run: it may change meanwhile."""
    if "recipe" not in plan:
        return None
    left = {key: value for key, value in _recipe(plan["recipe"]).items() if key not in {*keys, *_OF_RUNS}}
    return hashlib.sha256(json.dumps(left, sort_keys=True).encode()).hexdigest()[:12]


def finished(plan: dict, results: Path) -> list[dict]:
    """The runs of a plan that a file of results has; of the tests, those of what each arm has chosen by now."""
    done = done_of(plan, read_rows(results))

    def is_chosen(run: dict) -> bool:
        found = chosen(plan, done, run["demonstrations"], run["arm"])
        return isinstance(found, dict) and all(found[key] == run[key] for key in found.keys() - {"split", "seed"})

    return [run for run in done.values() if run["split"] != "test" or is_chosen(run)]


def best(plan: dict, runs: list[dict]) -> dict:
    return max(runs, key=lambda run: mean_on_frontier(plan, run))


def chosen(plan: dict, done: dict[str, dict], size: int, name: str) -> dict | list[dict]:
    """What an arm has chosen on the validation problems of seed 0; or the runs that must be done before it can."""
    arm, steps = plan["arms"][name], plan["demonstrations"][size]
    rates, decides = plan["learning_rates"], plan.get("learning_rate_of", name)
    if decides != name:
        decided = chosen(plan, done, size, decides)
        if isinstance(decided, list):
            return []  # nothing can be done before; its own runs are asked for by its own name
        rates = [decided["learning_rate"]]
    run = {"split": "validation", "demonstrations": size, "seed": 0, "arm": name}
    run |= {"strength": strengths_of(arm)[0], "learning_rate": rates[0], "steps": steps[0]}
    if "strength" not in arm:
        runs = [run | {"learning_rate": rate, "steps": count} for rate in rates for count in steps]
        missing = [one for one in runs if key_of(one) not in done]
        return missing or {name: best(plan, [done[key_of(one)] for one in runs])[name] for name in run}
    for key, values in (
        ("learning_rate", rates),
        ("strength", strengths_of(arm)),
        ("steps", steps),
    ):
        runs = [run | {key: value} for value in values]
        missing = [one for one in runs if key_of(one) not in done]
        if missing:
            return missing
        run = {name: best(plan, [done[key_of(one)] for one in runs])[name] for name in run}
    return run


def jobs(plan: dict, done: dict[str, dict]) -> Iterator[dict]:
    """Runs that can be done now, the most wanted first: few demonstrations first, and whole seeds."""
    for size in plan["demonstrations"]:
        decided, waits = {}, False
        for name in plan.get("arms_of", {}).get(size, plan["arms"]):
            found = chosen(plan, done, size, name)
            if isinstance(found, list):
                waits = True
                yield from found
            else:
                decided[name] = found
        for seed in plan["seeds"]:
            for run in decided.values():
                if key_of(run := run | {"split": "test", "seed": seed}) not in done:
                    yield run
        if waits:  # the chosen of this size come before the next
            return


def run_job(output_dir: Path, plan: dict, run: dict):
    """Train an arm, and judge it by its samplers: its row, and the [`~evaluation.Results`]."""
    from trl_irl.commands.irl import make_parser, make_trainer
    from trl_irl.demos.recipe_runs import words_of

    seed, start = run["seed"], time.perf_counter()
    own = settings_of(plan["arms"][run["arm"]], run["strength"])
    keys = keys_for_training(own)
    weight = keys.pop("average", None)
    of_training = ("demonstrations", "seed", "learning_rate", "steps")
    kept = output_dir / "kept" / "-".join(str(run[name]) for name in of_training)
    is_kept = plan.get("keep_mle") and keys["objective"] == "nll" and "neftune_noise_alpha" not in keys
    begin = kept if is_kept and kept.exists() else output_dir / "base"
    words = ["--config", str(HERE.parent / plan["recipe"]), "--model_name_or_path", str(begin)]
    words += ["--output_dir", str(output_dir / "trained"), "--num_train_rows", str(run["demonstrations"])]
    words += ["--task_seed", str(1000 + seed), "--seed", str(seed), "--max_steps", str(run["steps"])]
    words += ["--learning_rate", str(run["learning_rate"]), "--eval_strategy", "no", "--do_eval", "true"]
    words += ["--disable_tqdm", "true", "--logging_steps", "1000"]
    words += words_of(plan.get("keys", {})) + words_of(keys)
    script_args, *others = make_parser().parse(words)
    trainer, _ = make_trainer(script_args, *others)
    told = {**run, "keys": own, "judged": judged_by(plan, run["split"]), "recipe": recipe_of(plan, own)}
    told["base"] = weights_digest(output_dir / "base")
    if begin != kept:
        trainer.train()
        told["seconds"] = time.perf_counter() - start
        if is_kept:
            _keep(trainer, kept)
    if weight is not None:
        _average(trainer.model, output_dir / "base", weight)
    results = _evaluated(plan, run, trainer, script_args.task_data())
    told["nll"] = results.summaries[0].metrics["nll"].mean
    told["area"] = {one.metric: one.value.mean for one in results.frontier_areas}
    told["samplers"] = {
        str(one.sampler): {name: x.mean for name, x in one.metrics.items() if name not in ("nll", "empty", "pass@1")}
        for one in results.summaries
    }
    for which in ("frontier", "temperatures"):
        told[which] = _at_levels(results, plan, which)
    return {**told, "all_seconds": time.perf_counter() - start}, results


def _evaluated(plan: dict, run: dict, trainer, data):
    """The trained model on the seed's problems of the split: all, or as many of them as the plan says."""
    from trl_irl import evaluate
    from trl_irl.evaluation import EvaluationSettings
    from trl_irl.tasks.splits import load_split

    rows, settings = load_split(data, run["split"]), dict(plan[run["split"]])
    if "num_prompts" in settings:
        rows = rows.shuffle(seed=run["seed"]).take(settings.pop("num_prompts"))
    if "dtype" in plan:  # of the weights while they are sampled from
        import torch

        trainer.model.to(getattr(torch, plan["dtype"]))
    settings |= {"task": data.task, "seeds": [run["seed"]], **plan["evaluation"]}
    models = {"arm": (trainer.model, trainer.processing_class)}
    return evaluate(models, list(rows), EvaluationSettings(chat_format=data.chat_format, **settings))


def _keep(trainer, folder: Path) -> None:
    """What maximum likelihood has trained, for the arms that begin with it; whole or not at all."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    for part in (trainer.model, trainer.processing_class):
        part.save_pretrained(draft)
    if folder.exists():  # of another worker, meanwhile
        shutil.rmtree(draft)
    else:
        draft.rename(folder)


def _average(model, base: Path, weight: float) -> None:
    """The model's weights times `weight`, and the base's times the rest, as `trl-irl average` has them."""
    import torch
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    with torch.no_grad():
        for name, tensor in model.named_parameters():  # each once, also where two names share one
            tensor.mul_(weight).add_(before[name], alpha=1 - weight)


def keys_for_training(keys: dict) -> dict:
    """Other objectives refuse the recipe's keys for the temporal-difference term: back to the defaults of these."""
    if keys["objective"] in ("soft_q", "value_consistency", "squared_nll"):
        return keys
    return {"lambda_td": 0, "td_scale": "null", "lambda_td_warmup_steps": 0, **keys}


def _at_levels(results, plan: dict, which: str) -> dict[str, list[float | None]]:
    """Each metric at each value of self-BLEU, on the frontier or on the curve of temperatures alone."""
    from trl_irl.evaluation.frontier import families, frontier

    curves = families(results.values, "arm")
    if which == "temperatures":
        curves = {"temperature": curves["temperature"]}
    found = {metric: frontier(curves, metric, plan["levels"])[0].tolist() for metric in plan["metrics"]}
    return {metric: [None if x != x else x for x in values] for metric, values in found.items()}


def base_model(model: str, output_dir: Path) -> None:
    """The model that all arms begin with, `demo`, `t5` or `smollm2`, in `output_dir / "base"`."""
    if model == "demo":
        from trl_irl.demos.demo import pretrained_base

        pretrained_base(output_dir)
    elif model == "t5":
        from benchmarks.t5_base import pretrained_t5

        pretrained_t5(output_dir)
    elif not (output_dir / "base").exists():
        from benchmarks.real_model import smollm2

        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "base").symlink_to(smollm2().resolve())


def weights_digest(folder: Path) -> str:
    """Of a model's weights: one that is trained anew is another one."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:12]


def check_base(plan: dict, rows: list[dict], base: str) -> None:
    """
    Arms of one size are compared with each other, seed by seed, and must begin with one base model; SmolLM2 is always
    the same.

    Raises:
        `SystemExit`: runs that are there began with another one, or do not say with which, and some are missing.
    """
    done = done_of(plan, rows)
    for size in {run["demonstrations"] for run in jobs(plan, done)}:
        others = {run.get("base") for run in done.values() if run["demonstrations"] == size} - {base}
        if others and plan["model"] != "smollm2":
            raise SystemExit(
                f"Runs of {size} demonstrations began with another base model than {base} "
                f"({', '.join(sorted(map(str, others)))}). Put that one into the folder, or begin the size anew."
            )


def work(options: argparse.Namespace) -> None:
    """Start what can be done, so many runs at a time, until nothing is left."""
    plan, running, failed = plan_of(options.plan), {}, 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    while True:
        for key, process in list(running.items()):
            if process.poll() is not None:
                del running[key]
                failed += process.returncode != 0
        if failed:
            for process in running.values():
                process.wait()
            raise SystemExit("A run failed; start the study again to go on.")
        done = done_of(plan, read_rows(options.results))
        ready = [run for run in jobs(plan, done) if key_of(run) not in running]
        if not ready and not running:
            return
        for run in ready[: options.workers - len(running)]:
            command = [sys.executable, "-m", "benchmarks.referee", "--plan", str(options.plan)]
            command += ["--output_dir", str(options.output_dir), "--results", str(options.results)]
            running[key_of(run)] = subprocess.Popen([*command, "--run", json.dumps(run)], env=environment)
        time.sleep(1)


def main(plan: Path = HERE / "referee.yaml", description: str | None = __doc__) -> None:
    """The command of a study with this plan, whose name its results and its models' folder have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=plan)
    parser.add_argument("--output_dir", type=Path, help="for the base model; outputs/PLAN if unset")
    parser.add_argument("--results", type=Path, help="raw numbers, kept; results/PLAN.jsonl if unset")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only print the tables of what is done")
    options = parser.parse_args()
    options.output_dir = options.output_dir or Path("outputs") / options.plan.stem
    options.results = options.results or RESULTS / f"{options.plan.stem}.jsonl"
    plan = plan_of(options.plan)
    if options.run:
        run = json.loads(options.run)
        told, results = run_job(options.output_dir, plan, run)
        add_row(options.results, told)
        results.write(options.output_dir / "reports" / "-".join(str(run[name]) for name in _NAMES).replace(" ", "_"))
        print(run, f"at self-BLEU {plan['levels']}: {told['frontier']}", flush=True)
        return
    if not options.report:
        base_model(plan["model"], options.output_dir)
        check_base(plan, read_rows(options.results), weights_digest(options.output_dir / "base"))
        work(options)
    print(report(plan, finished(plan, options.results)))


if __name__ == "__main__":
    main()
