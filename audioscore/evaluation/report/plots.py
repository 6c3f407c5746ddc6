"""The plots of the report. Legends and captions are HTML, so that they scale with the page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from audioscore.evaluation.metrics import Array
from audioscore.html import INK, PALETTE, style_axes
from audioscore.units import SCORE_BANDS, band_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.4  # inches; two figures share a row on a wide page and stack on a phone
MANY_CLIPS = 600  # with more, dots are rasterized to limit the size of the page
HELD_OUT = "val_spearman_within_source"
EPOCH_KEYS = ("train_loss", HELD_OUT)

Run = Sequence[Mapping[str, Any]]  # epochs in order, each with `epoch`, `train_loss` and `val_spearman`


def colours(names: Sequence[str], first: int = 0) -> dict[str, str]:
    """Assign palette colours to names, starting at colour `first` and wrapping around.

    >>> list(colours(["ktv", "acapella"], first=2).values()) == list(PALETTE[2:4])
    True
    """
    return {name: PALETTE[(first + index) % len(PALETTE)] for index, name in enumerate(names)}


def _axes(xlabel: str, ylabel: str, height: float = HEIGHT) -> tuple["Figure", Any]:
    """Create a figure without pyplot, which would keep figures in memory and need a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    style_axes(axes)
    return figure, axes


def _diagonal(axes: Any, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)


def _limits(*values: Array) -> tuple[float, float]:
    """Return one range for both axes."""
    low, high = min(part.min() for part in values), max(part.max() for part in values)
    pad = max(1.0, 0.04 * (high - low))
    return float(low - pad), float(high + pad)


def agreement(
    human: Array, predicted: Array, intervals: Array, sources: Sequence[str], palette: Mapping[str, str]
) -> "Figure":
    """Plot predicted against human score with prediction intervals.

    Shape: human, predicted [N], intervals [N, 2] (NaN for none), sources [N].
    """
    figure, axes = _axes("human score", "predicted score", HEIGHT + 0.5)
    low, high = _limits(human, predicted)
    many = len(human) > MANY_CLIPS
    names = np.array(sources, dtype=str)
    for source, colour in palette.items():
        member = names == source
        bars = member & np.isfinite(intervals).all(axis=1)
        axes.vlines(human[bars], *intervals[bars].T, color=colour, linewidth=0.8, alpha=0.16, rasterized=many, zorder=2)
        axes.scatter(
            human[member], predicted[member], s=12, color=colour, alpha=0.75, linewidths=0, rasterized=many, zorder=3
        )
    _diagonal(axes, low, high)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    return figure


def residuals_by_band(human: Array, predicted: Array, limit: float, colour: str) -> "Figure":
    """Plot predicted minus human score by band of human score, on an axis of +-`limit` points.

    Shape: human [N], predicted [N].
    """
    figure, axes = _axes("human score", "predicted \N{MINUS SIGN} human, points", HEIGHT + 0.3)
    of_clip = np.array([band_of(float(score)) for score in human])
    bands = [name for low, high in SCORE_BANDS if (name := f"{low:g}-{high:g}") in of_clip]
    jitter = np.random.default_rng(0)  # horizontal jitter, so that dots do not overlap
    many = len(human) > MANY_CLIPS
    for position, band in enumerate(bands):
        errors = (predicted - human)[of_clip == band]
        jittered = position + jitter.uniform(-0.25, 0.25, len(errors))
        axes.scatter(jittered, errors, s=8, color=colour, alpha=0.4, linewidths=0, rasterized=many)
        _box(axes, errors, position, 0.6, colour)
    axes.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
    axes.set_xticks(range(len(bands)), [f"{band}\nn={int((of_clip == band).sum())}" for band in bands])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(-limit, limit)
    axes.grid(False, axis="x")
    return figure


def _box(axes: Any, errors: Array, centre: float, width: float, colour: str) -> None:
    """Draw quartiles as a box, the median as a bar, and the 5th and 95th percentile as whiskers."""
    line = {"color": colour, "linewidth": 1.4}
    axes.boxplot(
        [errors],
        positions=[centre],
        widths=[width],
        whis=(5, 95),
        showfliers=False,
        manage_ticks=False,
        showcaps=False,
        boxprops=line,
        whiskerprops=line,
        medianprops={"color": INK, "linewidth": 2},
    )


def training_curve(
    runs: Mapping[str, Mapping[int, Run]], chosen: Mapping[str, int], key: str, palette: Mapping[str, str]
) -> "Figure":
    """Plot `key` by epoch for all seeds, with the shown seed bold and its best epoch ringed."""
    figure, axes = _axes("epoch", {"train_loss": "training loss", HELD_OUT: "within-source Spearman, held out"}[key])
    for plan, seeds in runs.items():
        for seed, run in seeds.items():
            points = [(epoch["epoch"], epoch[key]) for epoch in run if epoch.get(key) is not None]
            bold = seed == chosen.get(plan)
            if not points:
                continue
            line = {"linewidth": 2.2, "alpha": 1, "zorder": 3} if bold else {"linewidth": 1, "alpha": 0.3, "zorder": 2}
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), color=palette[plan], marker=marker, markersize=4, **line)
            best = best_epoch(run) if bold else None
            value = dict(points).get(best)
            if value is not None:
                axes.plot(best, value, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, zorder=4)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def best_epoch(run: Run) -> Any:
    """Return the first epoch with the highest within-source Spearman of held-out clips; None where it is undefined.

    >>> best_epoch([{"epoch": 1, HELD_OUT: 0.2}, {"epoch": 2, HELD_OUT: 0.4}, {"epoch": 3}])
    2
    """
    defined = [epoch for epoch in run if epoch.get(HELD_OUT) is not None]
    return max(defined, key=lambda epoch: epoch[HELD_OUT])["epoch"] if defined else None


def accuracy_by_gap(gaps: Mapping[str, Mapping[str, Mapping[str, Any]]], palette: Mapping[str, str]) -> "Figure":
    """Plot pairwise accuracy with intervals by difference in human score; `gaps` is plan -> gap -> value."""
    figure, axes = _axes("difference in human score, points", "pairs in the right order")
    names = list(next(iter(gaps.values())))
    for number, (plan, by_gap) in enumerate(gaps.items()):
        for position, name in enumerate(names):
            value, lo, hi = (by_gap[name][part] for part in ("value", "lo", "hi"))
            if value is None:
                continue
            x = position + 0.14 * (number - (len(gaps) - 1) / 2)
            if lo is not None and hi is not None:
                axes.plot([x, x], [lo, hi], color=palette[plan], linewidth=2, alpha=0.6)
            axes.plot(x, value, "o", color=palette[plan], markersize=6)
    axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(min(0.4, axes.get_ylim()[0]), 1.01)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(False, axis="x")
    return figure


def calibration(curves: Mapping[str, Sequence[Mapping[str, Any]]], palette: Mapping[str, str]) -> "Figure":
    """Plot mean human score, with intervals, against mean predicted score, one line for each plan.

    `curves` is plan -> bins, as returned by `calibration_curve`.
    """
    figure, axes = _axes("mean predicted score", "mean human score")
    means = {
        plan: np.array([[one["predicted"], one["human"]["value"]] for one in bins]) for plan, bins in curves.items()
    }
    low, high = _limits(*means.values())
    for plan, bins in curves.items():
        axes.plot(*means[plan].T, color=palette[plan], marker="o", markersize=5, linewidth=1.6)
        for one in bins:
            if one["human"]["lo"] is not None:
                ends = one["human"]["lo"], one["human"]["hi"]
                low, high = min(low, ends[0] - 1), max(high, ends[1] + 1)
                axes.plot([one["predicted"]] * 2, ends, color=palette[plan], linewidth=2, alpha=0.45)
    _diagonal(axes, low, high)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    return figure
