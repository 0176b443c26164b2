"""What an evaluation found: its numbers as tables, its report, its pictures, and its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from . import comparison
from .comparison import Area, AtDiversity, Result, Values
from .frontier import FrontierCurve, Frontiers, frontiers
from .pictures import plot
from .rendering import counted, print_rows, shortened
from .report import report_text
from .reward_report import Findings
from .settings import EvaluationSettings
from .statistics import Interval


_DIVERSITY = ("self_bleu", "distinct", "vendi", "unique_answers", "length", "ended", "empty", "answered")
_NOT_IN_TERMINAL = ("accuracy_math", "distinct", "vendi", "unique_answers", "length")


@dataclass(frozen=True)
class Results:
    """
    What [`~evaluation.evaluate`] returns.

    Attributes:
        settings ([`~evaluation.settings.EvaluationSettings`])
        paths (`dict[str, str]`): by the name of each model where it is; empty for one that was given itself.
        values (`Values`): statistics of each model and temperature.
        lines (`list[dict]`): for each model, temperature, seed and prompt what was said, as in `samples.jsonl`.
        notes (`list[str]`): what a reader must know.
        tokenizer (`str`): sacrebleu's, for BLEU and self-BLEU.
        findings ([`~evaluation.reward_report.Findings`], *optional*): on rewards, if they were asked for.
        of_references (`tuple[Interval, int]`, *optional*): the self-BLEU of a prompt's references, and of how many
            prompts, see [`~evaluation.rows.diversity_of_references`].
        seconds (`dict[str, float]`): spent in the models and for the metrics.
        rows_given (`bool`): whether the rows were given, and are not those of the settings.
    """

    settings: EvaluationSettings
    paths: dict[str, str]
    values: Values
    lines: list[dict]
    notes: list[str]
    tokenizer: str
    findings: Findings | None = None
    of_references: tuple[Interval, int] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    rows_given: bool = False

    @property
    def models(self) -> list[str]:
        """Whatever was judged, the baseline first."""
        return list(dict.fromkeys(model for model, _ in self.values))

    @property
    def prompts(self) -> int:
        """How many were asked."""
        return len(next(iter(self.values.values()))["length"].sums)

    @cached_property
    def summaries(self) -> list[Result]:
        """Each model at each temperature: every metric with its 95 % interval."""
        return comparison.summarise(self.values)

    @cached_property
    def differences(self) -> list[Result]:
        """Every other model minus the baseline by the same sampler, paired by prompt."""
        return comparison.differences(self.values, self.models[0])

    @cached_property
    def shown(self) -> list[str]:
        """The metrics in tables, performance first: of pass@k the largest k, and `empty` only if something is."""
        names = comparison.metric_names(self.summaries)
        best_k = self._most_k(names)
        tail = ["answered", best_k, "self_bleu", "distinct", "vendi", "unique_answers", "length", "ended"]
        if any(result.metrics["empty"].mean > 0 for result in self.summaries):
            tail.append("empty")
        elsewhere = {*tail, "distinct_2", "empty", "nll", "td_loss"}
        of_task = [name for name in names if name not in elsewhere and not name.startswith("pass@")]
        return [*of_task, *(name for name in tail if name in names)]

    def _most_k(self, names: Sequence[str]) -> str:
        """The pass@k of the largest k that whatever has several completions has, be it models or the data."""
        of_models: dict[str, set[str]] = {}
        for result in self.summaries:
            found = {name for name in result.metrics if name.startswith("pass@")}
            if len(found) > 1:
                of_models.setdefault(result.model, set()).update(found)
        shared = set.intersection(*of_models.values()) if of_models else {"pass@1"}
        return max((name for name in names if name in shared), key=lambda name: int(name[5:]), default="")

    @cached_property
    def at_equal_diversity(self) -> list[AtDiversity]:
        """At equal diversity the task's first metric and pass@k, of the baseline and of the others minus it."""
        if len(self.models) == 1:
            return []
        return comparison.at_equal_diversity(self.values, self.models[0], self._performance)

    @property
    def has_frontier(self) -> bool:
        """Whether there are several families of samplers, so that there is a best one at each diversity to choose."""
        return len({sampler.family for _, sampler in self.values if sampler.is_random}) > 1

    @cached_property
    def _frontiers(self) -> Frontiers:
        if not self.has_frontier:
            return [], [], []
        sampled = list(dict.fromkeys(model for model, sampler in self.values if sampler != comparison.AS_GIVEN))
        return frontiers(self.values, sampled, self._performance)

    @property
    def at_frontier(self) -> list[AtDiversity]:
        """The task's first metric and pass@k on each model's frontier, of the baseline and of the others minus it."""
        return self._frontiers[0]

    @property
    def frontier_areas(self) -> list[Area]:
        """The areas under them."""
        return self._frontiers[1]

    @property
    def frontier_curves(self) -> list[FrontierCurve]:
        """The frontiers themselves."""
        return self._frontiers[2]

    @property
    def _performance(self) -> list[str]:
        """The task's first metric and pass@k, where there is a task's metric."""
        first = [] if self.shown[0] in _DIVERSITY else [self.shown[0]]
        return [name for name in self.shown if name in first or name.startswith("pass@")]

    @property
    def title(self) -> str:
        """The task, or where the rows are from."""
        return self.settings.task or self.settings.dataset_name or "rows"

    def table(self, intervals: bool = True) -> list[list[str]]:
        """A row of text for each model and temperature, after a header; with 95 % intervals or without."""
        return comparison.table(self.summaries, self.shown, intervals=intervals)

    def to_markdown(self, pictures: Sequence[str] = ()) -> str:
        """The report; `pictures` are names of files that stand beside it, see [`plots`]."""
        return report_text(self, pictures)

    def plots(self, folder: str | Path) -> list[str]:
        """
        Pictures into a folder, which must be there: performance against diversity, pass@k, lengths.

        Returns:
            `list[str]`: the names of the files.
        """
        said: dict[str, list[dict]] = {name: [] for name in self.models}
        for line in self.lines:
            said[line["model"]] += line["completions"]
        of_references = self.of_references and 100 - self.of_references[0].mean
        return plot(self.summaries, self.shown[0], said, Path(folder), self.frontier_curves, of_references)

    def write(self, folder: str | Path) -> Path:
        """
        `report.md` with its pictures, `samples.jsonl`, `metrics.json`, `metrics.csv`, `differences.json` of two models
        or more, and `rewards.json` if rewards were asked for.

        Returns:
            `Path`: of the report.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
        comparison.write_tables(self.summaries, folder)
        if len(self.models) > 1 or self.has_frontier:
            found = self.differences, self.at_equal_diversity, self.at_frontier, self.frontier_areas
            comparison.write_differences(*found, self.models[0], folder)
        else:
            (folder / "differences.json").unlink(missing_ok=True)  # of an earlier run with more models
        if self.findings is not None:
            self.findings.write_json(folder / "rewards.json")
            self.findings.plots(folder)
        report = folder / "report.md"
        report.write_text(self.to_markdown(self.plots(folder)) + "\n", encoding="utf-8")
        return report

    def print(self) -> None:
        """The tables without intervals, the first prompt with what each model said to it, and the notes."""
        if self.findings is not None:
            self.findings.print()
        in_terminal = [name for name in self.shown if name not in _NOT_IN_TERMINAL]
        rows = comparison.table(self.summaries, in_terminal, intervals=False)
        print_rows(rows, f"{self.title}, {counted(self.prompts, 'prompt')}")
        if self.at_equal_diversity:
            rows = comparison.table_at_equal_diversity(self.at_equal_diversity, intervals=False)
            print_rows(rows, "At equal diversity; differences in points, * the 95 % interval leaves out 0")
        if self.frontier_areas:
            rows = comparison.table_of_areas(self.frontier_areas, intervals=True)
            print_rows(rows, "The frontier: the best sampler at each diversity, chosen on other prompts")
        self._print_first()
        for note in self.notes:
            print(f"Note: {note}")

    def _print_first(self) -> None:
        """The first prompt and what each model said to it, first at its first temperature: what numbers are of."""
        from rich.console import Console

        console, lines = Console(highlight=False, markup=False), self.lines
        console.print("\nThe first prompt:", style="bold")
        console.print(shortened(lines[0]["prompt"]))
        if lines[0]["reference"] is not None:
            console.print("reference:", style="bold")
            console.print(shortened(lines[0]["reference"]))
        seen: set[str] = set()
        for line in lines:
            if line["model"] not in seen and line["completions"]:
                seen.add(line["model"])
                console.print(f"{line['model']}:", style="bold")
                console.print(shortened(line["completions"][0]["text"]))
        console.print()
