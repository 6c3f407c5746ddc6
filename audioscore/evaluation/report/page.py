"""The report of a run: one self-contained HTML page, with the decision first."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audioscore.evaluation.bootstrap import NO_SOURCE
from audioscore.evaluation.gate.decision import CHAMPION
from audioscore.evaluation.predictions import SPLITS, Prediction
from audioscore.evaluation.report import plots
from audioscore.evaluation.report.clips import agreement, largest_errors, residuals, rows_of
from audioscore.evaluation.report.metrics import (
    HEADLINE,
    all_metrics,
    noise_ceiling,
    order_and_calibration,
    plans_and_controls,
    significance,
    training,
)
from audioscore.evaluation.report.robustness import bands, high_scores, robustness_section, singers_and_songs, sources
from audioscore.evaluation.report.tables import (
    METRIC_TITLES,
    PLAN_TITLES,
    Notes,
    bare_html,
    estimate_html,
    metric_html,
    noted_table,
    plan_title,
)
from audioscore.html import definitions, paragraph, render_page, table

PAGE_CHARACTERS = 3_000_000  # maximum size of the page; players are omitted beyond it
MAX_REASONS = 12
VARIABLE = re.compile(r"\d[\d.,]*|'[^']*'|\"[^\"]*\"")  # numbers and quoted names, which differ between similar reasons
SOURCE_HEADERS = ("source", *SPLITS, "known singers", "scores")
TOO_SMALL = "too few clips or singers to compare"
OF_DIFFERENCE = "the interval is of the difference"
NOT_COMPARED = "the gate compares Spearman only"
NO_RESAMPLES = "no interval: most resamples are undefined"

Curves = Mapping[str, Mapping[Any, plots.Run]]


def render_report(
    evaluation: Mapping[str, Any],
    predictions: Sequence[Prediction],
    curves: Curves,
    provenance: Mapping[str, Any],
    data_summary: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
    *,
    robustness: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    champion: Mapping[str, Any] | None = None,
    recordings: Path | None = None,
) -> str:
    """Render the report from the document of `evaluate` and the predictions it was computed from.

    All names and texts are escaped. A part whose argument is None is reported as missing.

    Args:
        curves: plan -> seed -> epochs, each with `epoch`, `train_loss` and `val_spearman`; seeds may be strings (JSON).
        decision: the gate's decision, with `winner` and `Decision.parts()`.
        robustness: the document of `run_robustness_tests`.
        validation: the document of the data gate.
        champion: the document of `compare_with_champion`.
        recordings: the data folder, for the players of the clips with the largest errors.
    """
    plans = evaluation["plans"]
    rows = {plan: rows_of(predictions, plan, figures["seed"]) for plan, figures in plans.items()}
    palette = plots.colours(list(plans))
    winner = None if decision is None else decision.get("winner")
    sections = [
        ("Decision", decision_section(decision, evaluation, robustness)),
        ("Plans and controls", plans_and_controls(evaluation)),
        ("Comparison with the champion", champion_section(champion, plans)),
        ("Significance of differences", significance(evaluation["variants"], plans)),
        ("Predicted and human scores", agreement(rows)),
        ("Errors by score band", residuals(rows, palette) + bands(plans)),
        ("Pairwise accuracy and calibration", order_and_calibration(plans, palette)),
        ("Results by source", sources(plans)),
        ("High scores", high_scores(plans)),
        ("Singers and songs", singers_and_songs(plans)),
        ("Noise ceiling", noise_ceiling(evaluation["noise_ceiling"])),
        ("Robustness tests and domain probe", robustness_section(robustness, plans)),
        ("All metrics", all_metrics(plans)),
        ("Training", training(plans, curves, palette)),
        ("Data gate", data_gate(validation)),
        ("Data", table(SOURCE_HEADERS, sources_of(predictions)) + facts(data_summary)),
        ("Provenance", facts(provenance)),
    ]
    available = max(0, PAGE_CHARACTERS - sum(len(body) for _, body in sections))
    sections.insert(-3, ("Largest errors", largest_errors(rows, winner, recordings, available)))
    lead, good = lead_text(decision)
    return render_page("Evaluation", _subtitle(evaluation), sections, lead=lead, good=good, contents=True)


def _subtitle(evaluation: Mapping[str, Any]) -> str:
    counts = evaluation["counts"]
    unit = "by singer" if evaluation["clusters"] == "singer" else "by clip, because no singer is known"
    return (
        f"{counts['clips']} test clips, {counts['singers']} singers, {counts['songs']} songs. Brackets: "
        f"{evaluation['confidence']:.0%} interval (bootstrap {unit}, {evaluation['resamples']} resamples). "
        "A raised letter refers to a note below the table."
    )


def lead_text(decision: Mapping[str, Any] | None) -> tuple[str, bool | None]:
    """Return the first sentence of the page, and whether the winner was promoted."""
    if decision is None:
        return "No decision yet: the promotion gate has not run.", None
    return f"{'Promoted' if decision['promoted'] else 'Not promoted'}: {decision['reason']}.", decision["promoted"]


def decision_section(
    decision: Mapping[str, Any] | None, evaluation: Mapping[str, Any], robustness: Mapping[str, Any] | None
) -> str:
    """Show what the decision is based on, and the warnings of the evaluation."""
    warnings = "".join(paragraph(text, "bad") for text in evaluation["warnings"])
    if decision is None:
        return warnings or paragraph("No decision.", "soft")
    winner = decision.get("winner")
    basis = [f"{decision[key]} {key}" for key in ("clips", "singers") if key in decision]
    if dropped := decision.get("dropped", 0):
        basis.append(f"{dropped} more clips excluded, because a model was trained on them")
    chosen = evaluation.get("winner") or {}
    why = f" ({chosen['reason']})" if "reason" in chosen else ""
    parts = [f"Winner: {plan_title(winner)}{why}."] if winner else []
    parts += [f"Test data: {', '.join(basis)}."] if basis else []
    if decision.get("delta") is None:
        parts.append("No difference to a champion: no champion exists, or it cannot be compared.")
    summary, flags = paragraph(" ".join(parts)) if parts else "", paragraph(_flagged(decision, winner, robustness))
    return summary + _difference(decision) + _slices(decision) + flags + warnings


def _difference(decision: Mapping[str, Any]) -> str:
    if decision.get("delta") is None:
        return ""
    notes = Notes()
    found = {"no_interval": NO_RESAMPLES, "lo": None, "hi": None, **decision}
    rows = [["within-source Spearman (decides)", estimate_html(found, notes, name="delta", sign="+")]]
    if decision.get("overall_delta") is not None:
        overall = {"no_interval": NO_RESAMPLES, "lo": decision["overall_lo"], "hi": decision["overall_hi"]}
        shown = estimate_html({**overall, "delta": decision["overall_delta"]}, notes, name="delta", sign="+")
        rows.append(["overall Spearman (may fall by its margin)", shown])
    return noted_table(["winner minus champion", "difference"], rows, notes)


def _slices(decision: Mapping[str, Any]) -> str:
    """Show every slice that the gate compared, and those that were too small."""
    slices = decision.get("slices", [])
    if not slices:
        return ""
    notes = Notes()
    rows = []
    for one in slices:
        small = one["verdict"] == "too small"
        why = TOO_SMALL if small else OF_DIFFERENCE
        difference = {**one, "no_interval": TOO_SMALL if small else NO_RESAMPLES}
        rows.append(
            [
                f"{one['kind']} {one['name']}", one["verdict"],
                estimate_html(difference, notes, name="delta", sign="+"),
                bare_html(one["challenger"], notes, why), bare_html(one["champion"], notes, why),
                one["clips"], one["singers"],
            ]
        )  # fmt: skip
    fell, few = (sum(one["verdict"] == verdict for one in slices) for verdict in ("fell", "too small"))
    headers = ["slice", "verdict", "difference", "winner", "champion", "clips", "singers"]
    summary = f"{len(slices)} slices: Spearman fell on {fell}; {few} too small to compare."
    return paragraph(summary) + noted_table(headers, rows, notes)


def _flagged(decision: Mapping[str, Any], winner: str | None, robustness: Mapping[str, Any] | None) -> str:
    """List the robustness tests that flag the winner, or refuse its promotion."""
    if refusing := decision.get("probes"):
        return f"Promotion refused by robustness tests: {', '.join(refusing)}."
    of_winner = None if robustness is None or winner is None else robustness["plans"].get(winner)
    if of_winner is None or not of_winner["degradations"]:
        return "The winner has no robustness tests."
    flags = [one["title"] for one in of_winner["degradations"].values() if one["flagged"]]
    if not flags:
        return "No robustness test flags the winner."
    return f"Robustness tests that flag the winner (configured not to refuse promotion): {'; '.join(flags)}."


def champion_section(champion: Mapping[str, Any] | None, plans: Mapping[str, Any]) -> str:
    """Compare the candidates with the champion on the clips that none of them was trained on."""
    if champion is None:
        return paragraph("No champion.", "soft")
    if "reason" in champion:
        return paragraph(f"The champion could not be scored: {champion['reason']}", "soft")
    notes = Notes()
    others = [plan for plan in champion["plans"] if plan != CHAMPION and plan in plans]
    names = [CHAMPION, *([plan for plan in others if plan in PLAN_TITLES] or others)]
    rows = [
        [
            CHAMPION if name == CHAMPION else plan_title(name),
            *(metric_html(champion["plans"][name], metric, notes) for metric in HEADLINE),
        ]
        for name in names
    ]
    compared = champion["variants"]["compared"]
    rows += [
        [
            f"{plan_title(name)} minus champion",
            *(estimate_html(compared[name][metric], notes, name="delta", sign="+") for metric in HEADLINE[:2]),
            *(bare_html(None, notes, NOT_COMPARED) for _ in HEADLINE[2:]),
        ]
        for name in names[1:]
    ]
    counts, dropped = champion["counts"], champion["dropped"]
    excluded = f"; {dropped} more excluded." if dropped else "."
    basis = f"{counts['clips']} test clips of {counts['singers']} singers that no model was trained on{excluded}"
    return paragraph(basis) + noted_table(["", *(METRIC_TITLES[metric] for metric in HEADLINE)], rows, notes)


def data_gate(validation: Mapping[str, Any] | None) -> str:
    """Summarise the document of the data gate: accepted and rejected rows, reasons, and failed expectations."""
    if validation is None:
        return paragraph("No result of the data gate.", "soft")
    rejected, warned = validation["rejected"], validation.get("warnings", [])
    summary = (
        f"The data gate is {'open' if validation['valid'] else 'closed'}: {validation['accepted']} of "
        f"{validation['clips']} rows accepted, {len(rejected)} rejected, {len(warned)} warnings. "
        "Its own report lists all rows."
    )
    unmet = [one for one in validation["expectations"] if not one["success"]]
    if unmet:
        failed = [[one["meaning"], one["severity"], one["unexpected_count"] or "-"] for one in unmet]
        expectations = table(["failed expectation", "severity", "rows"], failed)
    else:
        expectations = paragraph(f"All {len(validation['expectations'])} expectations of the table hold.", "soft")
    return paragraph(summary) + _reasons("rejected", rejected) + _reasons("used with a warning", warned) + expectations


def _reasons(heading: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Count rows by reason, most frequent first; reasons that differ only in numbers or names count as one."""
    if not rows:
        return ""
    kinds = Counter(_kind(one) for one in rows)
    examples = {_kind(one): _example(one) for one in reversed(rows)}
    listed = [[kind, count, examples[kind]] for kind, count in kinds.most_common(MAX_REASONS)]
    more = len(kinds) - len(listed)
    return table([heading, "rows", "example"], listed) + (paragraph(f"{more} more reasons.", "soft") if more else "")


def _kind(one: Mapping[str, Any]) -> str:
    """Return a reason without numbers and names.

    >>> _kind({"audio_file": "a.wav", "reason": "a.wav: 0.8 s long; at least 2.0 s are needed."})
    '… s long; at least … s are needed.'
    """
    return VARIABLE.sub("\N{HORIZONTAL ELLIPSIS}", str(one["reason"]).replace(f"{one['audio_file']}: ", ""))


def _example(one: Mapping[str, Any]) -> str:
    """Return the reason of a row with its file name."""
    name, reason = str(one["audio_file"]), str(one["reason"])
    return reason if name and name in reason else f"{name}: {reason}"


def sources_of(predictions: Sequence[Prediction]) -> list[list[str]]:
    """Return a row for each source: name, clips by split, singers, and range of scores; each clip counts once."""
    clips = {row.clip: row for row in predictions}.values()
    rows = []
    for name in sorted({clip.source or NO_SOURCE for clip in clips}):
        own = [clip for clip in clips if (clip.source or NO_SOURCE) == name]
        singers = len({clip.singer_id for clip in own} - {None})
        scores = [clip.score for clip in own if clip.score is not None]
        span = f"{min(scores):.1f} to {max(scores):.1f}" if scores else "-"
        rows.append([name, *(str(sum(clip.split == split for clip in own)) for split in SPLITS), str(singers), span])
    return rows


def facts(values: Mapping[str, Any]) -> str:
    """Return names and values as a table; nested values are flattened."""
    return definitions(flat(values)) if values else paragraph("Nothing was recorded.", "soft")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested values to text.

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
