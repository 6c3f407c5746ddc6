"""The evaluation as one self-contained HTML page: the decision in words first, then what it rests on."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audioscore.evaluation.estimates import NO_SOURCE
from audioscore.evaluation.predictions import SPLITS, Prediction
from audioscore.evaluation.report import plots
from audioscore.evaluation.report.clips import agreement, residuals, rows_of, worst_clips
from audioscore.evaluation.report.decision import beside_the_champion, decision_parts, lead_text
from audioscore.evaluation.report.metrics import (
    all_metrics,
    noise_ceiling,
    order_and_calibration,
    side_by_side,
    training,
    variants,
)
from audioscore.evaluation.report.robustness import at_the_top, bands, probes_section, singers_and_songs, sources
from audioscore.html import definitions, paragraph, render_page, table

MAX_REASONS = 12
VARIABLE = re.compile(r"\d[\d.,]*|'[^']*'|\"[^\"]*\"")  # what differs between two rows with the same fault


def data_gate(validation: Mapping[str, Any] | None) -> str:
    """Accepted and rejected rows, the reasons, and expectations that are not met, from the gate's JSON document."""
    if validation is None:
        return paragraph("The data gate's answer was not given.", "soft")
    rejected, warned = validation["rejected"], validation.get("warnings", [])
    verdict = "open" if validation["valid"] else "closed"
    said = (
        f"The gate was {verdict}: {validation['accepted']} of {validation['clips']} rows were accepted, "
        f"{len(rejected)} rejected; {len(warned)} warnings are about clips that are used. Its own page lists every row."
    )
    return (
        paragraph(said) + _reasons("rejected", rejected) + _reasons("used with a warning", warned) + _unmet(validation)
    )


def _reasons(heading: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows by reason, the most frequent first; reasons that differ only in figures or names are one."""
    if not rows:
        return ""
    kinds = Counter(_kind(one) for one in rows)
    examples = {_kind(one): _example(one) for one in reversed(rows)}
    listed = [[kind, count, examples[kind]] for kind, count in kinds.most_common(MAX_REASONS)]
    more = len(kinds) - len(listed)
    rest = paragraph(f"And {more} more reasons.", "soft") if more else ""
    return table([heading, "rows", "for example"], listed) + rest


def _kind(one: Mapping[str, Any]) -> str:
    """A reason without what is the row's own.

    >>> _kind({"audio_file": "a.wav", "reason": "a.wav: 0.8 s long; at least 2.0 s are needed."})
    '… s long; at least … s are needed.'
    """
    return VARIABLE.sub("\N{HORIZONTAL ELLIPSIS}", str(one["reason"]).replace(f"{one['audio_file']}: ", ""))


def _example(one: Mapping[str, Any]) -> str:
    """A row and its reason, which may name the row already."""
    name, reason = str(one["audio_file"]), str(one["reason"])
    return reason if name and name in reason else f"{name}: {reason}"


def _unmet(validation: Mapping[str, Any]) -> str:
    """Expectations of the table that do not hold; rows that are rejected one by one are counted above."""
    unmet = [one for one in validation["expectations"] if not one["success"]]
    if not unmet:
        return paragraph(f"All {len(validation['expectations'])} expectations of the table hold.", "soft")
    rows = [[one["meaning"], one["severity"], one["unexpected_count"] or "-"] for one in unmet]
    return table(["expectation that does not hold", "severity", "rows"], rows)


def sources_of(predictions: Sequence[Prediction]) -> list[list[str]]:
    """For each recording domain: its name, clips by split, singers, and the range of its scores; each clip once."""
    clips = {row.clip: row for row in predictions}.values()
    rows = []
    for name in sorted({clip.source or NO_SOURCE for clip in clips}):
        own = [clip for clip in clips if (clip.source or NO_SOURCE) == name]
        singers = len({clip.singer_id for clip in own} - {None})
        scores = [clip.score for clip in own if clip.score is not None]
        reach = f"{min(scores):.1f} to {max(scores):.1f}" if scores else "-"
        rows.append([name, *(str(sum(clip.split == split for clip in own)) for split in SPLITS), str(singers), reach])
    return rows


SOURCE_HEADERS = ("source", *SPLITS, "known singers", "scores")


def data_facts(predictions: Sequence[Prediction], summary: Mapping[str, Any]) -> str:
    """What the plans were trained, chosen and judged on."""
    return table(SOURCE_HEADERS, sources_of(predictions)) + facts(summary)


def facts(values: Mapping[str, Any]) -> str:
    """Names and values; nested ones as one level."""
    return definitions(flat(values)) if values else paragraph("Nothing was recorded.", "soft")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of text.

    >>> flat({"split": {"train": 10, "test": 2}, "share": 0.123456, "files": ["a", "b"]})
    {'split, train': '10', 'split, test': '2', 'share': '0.1235', 'files': 'a, b'}
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}, "))
        elif isinstance(value, list | tuple):
            found[name] = ", ".join(map(str, value)) or "none"
        else:
            found[name] = f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)
    return found


PAGE_CHARACTERS = 3_000_000  # what the page should have at most, players included; they give way

Curves = Mapping[str, Mapping[Any, plots.Run]]


def render_report(
    evaluation: Mapping[str, Any],
    predictions: Sequence[Prediction],
    curves: Curves,
    provenance: Mapping[str, Any],
    data_summary: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
    *,
    probes: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    champion: Mapping[str, Any] | None = None,
    recordings: Path | None = None,
) -> str:
    """The page, from `evaluate`'s figures and the predictions they were computed from.

    `curves` is plan -> seed -> epochs, each with `epoch`, `train_loss` and `val_spearman`; seeds may be text, as JSON
    makes them. `decision` is the gate's, with `winner` and `Decision.parts()` where they are known, or None where it
    has not been asked; `probes` is `probe_plans`'s document, `validation` the data gate's, `champion` what
    `beside_champion` found, each None where there is none. `recordings` is the folder that the file names are relative
    to, for players of the clips furthest off. Everything is escaped.
    """
    plans = evaluation["plans"]
    rows = {plan: rows_of(predictions, plan, figures["seed"]) for plan, figures in plans.items()}
    palette = plots.colours(list(plans))
    winner = None if decision is None else decision.get("winner")
    sections = [
        ("The decision", decision_parts(decision, evaluation, probes)),
        ("The plans side by side", side_by_side(evaluation)),
        ("Beside the champion", beside_the_champion(champion, plans)),
        ("What more than chance separates", variants(evaluation["variants"], plans)),
        ("Predicted against human score", agreement(rows)),
        ("Errors by band of human score", residuals(rows, palette) + bands(plans)),
        ("Order of pairs, and calibration", order_and_calibration(plans, palette)),
        ("Inside each recording domain", sources(plans)),
        ("The top of the scale", at_the_top(plans)),
        ("Singers and songs", singers_and_songs(plans)),
        ("The noise ceiling", noise_ceiling(evaluation["noise_ceiling"])),
        ("Faults and the recording domain", probes_section(probes, plans)),
        ("All metrics", all_metrics(plans)),
        ("Training", training(plans, curves, palette)),
        ("The data gate", data_gate(validation)),
        ("Data", data_facts(predictions, data_summary)),
        ("Provenance", facts(provenance)),
    ]
    room = PAGE_CHARACTERS - sum(len(body) for _, body in sections)
    worst = ("The clips furthest off", worst_clips(rows, winner, recordings, max(0, room)))
    sections.insert(-3, worst)
    lead, good = lead_text(decision)
    return render_page("Evaluation", _subtitle(evaluation), sections, lead=lead, good=good, contents=True)


def _subtitle(evaluation: Mapping[str, Any]) -> str:
    counts = evaluation["counts"]
    parts = [f"{counts['clips']} test clips", f"{counts['singers']} singers", f"{counts['songs']} songs"]
    unit = "singers" if evaluation["clusters"] == "singer" else "single clips, since no singer is known"
    return (
        f"{', '.join(parts)}. Brackets hold {evaluation['confidence']:.0%} intervals from {evaluation['resamples']} "
        f"bootstrap resamples of {unit}; a raised letter says why there is none."
    )
