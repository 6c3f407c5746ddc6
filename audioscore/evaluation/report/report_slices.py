"""Where a model is good and where it is not: tables by source, band, singer and song, and at the top of the scale."""

from collections.abc import Mapping, Sequence
from typing import Any

from audioscore.evaluation.report.figure_text import Notes, figure_html, metric_html, noted_table, of_plan, plan_title
from audioscore.html import paragraph

KEYS = ("spearman", "mae", "bias")
TITLES = {"spearman": "Spearman", "mae": "MAE", "bias": "bias"}


def sources(plans: Mapping[str, Any]) -> str:
    """Spearman, MAE and bias inside each recording domain."""
    return _by(plans, "per_source", "source", KEYS)


def bands(plans: Mapping[str, Any]) -> str:
    """The same in each band of human scores."""
    note = "Human scores inside a band differ little, so that Spearman is low there for any judge, people included."
    return _by(plans, "per_band", "human score", KEYS) + paragraph(note, "soft")


def _by(plans: Mapping[str, Any], key: str, heading: str, metrics: Sequence[str]) -> str:
    """A row for each slice and plan: narrow enough for a phone, whatever the number of plans."""
    notes = Notes()
    rows = [
        [of_plan(name, plan), found["clips"], found["singers"], *(metric_html(found, m, notes) for m in metrics)]
        for name in next(iter(plans.values()))[key]
        for plan, found in ((plan, figures[key][name]) for plan, figures in plans.items())
    ]
    return noted_table([heading, "clips", "singers", *(TITLES[m] for m in metrics)], rows, notes)


def at_the_top(plans: Mapping[str, Any]) -> str:
    """Precision and recall of the clips that people put at or above 85 and 90."""
    notes = Notes()
    rows = [
        [of_plan(f"{top} or above", plan), one["clips"], one["predicted"],
         figure_html(one["precision"], notes, "share"), figure_html(one["recall"], notes, "share")]
        for top in next(iter(plans.values()))["at_or_above"]
        for plan, one in ((plan, figures["at_or_above"][top]) for plan, figures in plans.items())
    ]  # fmt: skip
    note = (
        "Precision: of the clips that the model puts there, the share that people put there. Recall: of those that "
        "people put there, the share that the model does."
    )
    headers = ["human score", "clips there", "predicted there", "precision", "recall"]
    return noted_table(headers, rows, notes) + paragraph(note, "soft")


def singers_and_songs(plans: Mapping[str, Any]) -> str:
    """Singers' means, order inside songs, and the songs with the largest errors."""
    notes = Notes()
    rows: list[list[Any]] = []
    for plan, figures in plans.items():
        singer, song = figures["by_singer"], figures["by_song"]
        rows.append(
            [plan_title(plan), singer["singers"], metric_html(singer, "spearman", notes),
             metric_html(singer, "mae", notes), song["songs"], metric_html(song, "spearman", notes)]
        )  # fmt: skip
    headers = ["", "singers", "Spearman of their means", "MAE of their means", "songs", "Spearman inside songs"]
    first = next(iter(plans.values()))
    note = (
        f"Singers with {first['by_singer']['min_clips']} clips or more, songs with {first['by_song']['min_clips']} "
        "clips or more."
    )
    return noted_table(headers, rows, notes) + paragraph(note, "soft") + _worst_songs(plans)


def _worst_songs(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = [
        [of_plan(one["song"], plan), one["clips"], one["singers"],
         metric_html(one, "mae", notes), metric_html(one, "bias", notes)]
        for plan, figures in plans.items()
        for one in figures["by_song"]["worst"]
    ]  # fmt: skip
    if not rows:
        return ""
    listed = noted_table(["song", "clips", "singers", "MAE", "bias"], rows, notes)
    return f"<details><summary>The songs furthest off</summary>{listed}</details>"
