"""The plot of a task: the loss in the course of training, and how far back a gradient gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..common import CliError
from .tasks import RECIPES

LEAST_FLOW, MOST_FLOW = 1e-6, 1e3  # what lies outside is as good as none, or as infinite
COLOURS = dict(zip(RECIPES, ("#d62728", "#ff7f0e", "#7f7f7f", "#8c564b", "#1f77b4", "#2ca02c"), strict=True))


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw what ``fastrnn task`` found, and write it to ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_losses(left, figures)
    _draw_flows(right, figures["results"])
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise CliError(f"--out: cannot write {path}: {error.strerror}") from None


def _draw_losses(axes: Any, figures: dict[str, Any]) -> None:
    """The curves, a dot where a cell has solved the task, and lines for what is known beforehand."""
    for result in figures["results"]:
        colour, curve = COLOURS[result["cell"]], result["curve"]
        axes.plot(curve["step"], curve["held_out"], color=colour, linewidth=1.8, label=result["title"])
        if result["solved_at"] is not None:
            place = curve["step"].index(result["solved_at"])
            axes.plot(curve["step"][place], curve["held_out"][place], "o", color=colour, markersize=6)
    axes.set(xlabel="training step", ylabel=f"{figures['measure']}, held out")
    axes.set_title(figures["about"].replace("$", r"\$"))  # which would begin a formula
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    top = max(figures["levels"].values())
    if figures["success"] is not None:
        _draw_level(axes, "success", figures["success"], ":")
        axes.set_yscale("log")
        lowest = min((min(r["curve"]["held_out"], default=top) for r in figures["results"]), default=top)
        axes.set_ylim(min(lowest, figures["success"]) / 2, 6 * top)  # the first steps may be far above
    drawn: list[float] = []
    for name, value in figures["levels"].items():
        if all(abs(value - other) > 0.05 * top for other in drawn):  # not two lines on top of each other
            _draw_level(axes, name, value, "--", below=bool(drawn))
            drawn.append(value)
    if figures["success"] is None:
        axes.set_ylim(top=1.06 * top)


def _draw_level(axes: Any, name: str, value: float, style: str, below: bool = False) -> None:
    """A line across, and its name above or below."""
    axes.axhline(value, color="0.35", linewidth=0.9, linestyle=style, zorder=1)
    axes.annotate(
        f"{name} ({value:.3g})",
        (0.99, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, -2 if below else 1.5),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
    )


def _draw_flows(axes: Any, results: list[dict[str, Any]]) -> None:
    for result in results:
        for when, style, width in (("initial", "--", 1), ("trained", "-", 1.8)):
            points = [(lag, value) for lag, value in enumerate(result["flow"].get(when, [])) if value]
            axes.plot(
                [lag for lag, _ in points],
                [value for _, value in points],
                style,
                color=COLOURS[result["cell"]],
                linewidth=width,
            )
    axes.set_yscale("log")
    axes.set_ylim(LEAST_FLOW, MOST_FLOW)
    axes.set_xlim(left=0)
    axes.set(xlabel="steps back from the end", ylabel="flow: norm of d(last output) / d(state)")
    axes.set_title("how far back a gradient gets (dashed: untrained)", fontsize=10.5)
    axes.grid(alpha=0.25)
