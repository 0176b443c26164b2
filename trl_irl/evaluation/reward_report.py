"""Rewards against the task's score: tables, `rewards.json` and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..text.samplers import Sampler
from .comparison import decoding, of_sampler
from .rendering import figure, markdown, print_rows, save
from .reward_analysis import auroc, auroc_within_prompts, kendall, overall, spearman, within_prompts
from .statistics import Interval, Statistic, mean_of


_EXPLAINED = """\
Rewards judge completions drawn at temperatures above 0. A reward's name is the judging model, the kind and how a \
completion's token rewards are summed up: `soft_q` is Q - gamma V' (arXiv 2409.01369), `likelihood` is log pi, \
`log_ratio` is log pi - log pi_ref, the dense reward that plain fine-tuning already gives (arXiv 2510.02493) and that \
any other must beat.

With gamma = 1, a terminal value of zero and values at temperature 1, the sum of `soft_q` over a completion that ends \
with its stop token telescopes to its log-likelihood plus V of the prompt: within a prompt it ranks exactly like \
`likelihood sum`. \
Rewards of tokens, gamma < 1, means, and sums with the terminal value masked (which leave out the stop token and the \
last value) do not."""


@dataclass(frozen=True)
class Tells:
    """What a reward tells of the score, over all sampled completions of a model; `None` where it is not defined."""

    model: str
    reward: str
    metrics: dict[str, Interval | None]

    @classmethod
    def of(cls, model: str, reward: str, rewards: np.ndarray, scores: np.ndarray, binary: bool) -> Tells:
        """AUROC (where scores are 0 or 1), Spearman's and Kendall's correlation, within prompts and over all."""
        metrics: dict[str, Interval | None] = {}
        if binary:
            metrics["AUROC in prompt"] = _interval(auroc_within_prompts(rewards, scores))
            metrics["AUROC"] = _point(auroc(rewards, scores))
        for name, correlation in (("Spearman", spearman), ("Kendall", kendall)):
            metrics[f"{name} in prompt"] = _interval(within_prompts(rewards, scores, correlation))
            metrics[name] = _point(overall(rewards, scores, correlation))
        return cls(model, reward, metrics)


@dataclass(frozen=True)
class BestOf:
    """The score of the best of k completions, by one way to choose, for each k."""

    model: str
    sampler: Sampler
    way: str
    scores: dict[int, Statistic]


@dataclass
class Findings:
    """
    Attributes:
        judges (`dict[str, str]`): what each judging model's reward was computed with, in words.
        agreement (`list[Tells]`), best_of_n (`list[BestOf]`): empty if they were not asked for.
        score (`str`): the metric that completions are judged by.
        corruption (`dict[str, dict[str, np.ndarray]]`): by reward, see [`~rewards.corruption.sensitivity`].
    """

    judges: dict[str, str] = field(default_factory=dict)
    agreement: list[Tells] = field(default_factory=list)
    corruption: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    best_of_n: list[BestOf] = field(default_factory=list)
    score: str = ""

    def write_json(self, path: Path) -> None:
        content = {
            "judges": self.judges,
            "score": self.score,
            "agreement": [
                {"model": x.model, "reward": x.reward, **{name: _told(i) for name, i in x.metrics.items()}}
                for x in self.agreement
            ],
            "corruption": [
                {"reward": name, **{key: _told(_interval_of(values)) for key, values in sensitivity.items()}}
                for name, sensitivity in self.corruption.items()
            ],
            "best_of_n": [
                {
                    "model": x.model,
                    **of_sampler(x.sampler),
                    "way": x.way,
                    "scores": {k: _told(statistic.interval()) for k, statistic in x.scores.items()},
                }
                for x in self.best_of_n
            ],
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def agreement_table(self, intervals: bool) -> list[list[str]]:
        names = list(self.agreement[0].metrics)
        rows = [["completions of", "reward", *names]]
        for one in self.agreement:
            rows.append([one.model, one.reward, *(_shown(one.metrics[name], intervals) for name in names)])
        return rows

    def corruption_table(self, intervals: bool) -> list[list[str]]:
        rows = [["of", "reward", "lowest token (%)", "chance (%)", "place", "return falls (%)"]]
        for name, sensitivity in self.corruption.items():
            judge, _, kind = name.rpartition(" ")
            cells = [
                _shown(_interval_of(factor * sensitivity[key]), intervals, digits)
                for key, factor, digits in (("lowest", 100, 1), ("chance", 100, 1), ("place", 1, 2), ("falls", 100, 1))
            ]
            rows.append([judge, kind, *cells])
        return rows

    def best_of_n_table(self, intervals: bool) -> list[list[str]]:
        """
        A row per model and way to choose, a column per sampler: the best of all completions. Where there are fewer
        than elsewhere, the cell says of how many.
        """
        factor = _factor(self.best_of_n)
        samplers = sorted({one.sampler for one in self.best_of_n})
        n = max(max(one.scores) for one in self.best_of_n)

        def cell(scores: Mapping[int, Statistic]) -> str:
            most = max(scores)
            said = _shown(_scaled(scores[most].interval(), factor), intervals, 1)
            return said if most == n else f"{said} (of {most})"

        rows = [["completions of", f"best of {n} by", *map(decoding, samplers)]]
        for model, way in dict.fromkeys((one.model, one.way) for one in self.best_of_n):
            at = {x.sampler: x.scores for x in self.best_of_n if (x.model, x.way) == (model, way)}
            rows.append([model, way, *(cell(at[s]) if s in at else "" for s in samplers)])
        return rows

    def print(self) -> None:
        if self.agreement:
            print_rows(self.agreement_table(intervals=False), "Rewards against the score")
            print_rows(self.corruption_table(intervals=False), "References with one token replaced")
        if self.best_of_n:
            print_rows(self.best_of_n_table(intervals=False), f"Best of n, score{_unit(self.best_of_n)}")

    def plots(self, folder: Path) -> None:
        """The pictures of the report's section."""
        if self.agreement:
            plot_agreement(self.agreement, folder / "rewards.png")
        if self.best_of_n:
            plot_best_of_n(self.best_of_n, folder / "best_of_n.png")

    def markdown(self) -> str:
        """The report's section."""
        judges = "; ".join(f"{name}: {settings}" for name, settings in self.judges.items())
        parts = ["## Rewards", _EXPLAINED, f"The score is `{self.score}`. Of the judging models, {judges}."]
        if self.agreement:
            parts += [
                "### Against the score",
                "AUROC is the probability that a right completion has the higher reward than a wrong one (0.5 is "
                "chance), Spearman and Kendall (tau-b) are rank correlations; `in prompt` compares completions of the "
                "same prompt only, with 95 % bootstrap intervals over prompts. All samplers together.",
                markdown(self.agreement_table(intervals=True)),
                "![AUROC](rewards.png)",
                "### Where the error is",
                "In each reference one token is replaced by another from the references. How often its reward is the "
                "lowest of its completion (`chance`: if it were any), what share of the other tokens has a lower "
                "reward (`place`: 0 is best, 0.5 chance), and how often the sum is lower than before.",
                markdown(self.corruption_table(intervals=True)),
            ]
        if self.best_of_n:
            parts += [
                "### Best of n",
                f"Mean score{_unit(self.best_of_n)} of the completion that each way chooses among all of a prompt's; "
                "`random` is the mean score, `oracle` chooses by the score itself"
                + (", `majority vote` takes the most frequent final answer." if self._votes() else "."),
                markdown(self.best_of_n_table(intervals=True)),
                "![Best of n](best_of_n.png)",
            ]
        return "\n\n".join(parts)

    def _votes(self) -> bool:
        return any(one.way == "majority vote" for one in self.best_of_n)


def plot_agreement(agreement: Sequence[Tells], path: Path) -> None:
    """A panel per model whose completions are judged, a point a reward, with its interval; chance is dashed."""
    models = list(dict.fromkeys(one.model for one in agreement))
    metric = "AUROC in prompt" if "AUROC in prompt" in agreement[0].metrics else "Spearman in prompt"
    rewards = list(dict.fromkeys(one.reward for one in agreement))[::-1]
    judges = list(dict.fromkeys(reward.rsplit(" ", 2)[0] for reward in rewards[::-1]))
    width = 2.2 + 3.4 * len(models)
    picture, panels = figure(width, 1.2 + 0.32 * len(rewards), panels=len(models), share_y=True)
    for model, axes in zip(models, panels, strict=True):
        for one in (one for one in agreement if one.model == model and one.metrics[metric] is not None):
            interval = one.metrics[metric]
            ends = [[abs(interval.mean - interval.low)], [abs(interval.high - interval.mean)]]
            colour = f"C{judges.index(one.reward.rsplit(' ', 2)[0])}"
            axes.errorbar(interval.mean, rewards.index(one.reward), xerr=ends, marker="o", capsize=3, color=colour)
        axes.axvline(0.5 if metric.startswith("AUROC") else 0.0, color="grey", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rewards)), rewards)
        axes.set(title=f"completions of {model}", xlabel=f"{metric}, 95 % interval")
        axes.grid(alpha=0.3)
    save(picture, path)


def plot_best_of_n(best_of_n: Sequence[BestOf], path: Path) -> None:
    """A panel per model, at the highest temperature, where completions differ most: a line per way to choose."""
    sampler = max(one.sampler for one in best_of_n)
    shown = [one for one in best_of_n if one.sampler == sampler]
    models = list(dict.fromkeys(one.model for one in shown))
    # A colour per judge and kind, a line per way to sum up.
    without = {"random": ("grey", ":"), "majority vote": ("black", "-."), "oracle": ("black", ":")}
    without["preference"] = ("C9", "-")  # of a reward model, one number and no tokens to add up
    kinds = list(dict.fromkeys(one.way.rpartition(" ")[0] for one in shown if one.way not in without))
    lines = {"sum": "-", "mean": "--", "discounted": "-."}
    styles = without | {
        f"{kind} {how}": (f"C{i}", line) for i, kind in enumerate(kinds) for how, line in lines.items()
    }
    picture, panels = figure(3.4 * len(models) + 2.6, 4.0, panels=len(models), share_y=True)
    for model, axes in zip(models, panels, strict=True):
        for one in (one for one in shown if one.model == model):
            colour, line = styles[one.way]
            points = [_factor(best_of_n) * statistic.value for statistic in one.scores.values()]
            axes.plot(list(one.scores), points, marker="o", markersize=3, label=one.way, color=colour, linestyle=line)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(shown[0].scores), list(map(str, shown[0].scores)))
        axes.set(title=f"completions of {model}, {decoding(sampler)}", xlabel="n")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"score{_unit(best_of_n)} of the best of n")
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save(picture, path)


def _factor(best_of_n: Sequence[BestOf]) -> int:
    """Shares, such as accuracy, are shown in percent; ROUGE and numbers of a user's own as they are."""
    total, count = np.concatenate([one.scores[1].sums for one in best_of_n]).T
    return 100 if ((total >= 0) & (total <= count)).all() else 1


def _unit(best_of_n: Sequence[BestOf]) -> str:
    return " (%)" if _factor(best_of_n) == 100 else ""


def _point(value: float) -> Interval | None:
    return None if math.isnan(value) else Interval(value, math.nan, math.nan)


def _interval(statistic: Statistic | None) -> Interval | None:
    return None if statistic is None else statistic.interval()


def _interval_of(values: np.ndarray) -> Interval | None:
    return None if np.isnan(values).all() else mean_of(values).interval()


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(factor * interval.mean, factor * interval.low, factor * interval.high)


def _shown(interval: Interval | None, with_ends: bool, digits: int = 2) -> str:
    if interval is None:
        return ""
    text = f"{interval.mean:.{digits}f}"
    if with_ends and not math.isnan(interval.low):
        text += f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return text


def _told(interval: Interval | None) -> dict | None:
    """As JSON, which knows no NaN."""
    if interval is None:
        return None
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: value for name, value in values.items() if not math.isnan(value)}
