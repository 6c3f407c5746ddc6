"""The evaluation as one self-contained HTML page: the decision in words first, then what it rests on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report import plots
from audioscore.evaluation.report.clips import agreement, residuals, rows_of, worst_clips
from audioscore.evaluation.report.decision import beside_the_champion, decision_parts, lead_text
from audioscore.evaluation.report.metrics import all_metrics, noise_ceiling, order_and_calibration, side_by_side
from audioscore.evaluation.report.report_data import data_facts, data_gate, facts
from audioscore.evaluation.report.report_slices import at_the_top, bands, singers_and_songs, sources
from audioscore.evaluation.report.report_training import training, variants
from audioscore.evaluation.report.robustness import probes_section
from audioscore.html import render_page

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
