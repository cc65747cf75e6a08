"""``fastrnn bench --report``: a Markdown table and a plot of what ``fastrnn bench --json`` wrote.

A ratio is another library's time divided by ours, of the faster way if there are several: below 1 we are behind. The
best peer of a point is the candidate of another library that takes the least time there.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .common import CELLS, CliError, duration, require
from .peers import LIBRARIES
from .points import Shape

FORMAT = "fastrnn bench 2"
BATCH, HIDDEN = 16, 128  # from here on a layer is large enough for the limit to be within reach
MARKERS = "osD^vP*X<"


@dataclass(frozen=True)
class Row:
    """A measured point."""

    cell: str
    shape: Shape
    pass_name: str
    variant: str
    threads: int
    seconds: float
    flops: float
    peak: float
    """FLOPs per second, of the multiply-add units, measured beside it."""
    fraction: float
    """Of the limit."""
    ratios: dict[str, float]
    """By the name of the candidate; other ways to use fastrnn are among them."""

    @property
    def label(self) -> str:
        return f"{self.shape}{', ' * bool(self.variant)}{self.variant}"

    @property
    def place(self) -> tuple[Any, ...]:
        """What it has in common with its variants."""
        return self.cell, self.pass_name, self.threads, self.shape

    @property
    def title(self) -> str:
        """Which point it is, in words."""
        return f"{self.cell} {self.label}, {self.pass_name}, {_threads(self.threads)}"

    @property
    def best(self) -> str:
        """The best peer."""
        return min((name for name in self.ratios if _library(name) != "fastrnn"), key=self.ratios.__getitem__)

    @property
    def best_ratio(self) -> float:
        return self.ratios[self.best]

    @property
    def frozen_ratio(self) -> float | None:
        """The best peer's to ours with weights prepared beforehand."""
        frozen = self.ratios.get("fastrnn frozen")
        return None if frozen is None else self.best_ratio / frozen

    def ratio(self, library: str) -> float | None:
        """To the fastest way of a library."""
        return min((ratio for name, ratio in self.ratios.items() if _library(name) == library), default=None)


def run(path: Path, output: Path | None) -> int:
    """Print the table, and write it and the plot."""
    figures = _load(path)
    rows = _rows(path, figures)
    stem = path.with_suffix("") if output is None else output / path.stem if output.is_dir() else output
    table, plot = (Path(f"{stem}{suffix}") for suffix in (".md", ".png"))
    text = markdown(figures, rows)
    print(text, end="")
    try:
        table.write_text(text, encoding="utf-8")
        draw(figures, rows, plot)
    except OSError as error:
        raise CliError(f"--output: cannot write {error.filename or stem}: {error.strerror}") from None
    print(f"written: {table}, {plot}", file=sys.stderr)
    return 0


def _load(path: Path) -> dict[str, Any]:
    """The file's contents, if ``fastrnn bench`` wrote it."""
    try:
        figures = json.loads(path.read_bytes())
    except OSError as error:
        raise CliError(f"--report: cannot read {path}: {error.strerror}") from None
    except ValueError:  # of JSON and of its encoding
        raise CliError(f"--report: expected JSON, but {path} is not") from None
    if not isinstance(figures, dict) or not {"machine", "roofline", "results"} <= figures.keys():
        raise CliError(f"--report: expected a file of fastrnn bench --json, but {path} is none")
    if figures.get("format") != FORMAT:
        raise CliError(
            f"--report: expected the format {FORMAT!r}, but {path} has {figures.get('format', 'an older one')!r}: "
            "measure again"
        )
    return figures


def _rows(path: Path, figures: dict[str, Any]) -> list[Row]:
    try:
        rows = [
            Row(
                cell=result["cell"],
                shape=Shape(*(result[name] for name in Shape._fields)),
                pass_name=result["pass"],
                variant=result["variant"],
                threads=result["threads"],
                seconds=result["seconds"]["fastrnn"]["median"],
                flops=result["flops"],
                peak=result["peak"]["median"],
                fraction=result["fraction_of_limit"]["median"],
                ratios={name: ratio["median"] for name, ratio in result["ratio"].items()},
            )
            for result in figures["results"]
        ]
        best = [row.best for row in rows]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CliError(f"--report: {path} is damaged: {type(error).__name__}: {error}") from None
    if not best:
        raise CliError(f"--report: {path} has no results yet")
    return rows


# ---- The table. ----


def markdown(figures: dict[str, Any], rows: Sequence[Row]) -> str:
    """The whole report."""
    return "\n".join([*_heading(figures, rows), *_behind(rows), *_means(rows), *_tables(rows)]) + "\n"


def _heading(figures: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    yield "# fastrnn bench"
    yield ""
    yield f"{_machine(figures)}. Medians of up to {figures['repeat']} interleaved repeats."
    yield ""
    for rates in figures["roofline"]:
        bandwidth = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in rates["bandwidth"].items())
        beside = [row.peak for row in rows if row.threads == rates["threads"]]
        peak = f"peak {rates['peak'] / 1e9:.0f} GFLOP/s before the points"
        if beside:  # a run may have been stopped before them
            peak += f", {median(beside) / 1e9:.0f} beside them"
        yield f"- {_threads(rates['threads'])}: {peak}; reads, GB/s: {bandwidth}"
    yield ""
    yield "A ratio is another library's time divided by ours: below 1 we are behind. Our time has the packing of the"
    yield "weights in it, except in single steps; `fastrnn frozen` is `layer.frozen()`, which has packed them before."


def _behind(rows: Sequence[Row]) -> Iterator[str]:
    behind = sorted((row for row in rows if row.best_ratio < 1), key=lambda row: row.best_ratio)
    yield f"\n## Behind the best peer: {len(behind)} of {len(rows)} points\n"
    for row in behind:
        frozen = row.frozen_ratio
        beside = "" if frozen is None else f", {frozen:.2f} of that with frozen weights"
        yield f"- {row.title}: {_title(row.best)} takes {row.best_ratio:.2f} of our time{beside}"
    if not behind:
        yield "None."


def _means(rows: Sequence[Row]) -> Iterator[str]:
    large = [row for row in rows if row.shape.batch >= BATCH and row.shape.hidden >= HIDDEN]
    plain = [row for row in rows if not row.variant]
    training = {
        cell: [row.ratio("pytorch") for row in rows if row.cell == cell and row.pass_name == "forward+backward"]
        for cell in ("rnn", "gru")
    }
    yield "\n## Geometric means\n"
    yield from _table(
        ["", "points", "mean"],
        (
            [title, str(len(values)), shown(_geometric_mean(values))]
            for title, values, shown in (
                ("ratio to the best peer, all points", [row.best_ratio for row in rows], _ratio),
                ("ratio to the best peer, without variants", [row.best_ratio for row in plain], _ratio),
                (
                    "ratio to the best peer, forward with frozen weights",
                    [row.frozen_ratio for row in rows if row.frozen_ratio is not None],
                    _ratio,
                ),
                *(
                    (f"ratio to PyTorch, {CELLS[cell].layer} training", [r for r in ratios if r is not None], _ratio)
                    for cell, ratios in training.items()
                ),
                (f"fraction of the limit, B >= {BATCH} and H >= {HIDDEN}", [row.fraction for row in large], _percent),
            )
            if values
        ),
        "lrr",
    )


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table for each kind of point, with the candidates that it has."""
    plain = {row.place: row for row in rows if not row.variant}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.variant or ("one step" if row.pass_name == "step" else "layers"), []).append(row)
    for title, group in groups.items():
        names = list(dict.fromkeys(name for row in group for name in row.ratios))
        yield f"\n## {title[0].upper()}{title[1:]}\n"
        yield from _table(
            [
                *("cell", "pass", "threads", "T x B x I x H", "time", "GFLOP/s", "of the limit"),
                *map(_title, names),
                *("best peer", "ratio to it"),
            ],
            (
                [
                    *_place(row),
                    *(duration(row.seconds), f"{row.flops / row.seconds / 1e9:.1f}", _percent(row.fraction)),
                    *(_ratio(row.ratios.get(name)) for name in names),
                    *(_title(row.best), _ratio(row.best_ratio)),
                ]
                for row in group
            ),
            "llrlrrr" + "r" * len(names) + "lr",
        )
        pairs = [(row, plain[row.place]) for row in group if row.variant and row.place in plain]
        if pairs:
            yield f"\nTimes as multiples of those without {title}:\n"
            yield from _table(
                ["cell", "pass", "threads", "T x B x I x H", "fastrnn", *map(_title, names)],
                ([*_place(row), *_multiples(row, other, names)] for row, other in pairs),
                "llrlr" + "r" * len(names),
            )


def _multiples(row: Row, other: Row, names: Iterable[str]) -> Iterator[str]:
    """Of the times of ``other``, ours and the candidates'."""
    ours = row.seconds / other.seconds
    yield _ratio(ours)
    for name in names:
        yield _ratio(ours * row.ratios[name] / other.ratios[name] if name in row.ratios.keys() & other.ratios else None)


def _place(row: Row) -> tuple[str, ...]:
    return row.cell, row.pass_name, str(row.threads), str(row.shape)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], alignment: str) -> Iterator[str]:
    rules = ["--:" if side == "r" else "---" for side in alignment]
    for line in (head, rules, *lines):
        yield f"| {' | '.join(line)} |"


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _library(name: str) -> str:
    """A candidate is named after its library, and then the way to use it."""
    return name.partition(" ")[0]


def _title(name: str) -> str:
    library, _, way = name.partition(" ")
    return f"{LIBRARIES[library].title if library in LIBRARIES else library} {way}".rstrip()


def _machine(figures: dict[str, Any]) -> str:
    versions = ", ".join(f"{_title(name)} {version}" for name, version in figures["libraries"].items() if version)
    return f"{figures['machine']['processor']}, {figures['machine']['isa']}, {figures['dtype']}; {versions}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


# ---- The plot. ----


def draw(figures: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """Two panels for each pass: the ratio to the best peer, and the fraction of the limit, by shape."""
    require("matplotlib")
    from matplotlib.figure import Figure

    passes = list(dict.fromkeys(row.pass_name for row in rows))
    labels = {name: list(dict.fromkeys(row.label for row in rows if row.pass_name == name)) for name in passes}
    heights = [len(labels[name]) + 1.5 for name in passes]
    figure = Figure(figsize=(11, 0.31 * sum(heights) + 1.8), layout="constrained")
    grid = figure.subplots(len(passes), 2, height_ratios=heights, squeeze=False, sharex="col")
    for name, (left, right) in zip(passes, grid, strict=True):
        for axes, value, title in (
            (left, lambda row: row.best_ratio, "time of the best peer / ours"),
            (right, lambda row: row.fraction, "fraction of the machine's limit"),
        ):
            _scatter(axes, rows, name, labels[name], value)
            axes.set_title(f"{name}: {title}", fontsize=10, loc="left")
        right.tick_params(labelleft=False)
    _scales(grid, rows)
    figure.suptitle(_machine(figures).replace("; ", "\n") + "\nshapes: T x B x I x H", fontsize=9)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _scatter(
    axes: Any, rows: Sequence[Row], pass_name: str, labels: Sequence[str], value: Callable[[Row], float]
) -> None:
    """The rows of a pass: a marker for each cell, filled for the smallest number of threads."""
    cells = list(dict.fromkeys(row.cell for row in rows))
    counts = sorted({row.threads for row in rows})
    for k, cell in enumerate(cells):
        for threads in counts:
            own = [row for row in rows if (row.pass_name, row.cell, row.threads) == (pass_name, cell, threads)]
            axes.scatter(
                [value(row) for row in own],
                [labels.index(row.label) + 0.22 * (k - (len(cells) - 1) / 2) for row in own],
                marker=MARKERS[k % len(MARKERS)],
                s=28,
                facecolor=f"C{k}" if threads == counts[0] else "white",
                edgecolor=f"C{k}",
                linewidth=1.1,
                label=f"{cell}, {_threads(threads)}",
                zorder=3,
            )
    axes.set_yticks(range(len(labels)), [label.replace(", ", "\n", 1) for label in labels], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color="0.85", linewidth=0.7)
    for place in range(0, len(labels), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", zorder=0)


def _scales(grid: Any, rows: Sequence[Row]) -> None:
    """Ratios on a logarithmic scale with 1 on it, fractions from 0."""
    from matplotlib.ticker import NullLocator, PercentFormatter

    ratios = [row.best_ratio for row in rows]
    low, high = min(0.8, min(ratios) / 1.15), max(2.0, max(ratios) * 1.15)
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100) if low <= tick <= high]
    for left, right in grid:
        left.set_xscale("log")
        left.set_xlim(low, high)
        left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        left.xaxis.set_minor_locator(NullLocator())
        right.set_xlim(0, max(1.05, 1.05 * max(row.fraction for row in rows)))
        right.xaxis.set_major_formatter(PercentFormatter(1))
        for axes in (left, right):
            axes.axvline(1, color="0.3", linewidth=1, zorder=2)
            axes.tick_params(axis="x", labelbottom=True, labelsize=8)
