"""What an evaluation is asked: the data, how to sample, by what to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .._fields import as_lists, check_choices, check_kinds
from ..rewards.arguments import check_discount
from ..tasks.arguments import BadRowArguments, EndArguments, TaskArguments
from ..tasks.scoring import METRICS, default_metrics
from ..text.samplers import GREEDY, Sampler


BACKENDS = ("transformers", "vllm")

# What the completions that the data gives are called in a report.
GIVEN = "given"


def named(models: Sequence[str], key: str) -> dict[str, str]:
    """
    Path or Hub id of each model, by its name in the report: `name=path`, or the last part of the path.

    Raises:
        `ValueError`: two have the same name.
    """
    paths = {}
    for model in models:
        name, path = _name_and_path(model)
        if name in paths:
            raise ValueError(f"`{key}` has two called {name}. Name them: `first=path second=path`.")
        paths[name] = path
    return paths


def _name_and_path(model: str) -> tuple[str, str]:
    """Both of a `name=path`, each of which may have a `=` in it: what is there is a path."""
    if Path(model).exists():
        return Path(model).name, model
    parts = model.split("=")
    splits = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
    there = [pair for pair in splits if Path(pair[1]).exists()]
    return next(iter(there), splits[-1] if splits else (Path(model).name, model))


@dataclass
class EvaluationSettings(BadRowArguments, EndArguments, TaskArguments):
    """
    Settings of [`~evaluation.evaluate`] beside those of the task.

    Args:
        metrics (`list[str]`, *optional*):
            By what to judge completions, among `accuracy` (the number after `####`), `accuracy_math` (math-verify),
            `rouge`, `bleu` and `chrf`, and the models, `nll` and `td_loss` of the references; defaults to the task's,
            with `nll` and `td_loss`. Diversity and lengths are always there.
        split (`str`, *optional*, defaults to `"test"`)
        num_prompts (`int`, *optional*):
            Only the first so many prompts.
        temperatures (`list[float]`, *optional*):
            0 is greedy decoding, one completion per prompt. If neither these nor `samplers` are set, 0, 0.5 and 1.
        samplers (`list[str]`, *optional*):
            More ways to sample: `t=1,top_p=0.9`, `t=1,min_p=0.05`, `t=1,top_k=40`, `beams=4`, `t=0.7`; see
            [`~text.samplers.Sampler`]. The report then has each model's frontier, the best of them at each diversity.
        reward_model_path (`str`, *optional*):
            A reward model (of `trl reward`) as another judge: `reward`, and `win_rate`, the share of completions to
            which it gives more than to the row's own (a tie counts half).
        num_samples (`int`, *optional*, defaults to `4`):
            Completions per prompt and seed.
        seeds (`list[int]`, *optional*, defaults to `[0]`)
        top_p (`float`, *optional*, defaults to `1.0`):
            Of all `temperatures` above 0.
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
        value_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of V in `td_loss`, as in training.
        reward_analysis (`bool`, *optional*, defaults to `False`):
            Whether rewards agree with the task's score: correlations and AUROC over the sampled completions, and
            whether they fall at a corrupted token.
        rerank (`bool`, *optional*, defaults to `False`):
            Best of n by each reward, against a random choice, likelihood, majority vote and an oracle.
        reward_models (`list[str]`, *optional*):
            The models whose rewards judge, as in `models`, all completions of all models; defaults to `models`.
        reward_ref_model (`str`, *optional*):
            Reference of the `log_ratio` reward, such as the base model; without it there is no such reward.
        completion_columns (`list[str]`, *optional*):
            Completions that the data gives, judged beside the models' or alone: columns that hold one or a list of
            them each, as many in every row; a dot reaches into a nested one, such as `175b_verification.solution`.
        answer_marker (`str`, *optional*):
            What stands before a final answer beside `####`, at the beginning of a line, such as `A:`.
        output_dir (`str`, *optional*):
            Keeps the samples, so that an evaluation that was cut off goes on where it was; `None` keeps none.

    Raises:
        `ValueError`: a key is out of range, has no effect, or leaves nothing to compare.
    """

    metrics: list[str] | None = field(
        default=None, metadata={"help": "By what to judge; the task's if unset.", "choices": list(METRICS)}
    )
    split: str = field(default="test", metadata={"help": "The split whose prompts are asked."})
    num_prompts: int | None = field(default=None, metadata={"help": "Ask only the first so many prompts."})
    temperatures: list[float] | None = field(
        default=None, metadata={"help": "0 is greedy decoding; 0, 0.5 and 1 if no samplers are set either."}
    )
    samplers: list[str] | None = field(
        default=None, metadata={"help": "More ways to sample: t=1,top_p=0.9 t=1,min_p=0.05 t=1,top_k=40 beams=4."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "A model of `trl reward`, for `reward` and the `win_rate` against references."}
    )
    num_samples: int = field(default=4, metadata={"help": "Completions per prompt and seed."})
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
    value_temperature: float = field(default=1.0, metadata={"help": "Temperature of V in `td_loss`, as in training."})
    reward_analysis: bool = field(default=False, metadata={"help": "Whether rewards agree with the task's score."})
    rerank: bool = field(default=False, metadata={"help": "Best of n by each reward, against other ways to choose."})
    reward_models: list[str] | None = field(
        default=None, metadata={"help": "The models whose rewards judge; `models` if unset."}
    )
    reward_ref_model: str | None = field(
        default=None, metadata={"help": "Reference of the `log_ratio` reward, such as the base model."}
    )
    completion_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the data with completions to judge, beside the models' or alone."}
    )
    answer_marker: str | None = field(
        default=None, metadata={"help": "Beside ####, how a line with a final answer begins, such as `A:`."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where samples and report go."})

    def __post_init__(self):
        as_lists(self)
        dtype = getattr(self.dtype, "value", self.dtype)  # of an enumeration
        self.dtype = "auto" if dtype is None else str(dtype).removeprefix("torch.")
        self.backend = self.backend or "transformers"
        check_kinds(self, type(self))
        check_choices(self)
        self.task_data(needs_target=False)  # is the task one?
        self.metrics_are_defaults = self.metrics is None
        if self.metrics is None:
            self.metrics = [*default_metrics(self.task), "nll", "td_loss"]
        for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("batch_size", 1), ("num_prompts", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}: {value}` is out of range. Set it to {least} or more.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= x < 2**32 for x in self.seeds):
            raise ValueError(
                f"`seeds: {self.seeds}` must be one or more numbers from 0 on, each once: the same seed draws the "
                "same samples."
            )
        check_discount(self.gamma)
        if not 0 < self.value_temperature < float("inf"):
            raise ValueError(f"`value_temperature: {self.value_temperature:g}` must be above 0, and finite.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p: {self.top_p}` is a probability above 0, up to 1 (off).")
        if self.temperatures is None:
            self.temperatures = [] if self.samplers else [0.0, 0.5, 1.0]
        for temperature in self.temperatures:
            if not 0 <= temperature < float("inf"):
                raise ValueError(f"`temperatures: {temperature:g}` must be 0 (greedy) or more, and finite.")
        self._check_samplers()
        for key in ("reward_models", "reward_ref_model"):
            if getattr(self, key) is not None and not self.judges_by_rewards:
                raise ValueError(f"`{key}` is for `reward_analysis` and `rerank`, and neither is set.")

    def _check_samplers(self) -> None:
        for text in self.samplers or ():
            try:
                sampler = Sampler.parse(text)
            except ValueError as error:
                raise ValueError(f"`samplers`: {error}") from None
            if sampler.beams > 1 and self.backend == "vllm":
                raise ValueError(
                    f"`samplers: {text}` with `backend: vllm`: its beam search does not know a model's stop tokens. "
                    "Leave it out, or `backend` at transformers."
                )
            if self.backend == "vllm" and sampler.min_p and (sampler.top_p < 1 or sampler.top_k):
                raise ValueError(
                    f"`samplers: {text}` with `backend: vllm`: it cuts by min_p first, and transformers last, "
                    "so that one name would be two samplers. Leave one of the cuts out, or `backend` at transformers."
                )
        if self.top_p != 1 and not any(self.temperatures):
            raise ValueError(f"`top_p: {self.top_p}` is of `temperatures`, of which none is above 0. See `samplers`.")

    @property
    def plan(self) -> list[Sampler]:
        """All ways to sample, each once: the temperatures, and the samplers."""
        short = [Sampler(t, self.top_p) if t else GREEDY for t in self.temperatures]
        return list(dict.fromkeys([*short, *map(Sampler.parse, self.samplers or ())]))

    @property
    def judges_by_rewards(self) -> bool:
        """Whether the models' own rewards are asked about the completions."""
        return self.reward_analysis or self.rerank

    def check_models(self, models: Mapping[str, object]) -> None:
        """
        Raises:
            `ValueError`: there is nothing to judge or nothing to judge by, or two things have one name.
        """
        if not models and not self.completion_columns:
            raise ValueError(
                "No model. Set `models` to one or more folders, Hub ids or adapters, or `completion_columns` to "
                "columns of the data that hold completions."
            )
        if GIVEN in models and self.completion_columns:
            raise ValueError(f"A model is called {GIVEN}, as the data's completions are. Name it: `name=path`.")
        sampled = models or not self.completion_columns
        too_few = not any(sampler.is_random for sampler in self.plan) or self.num_samples * len(self.seeds) < 2
        if self.judges_by_rewards and sampled and too_few:
            raise ValueError(
                "`reward_analysis` and `rerank` compare completions of one prompt: set a temperature above 0 in "
                "`temperatures`, and `num_samples` or `seeds` to two or more."
            )
        self.judging_models(models)

    def judging_models(self, models: Mapping[str, object]) -> dict[str, object]:
        """
        The models whose rewards judge, by name: `reward_models` or, if they are not set, `models`; none if rewards are
        not asked for.
        """
        if not self.judges_by_rewards:
            return {}
        if self.reward_models is not None:
            return named(self.reward_models, "reward_models")
        if not models:
            raise ValueError("No reward to analyse. Set `reward_models` to the models whose rewards judge.")
        return dict(models)
