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

from ..tasks.task import custom_score, names_function
from .evaluate_report import Evaluated, print_numbers, write_report
from .evaluate_rewards import RewardArguments, analyse
from .evaluate_rows import GIVEN, given_lines, length_by, rows_to_judge, show_one
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
        if GIVEN in self.named_models() and self.completion_columns:  # has each a name of its own?
            raise ValueError(f"A model is called {GIVEN}, as the data's completions are. Name it: `name=path`.")
        self.check_rewards()

    def named_models(self) -> dict[str, str]:
        """Path or Hub id of each model, by its name in the report."""
        return named(self.models, "models")

    def judged(self) -> dict[str, str | None]:
        """[`named_models`], and without a path the completions that the data gives."""
        return self.named_models() | ({GIVEN: None} if self.completion_columns else {})


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
    lines, notes = [], []
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
            said = 0
            for temperature, cell in cells:
                lines += cell
                groups = [line["completions"] for line in cell]
                said += sum(map(len, groups))
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
            if scorer.failures.count and scorer.failures.count == said:
                raise ValueError(
                    f"Not one of {name}'s {scorer.failures.count} completions could be scored; the first: "
                    f"{scorer.failures.first}"
                )
            if scorer.failures.count:
                notes.append(
                    f"{name}: {scorer.failures.count} of {said} completions could not be scored and are "
                    f"left out of the task's means. The first: {scorer.failures.first}"
                )
            scored = said - scorer.failures.count
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
    evaluated = Evaluated(values, results, lines, notes, rewards, tokenizer_of(rows))
    write_report(output_dir, arguments, evaluated)
    print_numbers(arguments, evaluated)
    show_one(lines)
    for note in notes:
        print(f"Note: {note}")
    print(f"{in_models.seconds:.1f} s in the models, {in_metrics.seconds:.1f} s for the metrics.")
    print(f"Report: {output_dir / 'report.md'}")


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
