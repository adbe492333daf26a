"""Draw PNG plots for `dvc plots show` and the report; equal figures give equal bytes, and no network is used."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import write_bytes
from hmsa_core.io.errors import needs_extra
from hmsa_core.labels.thresholds.curves import Curves
from pipeline.workspace.counts import row_shares

with needs_extra("report"):  # a missing package stops a stage at its start, not at its end
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

# Palette of Okabe and Ito, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_DPI = 110


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure atomically; the file holds no date and no program's name, so that its bytes can be compared."""
    data = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    write_bytes(path, data.getvalue())


def lines(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    limits: tuple[float, float] | None = None,
    below: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    y_below: str = "",
) -> None:
    """Plot one line per series of (x values, y values); if all series are empty, the plot says "nothing to show".

    Series of `below` (shares, named as in `series`) get a second plot underneath, with the same x axis and colours.
    """
    figure = _figure(7.0, 5.4 if below else 3.6)
    axes = figure.add_subplot(2, 1, 1) if below else figure.add_subplot()
    colours = dict(zip(series, cycle(COLOURS), strict=False))
    for name, (xs, ys) in series.items():
        marker = "o" if len(xs) < 3 else None
        axes.plot(list(xs), list(ys), color=colours[name], linewidth=1.2, label=name, marker=marker)
    _dress(axes, title, "" if below else x, y)
    if below:
        lower = figure.add_subplot(2, 1, 2, sharex=axes)
        for name, (xs, ys) in below.items():
            lower.plot(list(xs), [100 * v for v in ys], color=colours[name], linewidth=1.2, marker="o", markersize=3)
        _dress(lower, "", x, f"{y_below}, %")
    if limits is not None:
        axes.set_ylim(*limits)
    if not any(len(xs) for xs, _ in series.values()):
        axes.text(0.5, 0.5, "nothing to show", ha="center", va="center", transform=axes.transAxes)
    elif len(series) > 1:
        axes.legend(fontsize=7, ncols=2, frameon=False)
    write_figure(path, figure)


def bars(path: Path, names: Sequence[str], groups: Mapping[str, Sequence[float | None]], *, title: str, x: str) -> None:
    """Plot horizontal bars: one row per name, one bar per group; None = no bar."""
    figure = _figure(7.0, 1.2 + 0.16 * len(names) * max(1, len(groups)) + 0.12 * len(names))
    axes = figure.add_subplot()
    height = 0.8 / max(1, len(groups))
    rows = np.arange(len(names))
    for i, (group, values) in enumerate(groups.items()):
        positions = rows + (i - (len(groups) - 1) / 2) * height
        shown = [np.nan if v is None else v for v in values]
        axes.barh(positions, shown, height * 0.92, color=COLOURS[i % len(COLOURS)], label=group)
    axes.set_yticks(rows, list(names), fontsize=7)
    axes.invert_yaxis()
    _dress(axes, title, x, "")
    if len(groups) > 1:
        axes.legend(fontsize=7, frameon=False)
    write_figure(path, figure)


def confusion(path: Path, counts: NDArray[Any], names: Sequence[str], *, title: str) -> None:
    """Plot a confusion matrix, int (C, C) or (C, C + 1): rows = truth, each divided by its sum."""
    share = row_shares(counts)[:, : len(names)]
    side = 2.2 + 0.27 * len(names)
    figure = _figure(side + 0.6, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(names)), list(names), rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), list(names), fontsize=7)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("truth", fontsize=8)
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
    write_figure(path, figure)


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, linewidth=0.3, alpha=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plot_curves(path: Path, curves: Curves, *, title: str) -> None:
    """Plot precision over coverage of each class that the teacher predicted on these images."""
    total, correct = curves.kept("total").sum(axis=0), curves.kept("correct").sum(axis=0)
    series = {}
    for c, name in enumerate(curves.classes.classes):
        if not total[c, 0]:
            continue
        used = np.flatnonzero(total[c])
        coverage, precision = total[c, used] / total[c, 0], correct[c, used] / total[c, used]
        series[name] = (coverage.tolist(), precision.tolist())
    lines(path, series, title=title, x="coverage (kept share of the class's pixels)", y="precision", limits=(0.0, 1.02))
