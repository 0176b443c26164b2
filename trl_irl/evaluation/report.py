"""Performance against diversity: a table for the terminal, one for Markdown, and the plots."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """
    What one model says at one temperature.

    Attributes:
        model (`str`): its name in the report.
        temperature (`float`): 0 is greedy decoding.
        accuracy (`float`): share of right answers, from 0 to 1, averaged over samples, then over prompts.
        self_bleu (`float`, *optional*): from 0 to 100, lower is more diverse; `None` for greedy decoding.
        distinct (`float`, *optional*): share of different samples of a prompt, from 0 to 1; `None` for greedy
        decoding.
    """

    model: str
    temperature: float
    accuracy: float
    self_bleu: float | None = None
    distinct: float | None = None

    def formatted(self) -> list[str]:
        optional = ("" if value is None else f"{value:.{digits}f}" for value, digits in self._optional())
        return [self.model, decoding(self.temperature), f"{100 * self.accuracy:.1f} %", *optional]

    def _optional(self) -> Iterable[tuple[float | None, int]]:
        return (self.self_bleu, 1), (self.distinct, 2)


_HEADER = ["model", "decoding", "accuracy", "self-BLEU", "distinct"]


def decoding(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def markdown_table(cells: Sequence[Cell]) -> str:
    return markdown([_HEADER, *(cell.formatted() for cell in cells)])


def print_table(cells: Sequence[Cell], title: str) -> None:
    print_rows([_HEADER, *(cell.formatted() for cell in cells)], title)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these rows, the header first; model and decoding to the left, numbers to the right."""
    aligned = [rows[0], ["---", "---", *["---:"] * (len(rows[0]) - 2)], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def print_rows(rows: Sequence[Sequence[str]], title: str) -> None:
    """The same rows as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i < 2 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cell)])
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in cells)


def plot_accuracy_against_diversity(cells: Sequence[Cell], path: Path) -> None:
    """One line a model, one point a temperature; up and to the right is better."""
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    for model in dict.fromkeys(cell.model for cell in cells):
        points = [cell for cell in cells if cell.model == model and cell.self_bleu is not None]
        diversity = [100 - cell.self_bleu for cell in points]
        axes.plot(diversity, [100 * cell.accuracy for cell in points], marker="o", label=model)
        for cell, x in zip(points, diversity, strict=True):
            axes.annotate(
                f"T={cell.temperature:g}",
                (x, 100 * cell.accuracy),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=8,
            )
    axes.set(xlabel="diversity: 100 - self-BLEU", ylabel="accuracy of samples (%)")
    axes.set_ylim(-2, 104)
    axes.margins(x=0.12)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_training(histories: dict[str, list[dict]], metrics: Sequence[str], path: Path) -> None:
    """
    Training curves side by side, one panel a metric.

    Args:
        histories (`dict[str, list[dict]]`):
            For each model the `log_history` of its trainer state.
        metrics (`Sequence[str]`):
            Keys of that history.
        path (`Path`)
    """
    plt = _matplotlib()
    figure, panels = plt.subplots(1, len(metrics), figsize=(4 * len(metrics), 3.4), squeeze=False)
    for metric, axes in zip(metrics, panels[0], strict=True):
        for name, history in histories.items():
            points = [(entry["step"], entry[metric]) for entry in history if metric in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if metric.startswith("eval_") else None)
        axes.set(title=metric, xlabel="step")
        axes.grid(alpha=0.3)
    panels[0][0].legend()
    _save(figure, path)


def _matplotlib():
    import matplotlib

    matplotlib.use("Agg")  # files only, also where there is no screen
    import matplotlib.pyplot as plt

    return plt


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    _matplotlib().close(figure)
