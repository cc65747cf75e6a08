"""Pictures of gradient flows: of one layer, and of several side by side.

A batch is shown by its median, and in the picture of one layer as a band from the least to the greatest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import checks
from .result import VANISHED, GradientFlow

COLOURS = ("#d1495b", "#e3a008", "#222222", "#1f6fb4", "#2a9d5c", "#7b4fa3", "#8c6d46", "#3aa6b9")
INK, FAINT = "0.25", "0.88"
LOWEST, HIGHEST = 1e-16, 1e16  # of a logarithmic axis: what is beyond leaves the picture
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.edgecolor": "0.5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
FLOW = r"flow  $\Vert\,\partial h_T / \partial s_{T-k}\Vert_2$"
GAMMA = r"$\gamma_t=\Vert\,\partial s_t / \partial s_{t-1}\Vert_2$"
LAG = r"lag $k$: steps back from the end"


def save_one(flow: GradientFlow, path: str | os.PathLike) -> None:
    """The picture of one layer. ImportError without matplotlib."""
    with _style():
        figure = _figure((12, 7.2))
        grid = figure.add_gridspec(2, 6, height_ratios=(1.25, 1))
        _flow(figure.add_subplot(grid[0, :4]), flow)
        _gamma(figure.add_subplot(grid[0, 4:]), flow)
        width = 2 if flow.gates else 3
        _lags(figure.add_subplot(grid[1, :width]), flow)
        _norm(figure.add_subplot(grid[1, width : 2 * width]), flow)
        if flow.gates:
            _gates(figure.add_subplot(grid[1, 4:]), flow)
        T, B = flow.gamma.shape
        several = f"{B} sequences: median and range" if B != 1 else "1 sequence"
        _head(figure, f"{flow.cell}: {flow.verdict} gradients", f"T = {T}, {several}")
        _save(figure, path)


def save_several(flows: Mapping[str, GradientFlow], path: str | os.PathLike, subtitle: str = "") -> None:
    """The picture of several layers over the same steps. A name before its first comma gives the colour, so that
    variants of a cell have the same; the second one is dashed, a third dotted. ImportError without matplotlib."""
    with _style():
        figure = _figure((12, 8))
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.4, 1))
        looks = _looks(flows)
        _several_flows(upper.subplots(), flows, looks)
        left, middle, right = lower.subplots(1, 3)
        _several_gammas(left, flows, looks)
        _several_lags(middle, flows, looks)
        _several_gates(right, flows, looks)
        _head(figure, "How far back do gradients reach?", subtitle)
        _save(figure, path)


def _style():
    try:
        import matplotlib
    except ImportError:
        raise ImportError("plot: expected matplotlib to be installed: pip install 'fastrnn[cli]'") from None
    return matplotlib.rc_context(STYLE)


def _figure(size):
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _save(figure, path):
    """Exactly there: left to itself, matplotlib adds an ending to a path without one."""
    path = checks.path(path, "path")
    ending = os.path.splitext(path)[1].removeprefix(".").lower() or "png"
    formats = figure.canvas.get_supported_filetypes()
    if ending not in formats:
        raise ValueError(f"path: expected an ending of {', '.join(sorted(formats))}, got {path!r}")
    figure.savefig(path, dpi=150, format=ending)


def _head(figure, title, subtitle):
    figure.suptitle(title, x=0.008, ha="left", fontsize=15, fontweight="bold")
    figure.text(0.992, 0.985, subtitle, ha="right", va="top", color=INK)


# ---- Values. ----


def by_lag(flow: GradientFlow) -> np.ndarray:
    """The flow (T+1, B) in the order of the lag: row k is k steps before each sequence's end, NaN if that has none."""
    out = np.full_like(flow.flow, np.nan)
    for b, n in enumerate(flow.lengths):
        out[: n + 1, b] = flow.flow[: n + 1, b][::-1]
    return out


def bound_by_lag(flow: GradientFlow) -> np.ndarray:
    """The product of the bounds of the last k steps (T+1, B), in the order of the lag."""
    out = np.full_like(flow.flow, np.nan)
    for b, n in enumerate(flow.lengths):
        with np.errstate(over="ignore", under="ignore"):
            out[: n + 1, b] = np.cumprod(np.concatenate([[1.0], flow.bound[:n, b][::-1]]))
    return out


def shares(flow: GradientFlow) -> np.ndarray:
    """Of the gradient's parts by lag, each one's share of the sum of their norms."""
    greatest = flow.lag_gradient.max(initial=0)
    parts = flow.lag_gradient / greatest if 0 < greatest < np.inf else np.isinf(flow.lag_gradient) * 1.0
    return parts / max(parts.sum(), 1)


def _over_batch(values):
    """Least, median and greatest of the sequences at each step where there is one."""
    values = values[~np.isnan(values).all(1)]
    return [f(values, 1) if len(values) else np.empty(0) for f in (np.nanmin, np.nanmedian, np.nanmax)]


def _limits(*curves):
    """Of a logarithmic axis: all that there is between LOWEST and HIGHEST, at least two decades."""
    values = np.concatenate([np.ravel(curve) for curve in curves])
    values = np.clip(values[values > 0], LOWEST, HIGHEST)
    low, high = (values.min(), values.max()) if values.size else (1, 1)
    low, high = min(low, high / 30), max(high, low * 30)
    return low / 2, high * 2


def _logarithmic(axes, low, high):
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.minorticks_off()


# ---- The picture of one layer. ----


def _band(axes, values, colour, label=None, first=0):
    """The median and the range of values (steps, B) over their steps, which are counted from `first`."""
    low, median, high = _over_batch(values)
    at = first + np.arange(len(median))
    if values.shape[1] > 1:
        axes.fill_between(at, _drawable(low), _drawable(high), color=colour, alpha=0.18, linewidth=0)
    marker = "o" if len(median) == 1 else None
    axes.plot(at, _drawable(median), color=colour, linewidth=2.2, label=label, marker=marker)
    axes.set_xlim(first - 0.5, first + max(len(median), 1) - 0.5)
    _whole_steps(axes)
    return median


def _drawable(curve):
    """Without what a logarithmic axis has no place for: it leaves at the bottom or the top instead."""
    return np.where(np.abs(curve) > 1e-250, np.minimum(curve, 1e250), np.where(curve < 0, curve, 1e-250))


def _whole_steps(axes):
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _flow(axes, flow):
    values = by_lag(flow)
    median = _band(axes, values, COLOURS[3], "flow")
    lags = np.arange(len(median))
    others = []
    if flow.bound is not None:
        others.append(_drawable(_over_batch(bound_by_lag(flow))[1]))
        label = r"bound: product of the last $k$ of $\gamma_u\,\gamma_f=\Vert W_{hh}\Vert_2\,\max|f'|$"
        axes.plot(lags, others[-1], "--", color=COLOURS[0], linewidth=1.5, label=label)
    gamma = flow.gamma[~np.isnan(flow.gamma)]
    if gamma.size:
        middle = float(np.median(gamma))
        with np.errstate(over="ignore", under="ignore"):
            others.append(_drawable(middle**lags))
        label = rf"$\gamma^k$, $\gamma={middle:.3g}$ the median"
        axes.plot(lags, others[-1], ":", color=INK, linewidth=1.7, label=label)
    start = median[0] if len(median) else 1.0
    low, high = _limits(median, [start, start * VANISHED / 3])
    # Of the other lines up to three decades more.
    low, high = _limits(*(np.clip(other, low / 1e3, high * 1e3) for other in others), [low, high])
    _logarithmic(axes, low, 4 * high)
    _vanished(axes, start, above=len(median) > 0 and median[-1] < VANISHED * start)
    _horizon(axes, flow)
    axes.set_xlim(0, max(len(values) - 1, 1))
    axes.set(title="What of a change $k$ steps back reaches the last output", xlabel=LAG, ylabel=FLOW)
    axes.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none")


def _vanished(axes, start, above=False):
    axes.axhline(VANISHED * start, color="0.55", linewidth=0.9)
    axes.annotate(
        "a thousandth of its start: vanished",
        (1, VANISHED * start),
        (-4, 3 if above else -3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=8,
        color="0.45",
        zorder=1,  # below the curves
    )


def _horizon(axes, flow):
    """The median of those that have one within their sequences, if half of them do."""
    steps = flow.lengths > 0
    within = flow.horizon[steps & (flow.horizon < flow.lengths)]
    if not steps.any():
        return
    if 2 * within.size < steps.sum():
        text, at, right = "horizon: beyond the whole sequence", 1, True
        place = axes.transAxes
    else:
        at = float(np.median(within))
        axes.axvline(at, color=COLOURS[3], linewidth=1.2, linestyle=(0, (1, 2)))
        text, right, place = f"horizon: {at:g} steps", at > 0.6 * len(flow.gamma), axes.get_xaxis_transform()
    axes.annotate(
        text,
        (at, 1),
        (-6 if right else 6, -4),
        xycoords=place,
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        color=COLOURS[3],
    )


def _gamma(axes, flow):
    curves = [_band(axes, flow.gamma, COLOURS[3], r"$\gamma_t$", first=1)]
    if flow.bound is not None:
        curves.append(_over_batch(flow.bound)[1])
        at = 1 + np.arange(len(curves[1]))
        axes.plot(at, curves[1], "--", color=COLOURS[0], linewidth=1.3, label=r"bound $\gamma_u\,\gamma_f$")
    axes.axhline(1, color="0.4", linewidth=0.9)
    axes.set_ylim(0, max([1.15, *(1.1 * c.max(initial=0) for c in (*curves, _over_batch(flow.gamma)[2]))]))
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set(title="Greatest stretch in one step", xlabel="step $t$", ylabel=GAMMA)
    axes.legend(loc="lower left", ncols=2)


def _lags(axes, flow):
    share = shares(flow)
    lags = np.arange(len(share))
    low, high = _limits(share, [1.0])
    low = max(low, 1e-12)
    axes.fill_between(
        lags, low / 10, np.maximum(share, low / 10), step="mid", color=COLOURS[4], alpha=0.25, linewidth=0
    )
    axes.step(lags, np.maximum(share, low / 10), where="mid", color=COLOURS[4], linewidth=1.8)
    _logarithmic(axes, low, high)
    if len(share) == 1:
        axes.plot(lags, share, "o", color=COLOURS[4])
    _whole_steps(axes)
    if share.sum() > 0:
        most = int(np.searchsorted(np.cumsum(share), 0.9 * share.sum()))
        axes.axvline(most, color=COLOURS[4], linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            f"90% comes from\nlags up to {most}",
            (0.98, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color=COLOURS[4],
        )
    axes.set_xlim(-0.5, max(len(share) - 0.5, 1))
    of = r"dW_{ih}" if flow.cell == "CEC" else r"dW_{hh}"
    axes.set(
        title="Where the gradient comes from",
        xlabel="lag $l$: from step $t$ back to $t-l$",
        ylabel=f"share of $dJ/{of}$",
    )


def _norm(axes, flow):
    active = np.arange(len(flow.grad_norm))[:, None] < flow.lengths
    _band(axes, np.where(active, flow.grad_norm, np.nan), COLOURS[5], first=1)
    values = _over_batch(np.where(active, flow.grad_norm, np.nan))
    _logarithmic(axes, *_limits(*values))
    state = "c" if flow.cell == "CEC" else "h"
    axes.set(title="The gradient at each step", xlabel="step $t$", ylabel=rf"$\Vert dJ/d{state}_t\Vert_2$")


def _gates(axes, flow):
    ends = {}
    for colour, (name, values) in zip(COLOURS[3:] + COLOURS, flow.gates.items(), strict=False):
        median = _band(axes, values, colour, first=1)
        if len(median):
            ends[name] = median[-1], len(median), colour
    low = min([0.0, *(_over_batch(values)[0].min(initial=0) for values in flow.gates.values())])
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=1)
    axes.set_ylim(low - 0.05, 1.05)
    heights = spread([end for end, *_ in ends.values()], 0.075, low, 1)
    for (name, (_, last, colour)), height in zip(ends.items(), heights, strict=True):
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(f"${name}$", (last, height), color=colour, fontsize=13, **place)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set(title="The gates' mean activity", xlabel="step $t$", ylabel="mean over the units")


# ---- The picture of several layers. ----


def _looks(names):
    """Colour, dashes and width of each one's line."""
    families, looks = {}, {}
    for name in names:
        family = name.partition(",")[0]
        colour, number = families.get(family, (COLOURS[len(families) % len(COLOURS)], 0))
        families[family] = colour, number + 1
        style = ("-", (0, (4, 1.5)), (0, (1, 1.2)))[min(number, 2)]
        looks[name] = {"color": colour, "linestyle": style, "linewidth": 2.0}
    return looks


def _several_flows(axes, flows, looks):
    curves = {name: _over_batch(by_lag(flow))[1] for name, flow in flows.items()}
    low, high = _limits(*curves.values(), [VANISHED / 10])
    curves = {name: np.clip(curve, low / 100, high * 100) for name, curve in curves.items()}
    last = max(len(curve) for curve in curves.values()) - 1
    for name, curve in curves.items():
        hidden = list(curves.values())[list(curves).index(name) + 1 :]
        wider = 2.2 * sum(len(c) == len(curve) and np.allclose(c, curve, rtol=0.02) for c in hidden)
        axes.plot(curve, **looks[name] | {"linewidth": looks[name]["linewidth"] + wider})
    _logarithmic(axes, low, high)
    axes.set_xlim(0, max(last, 1))
    _vanished(axes, 1)

    # Names stand where the curves end: at the right, or beside where the last of those that leave below does.
    leave = {name: int(np.argmax(curve < low)) for name, curve in curves.items() if (curve < low).any()}
    beside = max(leave.values(), default=last)
    gap = (np.log(high) - np.log(low)) / 17
    if beside < 0.7 * last:
        for place, name in enumerate(sorted(leave, key=leave.get)):
            height = np.exp(np.log(low) + gap * (place + 0.7))
            axes.text(beside + 0.012 * last, height, _label(name, flows), va="center", **_ink(looks[name]))
    else:
        leave = {}
    ends = {name: np.clip(curve[-1], low, high) for name, curve in curves.items() if name not in leave}
    heights = spread(np.log(list(ends.values())), gap, np.log(low), np.log(high))
    for (name, end), height in zip(ends.items(), heights, strict=True):
        line = {"arrowstyle": "-", "color": looks[name]["color"], "linewidth": 0.8, "shrinkA": 2, "relpos": (0, 0.5)}
        axes.annotate(
            _label(name, flows),
            (len(curves[name]) - 1, end),
            (1.025, np.exp(height)),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            arrowprops=line | {"shrinkB": 0},
            annotation_clip=False,
            **_ink(looks[name]),
        )
    axes.set(title="What of a change $k$ steps back reaches the last output", xlabel=LAG, ylabel=FLOW)


def _ink(look):
    return {"color": look["color"], "fontweight": "bold"}


def _label(name, flows):
    flow = flows[name]
    reached = flow.horizon[flow.lengths > 0]
    if flow.verdict != "vanishing" or not reached.size:
        return f"{name}: {flow.verdict}"
    return f"{name}: vanished after {np.median(reached):.0f} steps"


def spread(heights: Any, gap: float, low: float, high: float) -> np.ndarray:
    """Heights moved apart, as little as may be in their order, so that neighbours have `gap` between them."""
    heights = np.clip(np.asarray(heights, float), low, high)
    order = np.argsort(-heights, kind="stable")
    placed = heights[order]
    for i in range(1, len(placed)):
        placed[i] = min(placed[i], placed[i - 1] - gap)
    if len(placed) and placed[-1] < low:
        placed[-1] = low
        for i in reversed(range(len(placed) - 1)):
            placed[i] = max(placed[i], placed[i + 1] + gap)
    out = np.empty_like(placed)
    out[order] = placed
    return out


def _several_gammas(axes, flows, looks):
    top = 1.2
    for name, flow in flows.items():
        median = _over_batch(flow.gamma)[1]
        axes.plot(1 + np.arange(len(median)), median, **looks[name] | {"linewidth": 1.3})
        top = max(top, np.quantile(median, 0.98, method="nearest") * 1.1) if median.size else top
    axes.axhline(1, color="0.4", linewidth=0.9, zorder=1)
    axes.set_ylim(0, top)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set(title="Greatest stretch in one step", xlabel="step $t$", ylabel=GAMMA)


def _several_lags(axes, flows, looks):
    for name, flow in flows.items():
        share = np.cumsum(shares(flow))
        axes.plot(np.arange(len(share)), share, **looks[name] | {"linewidth": 1.6})
    axes.set_ylim(0, 1.03)
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(0, max(1, *(len(flow.lag_gradient) for flow in flows.values())))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set(title="Where the gradient comes from", xlabel="lag $l$", ylabel="share of $dJ/dW$ from lags up to $l$")


def _several_gates(axes, flows, looks):
    """The gates that keep the state: f of an LSTM, z of a GRU."""
    for name, flow in flows.items():
        for gate in {"f", "z"} & flow.gates.keys():
            median = _over_batch(flow.gates[gate])[1]
            axes.plot(1 + np.arange(len(median)), median, label=f"${gate}$, {name}", **looks[name] | {"linewidth": 1.6})
    axes.set_ylim(0, 1.03)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set(title="The gates that keep the state", xlabel="step $t$", ylabel="mean over the units")
    if axes.lines:
        axes.legend(loc="lower left", ncols=2)
