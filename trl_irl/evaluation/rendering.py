"""Tables for the terminal and for Markdown, and plots as files."""

from collections.abc import Sequence
from pathlib import Path

from ..text.messages import last_text


def markdown(rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """A Markdown table of these rows, the header first; so many columns to the left, and numbers to the right."""
    aligned = [rows[0], [*["---"] * left, *["---:"] * (len(rows[0]) - left)], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def counted(number: int, name: str) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def print_rows(rows: Sequence[Sequence[str]], title: str) -> None:
    """The same rows as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i < 2 else "right", overflow="fold")  # no name is cut
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)


def plot_training(histories: dict[str, list[dict]], metrics: Sequence[str], path: Path) -> None:
    """
    Training curves, one panel per metric, two panels per row.

    Args:
        histories (`dict[str, list[dict]]`):
            For each model the `log_history` of its trainer state.
        metrics (`Sequence[str]`):
            Keys of that history.
        path (`Path`)
    """
    columns = min(2, len(metrics))
    picture, panels = figure(4.5 * columns, 3.0, panels=len(metrics), columns=columns)
    for metric, axes in zip(metrics, panels, strict=True):
        for i, (name, history) in enumerate(histories.items()):
            points = [(entry["step"], entry[metric]) for entry in history if metric in entry]
            if points:
                marker = "o" if metric.startswith("eval_") or len(points) < 20 else None
                axes.plot(*zip(*points, strict=True), label=name, marker=marker, color=f"C{i}")
        axes.set(title=metric, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    save(picture, path)


def figure(width: float, height: float, panels: int | None = None, columns: int | None = None, share_y: bool = False):
    """
    A matplotlib figure and its axes, one, or `panels` of them in rows of `columns` (all in one row if unset); never
    shown, only saved. Inches: `width` is of the figure, `height` of a row.
    """
    # Without pyplot, whose backend is the caller's: a notebook goes on showing its own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or panels or 1
    rows = -(-(panels or 1) // columns)
    picture = Figure(figsize=(width, rows * height))
    FigureCanvasAgg(picture)
    grid = picture.subplots(rows, columns, squeeze=False, sharey=share_y)
    if panels is None:
        return picture, grid[0, 0]
    for left_over in grid.flat[panels:]:
        left_over.remove()
    return picture, list(grid.flat[:panels])


def save(picture, path: Path) -> None:
    picture.tight_layout()
    picture.savefig(path, dpi=150)


def printable(text: str) -> str:
    """A model may say what a terminal takes for a command: shown as what it is not."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def shortened(said: str | list[dict], longest: int = 500) -> str:
    """Text, or the last of some messages, the middle of a long one left out."""
    text = last_text(said).strip()
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
