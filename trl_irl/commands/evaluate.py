"""
Performance against diversity: sample from models over temperatures and compare what they say.

```bash
trl-irl evaluate --models outputs/mle outputs/irl --task gsm8k --temperatures 0 0.5 1.0 --output_dir outputs/evaluation
```
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..tasks.task import HUB_DATA, custom_score, names_function
from .evaluate_rewards import RewardArguments, analyse
from .evaluate_rows import given_lines, length_by, rows_to_judge, show_one
from .judging import ReferenceJudge, unanswered
from .loaded_models import LoadedModel, Stopwatch, named, weights_of
from .task_arguments import (
    METRICS,
    BadRowArguments,
    EndArguments,
    TaskArguments,
    check_discount,
    default_metrics,
    make_score,
)


BACKENDS = ("transformers", "vllm")
_GIVEN = "given"


@dataclass
class EvaluateArguments(RewardArguments, BadRowArguments, EndArguments, TaskArguments):
    """
    Arguments of the `evaluate` command beside those of the task and the rewards.

    Args:
        models (`list[str]`):
            Folders, Hub ids or adapters; `name=path` gives one a name in the report. The first is the baseline.
        completion_columns (`list[str]`, *optional*):
            Completions that the data gives, judged beside the models' or alone: columns that hold one or a list of
            them each, as many in every row; a dot reaches into a nested one, such as `175b_verification.solution`.
        answer_marker (`str`, *optional*):
            What stands before a final answer beside `####`, at the beginning of a line, such as `A:`.
        metrics (`list[str]`, *optional*):
            By what to judge completions, among `accuracy` (the number after `####`), `accuracy_math` (math-verify),
            `rouge`, `bleu` and `chrf`, and the models, `nll` and `td_loss` of the references; defaults to the task's,
            with `nll` and `td_loss`. Diversity and lengths are always there.
        split (`str`, *optional*, defaults to `"test"`)
        num_prompts (`int`, *optional*):
            Only the first so many prompts.
        temperatures (`list[float]`, *optional*, defaults to `[0.0, 0.5, 1.0]`):
            0 is greedy decoding, one completion a prompt.
        reward_model_path (`str`, *optional*):
            A reward model (of `trl reward`) as another judge: `reward`, and `win_rate`, the share of completions to
            which it gives more than to the row's own (a tie counts half).
        num_samples (`int`, *optional*, defaults to `4`):
            Completions a prompt and seed.
        seeds (`list[int]`, *optional*, defaults to `[0]`)
        top_p (`float`, *optional*, defaults to `1.0`)
        max_new_tokens (`int`, *optional*, defaults to `256`)
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated together.
        backend (`str`, *optional*, defaults to `"transformers"`):
            What generates; `"vllm"` where it is installed.
        dtype (`str`, *optional*, defaults to `"auto"`):
            The models' data type.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount in `td_loss`, as in training.
        terminal_value (`str`, *optional*, defaults to `"mask"`):
            What the state after a stop token is in `td_loss`: `"zero"`, or `"mask"` to leave that token out.
        output_dir (`str`, *optional*, defaults to `"outputs/evaluation"`)
    """

    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders, Hub ids or adapters; `name=path` names one in the report."}
    )
    completion_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the data with completions to judge, beside the models' or alone."}
    )
    answer_marker: str | None = field(
        default=None, metadata={"help": "What stands before a final answer beside ####, such as `A:`."}
    )
    metrics: list[str] | None = field(
        default=None, metadata={"help": "By what to judge; the task's if unset.", "choices": list(METRICS)}
    )
    split: str = field(default="test", metadata={"help": "The split whose prompts are asked."})
    num_prompts: int | None = field(default=None, metadata={"help": "Only the first so many prompts."})
    temperatures: list[float] = field(
        default_factory=lambda: [0.0, 0.5, 1.0], metadata={"help": "0 is greedy decoding."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "A model of `trl reward`, for `reward` and the `win_rate` against references."}
    )
    num_samples: int = field(default=4, metadata={"help": "Completions a prompt and seed."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of the sampling."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 is off."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    batch_size: int = field(default=64, metadata={"help": "Sequences generated together."})
    backend: str = field(default="transformers", metadata={"help": "What generates.", "choices": list(BACKENDS)})
    dtype: str = field(
        default="auto",
        metadata={"help": "The models' data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount in `td_loss`, as in training."})
    terminal_value: str = field(
        default="mask", metadata={"help": "The state after a stop token in `td_loss`.", "choices": ["zero", "mask"]}
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Where samples and report go."})

    def __post_init__(self):
        self.task_data(needs_target=False)  # is the task one?
        if not self.models and not self.completion_columns:
            raise ValueError(
                "No model. Set `models` to one or more folders, Hub ids or adapters, or `completion_columns` to "
                "columns of the data that hold completions."
            )
        self.metrics_are_defaults = self.metrics is None
        if self.metrics is None:
            self.metrics = [*default_metrics(self.task), "nll", "td_loss"]
        for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("batch_size", 1), ("num_prompts", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}: {value}` is out of range. Set it to {least} or more.")
        check_discount(self.gamma)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p: {self.top_p}` is a probability above 0, up to 1 (off).")
        if any(temperature < 0 for temperature in self.temperatures):
            raise ValueError(f"`temperatures: {self.temperatures}` must be 0 (greedy) or more.")
        if _GIVEN in self.named_models() and self.completion_columns:  # has each a name of its own?
            raise ValueError(f"A model is called {_GIVEN}, as the data's completions are. Name it: `name=path`.")
        self.check_rewards()

    def named_models(self) -> dict[str, str]:
        """Path or Hub id of each model, by its name in the report."""
        return named(self.models, "models")

    def judged(self) -> dict[str, str | None]:
        """[`named_models`], and without a path the completions that the data gives."""
        return self.named_models() | ({_GIVEN: None} if self.completion_columns else {})


def sample_cells(
    name: str, model: LoadedModel, rows: list[dict], arguments: EvaluateArguments, stopwatch: Stopwatch
) -> Iterator[tuple[float, list[dict]]]:
    """The temperature and samples of each temperature and seed, from disk where they were drawn before."""
    from ..evaluation.cells import CellKey, load_or_sample
    from ..text.encode import asked

    prompts, weights = [asked(row) for row in rows], weights_of(model.path)
    for temperature in arguments.temperatures:
        # Greedy decoding has one completion a prompt, whatever the seed.
        seeds, count = (arguments.seeds[:1], 1) if temperature == 0 else (arguments.seeds, arguments.num_samples)
        for seed in seeds:
            options = {"num_samples": count, "top_p": arguments.top_p, "max_new_tokens": arguments.max_new_tokens}
            told = {"path": str(model.path), "weights": weights, "dtype": arguments.dtype, "prompts": prompts}
            told |= {"eos_token": arguments.eos_token} if arguments.eos_token else {}
            told |= {"batch_size": arguments.batch_size, "backend": arguments.backend, "format": 2, **options}
            key = CellKey(name, temperature, seed, told)

            def draw(temperature=temperature, seed=seed, options=options):
                title = f"{name}, temperature {temperature:g}, seed {seed}"
                with stopwatch:
                    return model.sample(prompts, title, temperature=temperature, seed=seed, **options)

            yield temperature, load_or_sample(key, Path(arguments.output_dir), rows, draw)


def held_out_statistics(
    model: LoadedModel, rows: list[dict], arguments: EvaluateArguments, stopwatch: Stopwatch
) -> dict:
    """`nll` and `td_loss` of the references, those of them that were asked for."""
    from ..evaluation.statistics import Statistic
    from ..rewards.held_out import held_out_sums

    wanted = {"nll", "td_loss"} & set(arguments.metrics)
    if not wanted:
        return {}
    with stopwatch:
        sums = held_out_sums(*model.transformers(), rows, arguments.gamma, arguments.terminal_value)
    return {name: Statistic(values) for name, values in sums.items() if name in wanted}


def main(arguments: EvaluateArguments) -> None:
    """Sample, score and write the report."""
    from contextlib import ExitStack

    from ..evaluation import comparison
    from ..evaluation.metrics import check_installed
    from ..evaluation.report import print_rows
    from ..evaluation.scoring import Scorer, tokenizer_of
    from ..rewards.loading import check_language_model
    from ..rewards.preference_reward import check_one_label
    from ..tasks.files import check_local_model, check_writable
    from ..tasks.math_answer import MathVerifier

    check_installed()
    paths = {"models": arguments.named_models().values(), "reward_models": arguments.judges().values()}
    for key in ("reward_ref_model", "reward_model_path"):
        paths[key] = [path] if (path := getattr(arguments, key)) else []
    for key, path in ((key, path) for key, found in paths.items() for path in found):
        check_local_model(path, key)
        (check_one_label if key == "reward_model_path" else check_language_model)(path, key)
    check_writable(arguments.output_dir, "output_dir")
    output_dir = Path(arguments.output_dir)
    in_models, in_metrics = Stopwatch(), Stopwatch()
    values: comparison.Values = {}
    lengths, lines, notes = {}, [], []
    with ExitStack() as stack:
        verifier = stack.enter_context(MathVerifier()) if "accuracy_math" in arguments.metrics else None
        if names_function(arguments.task):
            custom_score(arguments.task)  # is it there?
        rows, given, left_out = rows_to_judge(arguments)
        notes += left_out
        score = make_score(arguments.task, arguments.metrics, verifier, arguments.answer_marker)
        corpus = [metric for metric in ("bleu", "chrf") if metric in arguments.metrics]
        taken = ["reward"] if arguments.reward_model_path else []
        Scorer(score, corpus, taken).check(rows)
        notes += unanswered(rows, arguments.metrics, arguments.answer_marker)
        judge = None
        if arguments.reward_model_path is not None:
            judge = ReferenceJudge(arguments.reward_model_path, rows, arguments.batch_size, arguments.dtype)
        for name, path in arguments.judged().items():
            model = None
            if path is not None:
                told = (arguments.dtype, arguments.batch_size, arguments.backend, arguments.eos_token)
                model = LoadedModel(path, *told)
                cells = sample_cells(name, model, rows, arguments, in_models)
            else:
                cells = [(comparison.GIVEN, given_lines(name, rows, given, length_by(arguments)))]
            scorer = Scorer(score, corpus, taken)
            lengths[name] = []
            for temperature, cell in cells:
                lines += cell
                groups = [line["completions"] for line in cell]
                lengths[name] += [completion["length"] for group in groups for completion in group]
                with in_metrics:
                    found = scorer.statistics(groups, rows)
                if judge is not None:
                    with in_models:
                        found |= judge.statistics(groups)
                so_far = values.setdefault((name, temperature), {})  # of earlier seeds
                for metric, statistic in found.items():
                    so_far[metric] = so_far[metric] + statistic if metric in so_far else statistic
            held_out = held_out_statistics(model, rows, arguments, in_models) if model is not None else {}
            for temperature in dict.fromkeys(arguments.temperatures if model is not None else ()):
                values[name, temperature] |= held_out
            if scorer.failures.count and scorer.failures.count == len(lengths[name]):
                raise ValueError(
                    f"Not one of {name}'s {scorer.failures.count} completions could be scored; the first: "
                    f"{scorer.failures.first}"
                )
            if scorer.failures.count:
                notes.append(
                    f"{name}: {scorer.failures.count} of {len(lengths[name])} completions could not be scored and are "
                    f"left out of the task's means. The first: {scorer.failures.first}"
                )
            scored = len(lengths[name]) - scorer.failures.count
            notes += [
                f"{name}: `{metric}` was given for {count} of {scored} scored completions; its means are over those."
                for metric, count in scorer.given.items()
                if count < scored
            ]
        output_dir.mkdir(parents=True, exist_ok=True)
        asked = arguments.reward_analysis or arguments.rerank
        rewards = analyse(arguments, lines, rows, score, in_models, judge) if asked else ""
        pairs = judge.pair_accuracy(rows) if judge is not None else None
        if pairs is not None:
            notes.append(
                f"The reward model {arguments.reward_model_path} gives the chosen completion more in "
                f"{comparison.shown('win_rate', pairs.interval(), True)} of {len(rows)} pairs (a tie counts half)."
            )
        if verifier is not None and verifier.failures:
            notes.append(f"{verifier.failures} answers were not judged by math-verify in time; they count as wrong.")
    with in_metrics:
        results = comparison.summarise(values)
    for line in lines:
        line["completions"] = [{k: x for k, x in c.items() if k != "token_ids"} for c in line["completions"]]
    (output_dir / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    comparison.write_tables(results, output_dir)
    shown = shown_metrics(results)
    by = tokenizer_of(rows)
    write_report(output_dir, arguments, len(rows), values, results, shown, lengths, notes, rewards, by)
    title = f"{arguments.task or arguments.dataset_name}, {len(rows)} prompts"
    too_many = {"accuracy_math", "length"} | ({"distinct"} if arguments.reward_model_path else set())
    in_terminal = [name for name in shown if name not in too_many]
    print_rows(comparison.table(results, in_terminal, intervals=False), title)
    if len(arguments.judged()) > 1:
        baseline, performance = next(iter(arguments.judged())), performance_metrics(shown)
        matched = comparison.table_at_equal_diversity(values, baseline, performance, intervals=False)
        if len(matched) > 1:
            print_rows(matched, "At equal diversity (* the 95 % interval leaves out 0)")
    show_one(lines)
    for note in notes:
        print(f"Note: {note}")
    print(f"{in_models.seconds:.1f} s in the models, {in_metrics.seconds:.1f} s for the metrics.")
    print(f"Report: {output_dir / 'report.md'}")


def shown_metrics(results: list) -> list[str]:
    """Those in tables, performance first: of pass@k the largest k, and `empty` only if something is."""
    from ..evaluation.comparison import metric_names

    names = metric_names(results)
    best_k = max((name for name in names if name.startswith("pass@")), key=lambda name: int(name[5:]), default="")
    tail = [best_k, "self_bleu", "distinct", "length", "ended"]
    if any(result.metrics["empty"].mean > 0 for result in results):
        tail.append("empty")
    elsewhere = {*tail, "distinct_2", "empty", "nll", "td_loss"}
    of_task = [name for name in names if name not in elsewhere and not name.startswith("pass@")]
    return [*of_task, *(name for name in tail if name in names)]


def performance_metrics(shown: list[str]) -> list[str]:
    """Those compared at equal diversity: the task's first, and pass@k."""
    return [name for name in shown if name == shown[0] or name.startswith("pass@")]


def write_report(output_dir, arguments, prompts, values, results, shown, lengths, notes, rewards, tokenizer) -> None:
    """`report.md` and its pictures."""
    from ..evaluation import comparison
    from ..evaluation.report import markdown

    baseline, *others = arguments.judged()
    pictures = comparison.plot(results, shown[0], lengths, output_dir)
    held_out = {name: values[name, arguments.temperatures[0]] for name in arguments.named_models()}
    losses = [name for name in ("nll", "td_loss") if any(name in found for found in held_out.values())]
    parts = [
        f"# {', '.join(arguments.judged())} on {arguments.task or arguments.dataset_name}",
        told_of_what(arguments),
        f"{prompts} prompts of the split `{arguments.split}`, {arguments.num_samples} samples each and seed (one when "
        f"greedy), seeds {', '.join(map(str, arguments.seeds))}, at most {arguments.max_new_tokens} tokens. Means "
        "over prompts, with 95 % bootstrap intervals over prompts. `accuracy` compares the number after `####`, "
        f"`accuracy_math` is math-verify's judgement; BLEU and self-BLEU are of sacrebleu's tokenizer `{tokenizer}`, "
        "chosen by the script of the references; lower `self_bleu` and higher `distinct` are more diverse; "
        "`length` is in tokens; `ended` is the share of completions that stopped by themselves.",
        *told_of_judge(arguments.reward_model_path),
        *told_of_given(arguments),
        *(f"**{note}**" for note in notes),
        markdown(comparison.table(results, shown)),
    ]
    if losses:
        rows = [
            [name, "references", *(comparison.shown(loss, held_out[name][loss].interval(), True) for loss in losses)]
            for name in held_out
        ]
        header = ["model", "held out", *(f"{loss} a token" for loss in losses)]
        parts += ["Of the references, in nats (`nll`) and squared nats (`td_loss`):", markdown([header, *rows])]
    if others:
        matched = comparison.table_at_equal_diversity(values, baseline, performance_metrics(shown))
        parts += [
            f"## Minus {baseline}, at equal diversity",
            "A flatter policy is more diverse and less accurate at every temperature, so this reads each model off "
            "the lines between its temperatures where its self-BLEU is the same (greedy decoding has 100). Paired by "
            "prompt.",
            markdown(matched)
            if len(matched) > 1
            else "The models' temperatures have no common diversity to compare at: add temperatures.",
            f"## Minus {baseline}, at the same temperature",
            "Paired by prompt.",
            markdown(comparison.table(comparison.differences(values, baseline), shown)),
        ]
    parts += [f"![{name}]({name})" for name in pictures] + [rewards] * bool(rewards)
    (output_dir / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def told_of_what(arguments: EvaluateArguments) -> str:
    """Which data and which models, as a report is read long after its command is forgotten."""
    data = [f"Data: `{arguments.dataset_name or HUB_DATA.get(arguments.task, 'generated')}`"]
    named = {"task": arguments.task, "from": arguments.source_column, "to": arguments.target_column}
    data += [f"{what} `{value}`" for what, value in named.items() if value]
    models = arguments.named_models()
    if arguments.reward_model_path:
        models["reward model"] = arguments.reward_model_path
    told = "; ".join(f"{name}: `{path}`" for name, path in models.items())
    return f"{', '.join(data)}.{f' Models: {told}.' if told else ''}"


def told_of_given(arguments: EvaluateArguments) -> list[str]:
    if not arguments.completion_columns:
        return []
    return [
        f"`{_GIVEN}` are the completions that the data has in {', '.join(arguments.completion_columns)}: nothing is "
        "known of how they were sampled. Their `length` is in tokens of the first model that is named, or in words "
        "where there is none."
    ]


def told_of_judge(reward_model_path: str | None) -> list[str]:
    if reward_model_path is None:
        return []
    return [
        f"`reward` is the reward model's, `{reward_model_path}`; `win_rate` is how often it gives a completion more "
        "than the prompt's own reference, a tie counting half."
    ]


def make_parser():
    from .parser import RecipeParser

    return RecipeParser((EvaluateArguments,), __doc__, prog="trl-irl evaluate")


def run(argv: list[str] | None = None) -> int:
    """The command: what is wrong becomes one message; the exit status is 0, or 2 then."""
    from .failures import run_reporting

    def kept(arguments: EvaluateArguments) -> str:
        return f"The same command goes on from what was sampled, which is in {arguments.output_dir}/cells."

    return run_reporting(make_parser(), main, argv, kept)


if __name__ == "__main__":
    from trl_irl.commands.failures import leave

    leave(run())
