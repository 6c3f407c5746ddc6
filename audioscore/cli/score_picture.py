"""A recording's timeline as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.errors import UsageError
from audioscore.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audioscore.scoring.results import ClipScore

WIDTH, HEIGHT, DPI = 9.0, 3.2, 130  # inches; dots an inch
MARGIN = 3.0  # points of score above and below what is drawn


def write_picture(row: "ClipScore", folder: Path) -> Path:
    """Draw a result's timeline into `folder`, as NAME.timeline.png; what is there under that name stays.

    Raises UsageError where the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UsageError(f"--pictures {folder}: cannot be made ({fault.strerror}). Name another folder.") from fault
    stem = Path(row.file).name or "recording"
    target, number = folder / f"{stem}.timeline.png", 1
    while target.exists():
        number += 1
        target = folder / f"{stem}.timeline-{number}.png"
    with atomic_path(target) as temporary:
        timeline_figure(row).savefig(temporary, format="png", dpi=DPI)
    return target


def timeline_figure(row: "ClipScore") -> "Figure":
    """Scores along a recording, each at the middle of its span, over the whole recording's score and interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from audioscore.html import INK, PALETTE, style_axes

    if not row.timeline or row.score is None or row.interval is None:
        raise ValueError(f"{row.file}: there is no timeline to draw")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes)
    low, high = row.interval
    axes.axhspan(low, high, color=INK, alpha=0.07, linewidth=0)
    axes.axhline(row.score, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{row.score:.1f}", (1, row.score), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", va="center", color=INK,
    )  # fmt: skip
    scores = [moment.score for moment in row.timeline]
    middles = [(moment.start + moment.end) / 2 for moment in row.timeline]
    axes.plot(middles, scores, color=PALETTE[0], linewidth=2, marker="o", markersize=3.5)
    axes.set_xlim(0, row.timeline[-1].end)
    axes.set_ylim(max(0.0, min(low, *scores) - MARGIN), min(100.0, max(high, *scores) + MARGIN))
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 1.5, 3, 6, 10]))  # whole parts of a minute
    axes.xaxis.set_major_formatter(lambda at, _: f"{int(at) // 60}:{int(at) % 60:02d}")
    axes.set_xlabel("time")
    axes.set_ylabel("score")
    # Names in scripts that the font has not would be drawn as boxes, with a warning for each.
    axes.set_title("" if not Path(row.file).name.isascii() else Path(row.file).name, loc="left", parse_math=False)
    return figure
