"""An evaluation, from models and rows to results: sample, score, judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..rewards.frozen_models import check_language_model
from ..rewards.held_out_loss import held_out_sums
from ..rewards.preference_reward import check_one_label
from ..tasks.files import check_local_model, check_writable
from ..tasks.final_answer import given_answer
from ..tasks.math_answer import MathVerifier
from ..tasks.scoring import make_score
from ..tasks.splits import load_split
from ..text.encode import asked
from ..text.samplers import Sampler
from . import comparison
from .loaded_models import LoadedModel, Stopwatch, lend_templates, weights_of
from .metrics import check_installed
from .reference_judge import ReferenceJudge
from .results import Results
from .reward_judges import analyse
from .rows import diversity_of_references, given_lines, length_by, rows_to_judge, unanswered
from .sample_cache import CellKey, load_or_sample
from .scoring import AskedOnce, Scorer, tokenizer_of
from .settings import GIVEN, EvaluationSettings, named
from .statistics import Statistic


Models = Mapping[str, str | tuple] | Sequence[str]


def evaluate(
    models: Models, rows: Iterable[dict] | None = None, settings: EvaluationSettings | None = None
) -> Results:
    """
    Performance against diversity: sample from models over temperatures and other samplers; score, compare.

    Example:

    ```python
    >>> from trl_irl import evaluate
    >>> from trl_irl.evaluation import EvaluationSettings

    >>> models = {"base": "Qwen/Qwen2.5-0.5B", "tuned": "outputs/irl"}
    >>> results = evaluate(models, settings=EvaluationSettings(task="gsm8k", num_prompts=100))
    >>> print(results.to_markdown())
    >>> results.write("outputs/evaluation")
    ```

    Args:
        models (`Mapping` or `Sequence[str]`):
            By name, folders, Hub ids or adapters, or pairs of a model and its tokenizer; or a list of `name=path`. The
            first is the baseline.
        rows (`Iterable[dict]`, *optional*):
            In any of TRL's supervised formats, with columns that the settings name, or prompts alone where the task or
            a reward model judges without references. If unset, the rows of `settings.split` of the task or dataset.
        settings ([`~evaluation.settings.EvaluationSettings`], *optional*)

    Returns:
        [`~evaluation.results.Results`]

    Raises:
        `FileNotFoundError`, `OSError`, `ValueError`: a model is not there, or no language model; a row cannot be read
            or does not fit into a context; there is nothing to judge by, or not one completion could be scored.
        `ImportError`: a library of the `eval` extra is missing.
    """
    settings = EvaluationSettings() if settings is None else settings
    if not isinstance(settings, EvaluationSettings):
        raise TypeError(f"`settings` is a {type(settings).__name__}. Give an `EvaluationSettings(...)` with its keys.")
    if isinstance(models, str):
        raise ValueError(f"`models` is the text {models!r}. Give a list of paths, or a mapping of names to models.")
    models = dict(models) if isinstance(models, Mapping) else named(models, "models")
    settings.check_models(models)
    check_installed()
    _check_paths(models, settings)
    with ExitStack() as stack:
        verifier = stack.enter_context(MathVerifier()) if "accuracy_math" in settings.metrics else None
        return _Evaluation(models, rows, settings, verifier).run()


def _check_paths(models: Mapping[str, str | tuple], settings: EvaluationSettings) -> None:
    judging = settings.judging_models({}) if settings.reward_models is not None else {}
    paths = {"models": [path for path in models.values() if isinstance(path, str)], "reward_models": judging.values()}
    for key in ("reward_ref_model", "reward_model_path"):
        paths[key] = [path] if (path := getattr(settings, key)) else []
    for key, path in ((key, path) for key, of_key in paths.items() for path in of_key):
        check_local_model(path, key)
        if key == "reward_model_path":
            check_one_label(path, key)
        else:
            check_language_model(path, key, encoder_decoder=True)
    if settings.output_dir is not None:
        check_writable(settings.output_dir, "output_dir")


class _Evaluation:
    """The steps of one evaluation, and what they have found."""

    def __init__(self, models: dict, rows: Iterable[dict] | None, settings: EvaluationSettings, verifier):
        self.settings, self.verifier = settings, verifier
        self.paths = {name: model if isinstance(model, str) else "" for name, model in models.items()}
        options = {"dtype": settings.dtype, "batch_size": settings.batch_size, "eos_token": settings.eos_token}
        self.models = {name: LoadedModel(model, backend=settings.backend, **options) for name, model in models.items()}
        judging = settings.judging_models(models)
        own = settings.reward_models is None
        self.judges = {
            name: self.models[name] if own else LoadedModel(model, key="reward_models", **options)
            for name, model in judging.items()
        }
        self.in_models, self.in_metrics = Stopwatch(), Stopwatch()
        self.values: comparison.Values = {}
        self.lines: list[dict] = []
        if rows is None:
            split = load_split(settings.task_data(needs_target=False), settings.split, settings.num_prompts)
        else:
            split = list(rows)[: settings.num_prompts]
            if not split:
                raise ValueError("`rows` is empty. Give at least one, or leave it unset for those of the settings.")
            wrong = next((i for i, row in enumerate(split) if not isinstance(row, Mapping)), None)
            if wrong is not None:
                raise ValueError(
                    f"`rows[{wrong}]` is {split[wrong]!r:.80}. A row is a mapping: "
                    '`{"prompt": ..., "completion": ...}`, or with `messages`.'
                )
        self.rows_given = rows is not None
        lent = lend_templates({**self.models, **self.judges}, split, settings)
        judging_rows = self.judges if settings.judges_by_rewards else {}
        judged = rows_to_judge(split, settings, self.models, judging_rows)
        self.rows, self.given, self.metrics, self.notes = judged
        self.notes += lent
        score = make_score(settings.task, self.metrics, verifier, settings.answer_marker)
        self.score = AskedOnce(score) if settings.judges_by_rewards else score
        self._scorer().check(self.rows)
        self.notes += unanswered(self.rows, self.metrics, settings.answer_marker)
        self.judge = None
        if settings.reward_model_path is not None:
            path = settings.reward_model_path
            self.judge = ReferenceJudge(path, self.rows, settings.batch_size, settings.dtype)

    def _scorer(self) -> Scorer:
        corpus = [metric for metric in ("bleu", "chrf") if metric in self.metrics]
        answers = None
        if "accuracy" in self.metrics:
            answers = partial(given_answer, marker=self.settings.answer_marker)
        return Scorer(self.score, corpus, ["reward"] if self.settings.reward_model_path else [], answers)

    def run(self) -> Results:
        for name, model in self.models.items():
            self._score(name, self._sampled(name, model))
            held_out = self._held_out(model)
            for sampler in self.settings.plan:
                self.values[name, sampler] |= held_out
            model.release()  # the next may need its room
        if self.settings.completion_columns:
            judging = self.judges.values() if self.settings.reward_models is not None else ()
            length = length_by([*self.models.values(), *judging, *self._reward_model()])
            given = given_lines(GIVEN, self.rows, self.given, length)
            self._score(GIVEN, [(comparison.AS_GIVEN, given)])
        findings = None
        if self.settings.judges_by_rewards:
            findings = analyse(
                self.judges,
                self.settings,
                self.metrics,
                self.lines,
                self.rows,
                self.score,
                self.in_models,
                self.judge,
            )
        self._note_pairs()
        if self.verifier is not None and self.verifier.failures:
            missed = self.verifier.failures
            self.notes.append(f"{missed} answers were not judged by math-verify in time; they count as wrong.")
        tokenizer, of_references = tokenizer_of(self.rows), None
        if any("self_bleu" in statistics for statistics in self.values.values()):
            with self.in_metrics:
                of_references = diversity_of_references(self.rows, self.settings.num_samples, tokenizer)
        results = Results(
            settings=self.settings,
            paths=self.paths,
            values=self.values,
            lines=[
                {
                    **line,
                    "completions": [{k: x for k, x in c.items() if k != "token_ids"} for c in line["completions"]],
                }
                for line in self.lines
            ],
            notes=self.notes,
            tokenizer=tokenizer,
            findings=findings,
            of_references=of_references,
            seconds={},
            rows_given=self.rows_given,
        )
        with self.in_metrics:
            results.summaries  # noqa: B018  (computed here, and kept)
        results.seconds.update(models=self.in_models.seconds, metrics=self.in_metrics.seconds)
        return results

    def _reward_model(self) -> list[LoadedModel]:
        path = self.settings.reward_model_path
        return [] if path is None else [LoadedModel(path, key="reward_model_path")]

    def _sampled(self, name: str, model: LoadedModel) -> Iterator[tuple[Sampler, list[dict]]]:
        """The sampler and samples of each sampler and seed, from disk where they were drawn before."""
        settings = self.settings
        prompts = [asked(row) for row in self.rows]
        weights = weights_of(model.path or "")
        for sampler in settings.plan:
            # Greedy decoding has one completion per prompt, whatever the seed.
            random = sampler.is_random
            seeds, count = (settings.seeds, settings.num_samples) if random else (settings.seeds[:1], 1)
            options = {"num_samples": count, "max_new_tokens": settings.max_new_tokens}
            decisive = {"path": str(model.path), "weights": weights, "dtype": settings.dtype, "prompts": prompts}
            decisive |= {"eos_token": settings.eos_token} if settings.eos_token else {}
            decisive |= {"template": model.borrowed_template} if model.borrowed_template else {}
            decisive |= {"batch_size": settings.batch_size, "backend": settings.backend, **options}
            # Raised where the same settings draw other samples than before: vLLM is told the stop tokens since 3, and
            # texts have the space before their first word since 4 and 3.
            decisive |= {"format": 4 if settings.backend == "vllm" else 3}
            for seed in seeds:

                def draw(sampler=sampler, seed=seed, options=options):
                    with self.in_models:
                        title = f"{name}, {sampler.label}, seed {seed}"
                        return model.sample(prompts, title, seed=seed, **options, **sampler.options())

                key = CellKey(name, sampler, seed, decisive)
                # A model that is given itself has no name by which its samples could be known again.
                keeps = settings.output_dir is not None and model.path is not None
                folder = Path(settings.output_dir) if keeps else None
                yield sampler, load_or_sample(key, folder, self.rows, draw)

    def _held_out(self, model: LoadedModel) -> dict[str, Statistic]:
        """`nll` and `td_loss` of the references, those of them that were asked for."""
        wanted = {"nll", "td_loss"} & set(self.metrics)
        if not wanted:
            return {}
        reward = {name: getattr(self.settings, name) for name in ("gamma", "terminal_value", "value_temperature")}
        with self.in_models:
            sums = held_out_sums(model.model, model.tokenizer, self.rows, **reward)
        return {name: Statistic(values) for name, values in sums.items() if name in wanted}

    def _score(self, name: str, cells: Iterable[tuple[float, list[dict]]]) -> None:
        """Statistics of each sampler, over seeds, and notes on what could not be scored."""
        scorer, said = self._scorer(), 0
        for sampler, cell in cells:
            self.lines += cell
            groups = [line["completions"] for line in cell]
            said += sum(map(len, groups))
            with self.in_metrics:
                of_cell = scorer.statistics(groups, self.rows)
            if self.judge is not None:
                with self.in_models:
                    of_cell |= self.judge.statistics(groups)
            so_far = self.values.setdefault((name, sampler), {})  # of earlier seeds
            for metric, statistic in of_cell.items():
                so_far[metric] = so_far[metric] + statistic if metric in so_far else statistic
        failures = scorer.failures
        if failures.count and failures.count == said:
            raise ValueError(
                f"Not one of {name}'s {failures.count} completions could be scored; the first: {failures.first}"
            )
        if failures.count:
            in_pass_at_k = " (in pass@k they are wrong)" if "accuracy" in self.metrics else ""
            self.notes.append(
                f"{name}: {failures.count} of {said} completions could not be scored and are left out of the task's "
                f"means{in_pass_at_k}. The first: {failures.first}"
            )
        scored = said - failures.count
        self.notes += [
            f"{name}: `{metric}` was given for {count} of {scored} scored completions; its means are over those."
            for metric, count in scorer.given.items()
            if count < scored
        ]

    def _note_pairs(self) -> None:
        """Of preference pairs, how often the reward model is right."""
        pairs = self.judge.pair_accuracy(self.rows) if self.judge is not None else None
        if pairs is not None:
            self.notes.append(
                f"The reward model {self.settings.reward_model_path} gives the chosen completion more in "
                f"{comparison.shown('win_rate', pairs.interval(), True)} of {len(self.rows)} pairs (a tie counts "
                "half)."
            )
