"""Report sections on metrics: plans and controls, pairs, calibration, noise ceiling, significance and training."""

import html
from collections.abc import Mapping
from typing import Any

from audioscore.evaluation.report import plots
from audioscore.evaluation.report.tables import (
    METRIC_TITLES,
    Notes,
    bare_html,
    estimate_html,
    figure_text,
    metric_html,
    noted_table,
    plan_title,
)
from audioscore.html import figure_html, paragraph

HEADLINE = ("spearman_within_source", "spearman", "pairwise_accuracy", "mae")
NOT_FOR_CONTROLS = "not computed for controls"
NO_CEILING = "the noise ceiling is a correlation"
SET_WIDTH = "set by the calibration, not estimated"
OWN_MEAN = "mean of the bin, not estimated"
OF_RATERS = "descriptive, no interval"
SINGLE_SEED = "a single training run; the tables of the shown seed have intervals"
P_VALUE = "p values have no interval"
ONE_RUN = "one linear probe on the validation clips"
GIVEN = "given by the number of singers"

Curves = Mapping[str, Mapping[Any, plots.Run]]


def plans_and_controls(evaluation: Mapping[str, Any]) -> str:
    """Compare plans, controls and the noise ceiling in one table."""
    notes = Notes()
    plans = evaluation["plans"].items()
    rows = [
        [plan_title(plan), *(metric_html(figures, metric, notes) for metric in HEADLINE)] for plan, figures in plans
    ]
    for name, figures in evaluation["controls"].items():
        cells = {"pairwise_accuracy": bare_html(None, notes, NOT_FOR_CONTROLS)}
        cells |= {metric: metric_html(figures, metric, notes) for metric in HEADLINE if metric in figures}
        rows.append([f"control: {name}", *(cells[metric] for metric in HEADLINE)])
    ceiling = evaluation["noise_ceiling"]
    if ceiling["clips"]:
        both = [estimate_html(ceiling[key], notes) for key in ("within_source", "overall")]
        rows.append(["noise ceiling", *both, *(bare_html(None, notes, NO_CEILING) for _ in range(2))])
    note = (
        "Higher is better, except for MAE (mean absolute error). Spearman within source is the main metric: KTV and a "
        "cappella differ in score and in sound, so the overall value also rewards separating the two. Untrained "
        "controls rank clips by one measured value, by the mean score of their source (source), or give every clip "
        "the mean training score (constant)."
    )
    headers = ["", *(METRIC_TITLES[metric] for metric in HEADLINE)]
    return _comparison(evaluation["comparison"]) + noted_table(headers, rows, notes) + paragraph(note, "soft")


def _comparison(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return paragraph("Plans A and B were not both evaluated, so there is no comparison.")
    if comparison["delta"] is None or comparison["lo"] is None:
        return paragraph("The difference between B and A is undefined, or has no interval.")
    if comparison["lo"] > 0:
        verdict = "B ranks the test clips significantly better than A"
    elif comparison["hi"] < 0:
        verdict = "A ranks the test clips significantly better than B"
    else:
        verdict = "No significant difference between B and A"
    difference = figure_text(comparison, name="delta", sign="+")
    within = figure_text(comparison["within_source"], name="delta", sign="+")
    return paragraph(f"{verdict}. Spearman, B minus A: {difference}; within source: {within}.")


def significance(found: Mapping[str, Any], plans: Mapping[str, Any]) -> str:
    """Compare every plan with the reference, with p values corrected for multiple comparisons."""
    if not found["compared"]:
        return paragraph("Only one plan was evaluated.", "soft")
    notes = Notes()
    rows = [
        [
            f"{plan_title(plan)} minus {plan_title(found['reference'])}", METRIC_TITLES[metric],
            estimate_html(one, notes, name="delta", sign="+"),
            bare_html(one["p"], notes, P_VALUE), bare_html(one["p_holm"], notes, P_VALUE),
        ]
        for plan, of_plan in found["compared"].items()
        for metric, one in of_plan.items()
        if plan in plans
    ]  # fmt: skip
    note = (
        f"Reference: {plan_title(found['reference'])}, chosen on held-out clips. Two-sided paired bootstrap test; Holm "
        f"correction over the {found['family']} comparisons of each metric."
    )
    headers = ["", "metric", "difference", "p", "p (Holm)"]
    return noted_table(headers, rows, notes) + paragraph(note, "soft")


def legend(palette: Mapping[str, str]) -> str:
    """Return coloured dots with names, in HTML because plot fonts lack some scripts."""
    entries = (f'<span style="color:{colour}">&#9679;</span> {html.escape(name)}' for name, colour in palette.items())
    return f'<p class="soft">{"&emsp;".join(entries)}</p>'


def plan_legend(palette: Mapping[str, str]) -> str:
    """Return the colours of the plans with their titles."""
    return legend({plan_title(plan): colour for plan, colour in palette.items()})


def in_a_row(*figures: str) -> str:
    """Arrange figures in a row that wraps on narrow screens."""
    style = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));gap:0 1.5rem"
    return f'<div style="{style}">{"".join(figures)}</div>'


def order_and_calibration(plans: Mapping[str, Any], palette: Mapping[str, str]) -> str:
    """Show pairwise accuracy by score difference, calibration and coverage."""
    gaps = {plan: figures["pairwise_accuracy_by_gap"] for plan, figures in plans.items()}
    curves = {plan: figures["calibration_curve"] for plan, figures in plans.items()}
    order = figure_html(
        plots.accuracy_by_gap(gaps, palette),
        "Share of pairs in the right order, by difference in human score, with interval. Dashed: chance.",
    )
    calibrated = figure_html(
        plots.calibration(curves, palette),
        "Mean human score, with interval, in bins of equal size by predicted score. Dashed: perfect calibration.",
    )
    return plan_legend(palette) + in_a_row(order, calibrated) + _gap_table(gaps) + _coverage(plans) + _bins(curves)


def _gap_table(gaps: Mapping[str, Mapping[str, Any]]) -> str:
    notes = Notes()
    rows = [
        [f"{gap} points", *(estimate_html(of_plan[gap], notes) for of_plan in gaps.values())]
        for gap in next(iter(gaps.values()))
    ]
    return noted_table(["difference in human score", *map(plan_title, gaps)], rows, notes)


def _coverage(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = [
        [
            plan_title(plan), figures["coverage"]["clips"], estimate_html(figures["coverage"], notes, "share", "share"),
            bare_html(figures["coverage"]["mean_width"], notes, SET_WIDTH, "points"),
        ]
        for plan, figures in plans.items()
    ]  # fmt: skip
    headers = ["prediction interval", "clips", "coverage", "mean width, points"]
    return noted_table(headers, rows, notes)


def _bins(curves: Mapping[str, Any]) -> str:
    """Return the values of the calibration plot, collapsed."""
    notes = Notes()
    rows = [
        [plan_title(plan), one["clips"], bare_html(one["predicted"], notes, OWN_MEAN, "points"),
         estimate_html(one["human"], notes, "points")]
        for plan, bins in curves.items()
        for one in bins
    ]  # fmt: skip
    listed = noted_table(["plan", "clips", "mean predicted", "mean human"], rows, notes)
    return f"<details><summary>Calibration in numbers</summary>{listed}</details>"


def noise_ceiling(ceiling: Mapping[str, Any]) -> str:
    """Show the noise ceiling overall, within source and by source."""
    if not ceiling["clips"]:
        return paragraph("Unknown: no test clip has scores of two raters.", "soft")
    notes = Notes()
    rows = [
        ["overall", ceiling["clips"], estimate_html(ceiling["overall"], notes)],
        ["within source", ceiling["clips"], estimate_html(ceiling["within_source"], notes)],
    ]
    rows += [[f"source {name}", one["clips"], estimate_html(one, notes)] for name, one in ceiling["per_source"].items()]
    rows.append(["Pearson of two raters", ceiling["clips"], bare_html(ceiling["pairwise_r"], notes, OF_RATERS)])
    note = (
        f"{ceiling['raters']} raters. Noise ceiling: the correlation with these labels that a perfect model would "
        "reach. Compare it with Pearson and, approximately, Spearman."
    )
    return noted_table(["", "rated clips", "ceiling"], rows, notes) + paragraph(note, "soft")


def all_metrics(plans: Mapping[str, Any]) -> str:
    """Show all metrics, overall and within source."""
    overall, inside = Notes(), Notes()
    rows = [
        [title, *(metric_html(figures, metric, overall) for figures in plans.values())]
        for metric, title in METRIC_TITLES.items()
    ]
    within = [
        [METRIC_TITLES[metric].removesuffix(" overall"),
         *(metric_html(figures["within_source"], metric, inside) for figures in plans.values())]
        for metric in next(iter(plans.values()))["within_source"]
    ]  # fmt: skip
    titles = [plan_title(plan) for plan in plans]
    return noted_table(["overall", *titles], rows, overall) + noted_table(["within source", *titles], within, inside)


def training(plans: Mapping[str, Any], curves: Curves, palette: Mapping[str, str]) -> str:
    """Show training curves, the result of every seed, the spread over seeds, and the singer probe."""
    runs = {plan: {int(seed): run for seed, run in curves[plan].items()} for plan in plans if curves.get(plan)}
    chosen = {plan: figures["seed"] for plan, figures in plans.items()}
    spread = _seeds(plans) + _spread(plans) + _singer_probe(plans)
    if not runs:
        return paragraph("No training curves.") + spread
    loss, ranks = (plots.training_curve(runs, chosen, key, palette) for key in plots.EPOCH_KEYS)
    figures = in_a_row(
        figure_html(loss, "Training loss. Not comparable between plans."),
        figure_html(
            ranks,
            "Within-source Spearman of held-out clips, which chooses the epoch. A fall while the loss still falls is "
            "overfitting.",
        ),
    )
    how = "Thick line: the seed shown in this report; ring: its best epoch; thin lines: other seeds."
    return plan_legend(palette) + figures + paragraph(how, "soft") + spread


def _seeds(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = [
        [plan_title(plan), f"{entry['seed']}{' (shown)' if entry['seed'] == figures['seed'] else ''}",
         bare_html(entry["val_spearman"], notes, SINGLE_SEED), bare_html(entry["test_spearman"], notes, SINGLE_SEED)]
        for plan, figures in plans.items()
        for entry in figures["per_seed"]
    ]  # fmt: skip
    return noted_table(["", "seed", "held-out Spearman", "test Spearman"], rows, notes)


def _spread(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = []
    for plan, figures in plans.items():
        for key, where in (("val_spearman", "held out"), ("test_spearman", "test")):
            found = figures["seed_spread"][key]
            parts = [bare_html(found[part], notes, found["no_interval"]) for part in ("mean", "sd", "min", "max")]
            rows.append([plan_title(plan), where, found["seeds"], *parts])
    headers = ["Spearman over seeds", "split", "seeds", "mean", "standard deviation", "min", "max"]
    return noted_table(headers, rows, notes)


def _singer_probe(plans: Mapping[str, Any]) -> str:
    """Show the accuracy of the singer probe on the features of each plan, before and after training."""
    notes = Notes()
    rows = [
        [plan_title(plan), bare_html(found["before"], notes, ONE_RUN), bare_html(found["after"], notes, ONE_RUN),
         bare_html(found["chance"], notes, GIVEN), found["singers"]]
        for plan, figures in plans.items()
        if (found := figures.get("speaker_probe")) is not None
    ]  # fmt: skip
    if not rows:
        return ""
    how = (
        "Singer probe: share of validation clips whose singer a linear classifier recognises from the features of the "
        "shown seed. The adversary should bring it towards chance without a loss of Spearman."
    )
    headers = ["singer probe", "before training", "after", "chance", "singers"]
    return paragraph(how, "soft") + noted_table(headers, rows, notes)
