"""The plans beside one another and beside what did not listen: metrics, pairs, calibration, the raters' ceiling."""

import html
from collections.abc import Mapping
from typing import Any

from audioscore.evaluation.report import plots
from audioscore.evaluation.report.decision import (
    METRIC_TITLES,
    Notes,
    bare_html,
    figure_html,
    figure_text,
    metric_html,
    noted_table,
    plan_title,
)
from audioscore.html import figure_html as picture
from audioscore.html import paragraph

HEADLINE = ("spearman_within_source", "spearman", "pairwise_accuracy", "mae")
NOT_ASKED = "it was not computed: a control is there for the other columns"
NO_CEILING = "the raters' agreement says nothing of it"
SET_WIDTH = "set when the model was calibrated, not estimated here"
OWN_MEAN = "the mean that the bin was cut by, not an estimate"
OF_RATERS = "it describes the raters of these clips"


def side_by_side(evaluation: Mapping[str, Any]) -> str:
    """The comparison in words, then plans, controls and the raters' ceiling in one table."""
    notes = Notes()
    plans = evaluation["plans"].items()
    rows = [
        [plan_title(plan), *(metric_html(figures, metric, notes) for metric in HEADLINE)] for plan, figures in plans
    ]
    for name, figures in evaluation["controls"].items():
        cells = {"pairwise_accuracy": bare_html(None, notes, NOT_ASKED)}
        cells |= {metric: metric_html(figures, metric, notes) for metric in HEADLINE if metric in figures}
        rows.append([f"control: {name} only", *(cells[metric] for metric in HEADLINE)])
    ceiling = evaluation["noise_ceiling"]
    if ceiling["clips"]:
        both = [figure_html(ceiling[key], notes) for key in ("within_source", "overall")]
        rows.append(["noise ceiling of the raters", *both, *(bare_html(None, notes, NO_CEILING) for _ in range(2))])
    note = (
        "Higher is better, except for MAE, the mean error in score points; a dash is a figure that is undefined or was "
        "not asked for. Spearman within source compares only recordings of the same domain, and is the figure to "
        "trust: KTV and a cappella differ in score and in sound, so the overall figure also rewards telling the two "
        "apart. Controls called only did not listen: each ranks the clips by one measured value, the control "
        "source by the mean score of the recording's domain, which orders nothing within one, and the control constant "
        "gives every clip the mean score of the training clips."
    )
    headers = ["", *(METRIC_TITLES[metric] for metric in HEADLINE)]
    return _comparison(evaluation["comparison"]) + noted_table(headers, rows, notes) + paragraph(note, "soft")


def _comparison(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return paragraph("Only one of the two plans was evaluated, so there is no difference to show.")
    if comparison["delta"] is None or comparison["lo"] is None:
        return paragraph("The difference between the plans is undefined on these clips, or has no interval.")
    if comparison["lo"] > 0:
        verdict = "B ranks the test clips better than A"
    elif comparison["hi"] < 0:
        verdict = "A ranks the test clips better than B"
    else:
        verdict = "The test clips do not show which plan ranks better: the interval holds zero"
    difference = figure_text(comparison, name="delta", sign="+")
    within = figure_text(comparison["within_source"], name="delta", sign="+")
    return paragraph(f"{verdict}. Spearman of B minus A, on the same clips: {difference}; within source: {within}.")


def legend(palette: Mapping[str, str]) -> str:
    """Coloured dots with names. In the page, not in the picture: names may be in any script."""
    entries = (f'<span style="color:{colour}">&#9679;</span> {html.escape(name)}' for name, colour in palette.items())
    return f'<p class="soft">{"&emsp;".join(entries)}</p>'


def plan_legend(palette: Mapping[str, str]) -> str:
    """The plans' colours, by the names a reader knows them by."""
    return legend({plan_title(plan): colour for plan, colour in palette.items()})


def in_a_row(*figures: str) -> str:
    """Figures in a row that wraps on a narrow screen."""
    style = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));gap:0 1.5rem"
    return f'<div style="{style}">{"".join(figures)}</div>'


def order_and_calibration(plans: Mapping[str, Any], palette: Mapping[str, str]) -> str:
    """How often pairs are put in order by how far apart they are, and whether a score means what people mean by it."""
    gaps = {plan: figures["pairwise_accuracy_by_gap"] for plan, figures in plans.items()}
    curves = {plan: figures["calibration_curve"] for plan, figures in plans.items()}
    order = picture(
        plots.accuracy_by_gap(gaps, palette),
        "Of two clips whose human scores differ by so much, how often the better one is put first, with its interval. "
        "The dashed line is guessing. Small differences are hard for people too.",
    )
    calibrated = picture(
        plots.calibration(curves, palette),
        "Clips sorted by predicted score and cut into equally full bins, at least 5 clips each: the mean of what "
        "people gave, with its interval. On the dashed line, a predicted score means what people mean by it.",
    )
    return plan_legend(palette) + in_a_row(order, calibrated) + _gap_table(gaps) + _coverage(plans) + _bins(curves)


def _gap_table(gaps: Mapping[str, Mapping[str, Any]]) -> str:
    notes = Notes()
    rows = [
        [f"{gap} points", *(figure_html(of_plan[gap], notes) for of_plan in gaps.values())]
        for gap in next(iter(gaps.values()))
    ]
    return noted_table(["difference in human score", *map(plan_title, gaps)], rows, notes)


def _coverage(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = [
        [
            plan_title(plan), figures["coverage"]["clips"], figure_html(figures["coverage"], notes, "share", "share"),
            bare_html(figures["coverage"]["mean_width"], notes, SET_WIDTH, "points"),
        ]
        for plan, figures in plans.items()
    ]  # fmt: skip
    headers = ["the model's own interval", "clips", "human scores inside", "mean width, points"]
    return noted_table(headers, rows, notes)


def _bins(curves: Mapping[str, Any]) -> str:
    """The calibration plot's figures, folded away."""
    notes = Notes()
    rows = [
        [plan_title(plan), one["clips"], bare_html(one["predicted"], notes, OWN_MEAN, "points"),
         figure_html(one["human"], notes, "points")]
        for plan, bins in curves.items()
        for one in bins
    ]  # fmt: skip
    listed = noted_table(["plan", "clips", "mean predicted", "mean human"], rows, notes)
    return f"<details><summary>The calibration in figures</summary>{listed}</details>"


def noise_ceiling(ceiling: Mapping[str, Any]) -> str:
    """What the raters' disagreement leaves to reach, overall and in each source."""
    if not ceiling["clips"]:
        return paragraph("No test clip was scored by two raters or more, so that nothing is known of it.", "soft")
    notes = Notes()
    rows = [
        ["overall", ceiling["clips"], figure_html(ceiling["overall"], notes)],
        ["within source", ceiling["clips"], figure_html(ceiling["within_source"], notes)],
    ]
    rows += [[f"source {name}", one["clips"], figure_html(one, notes)] for name, one in ceiling["per_source"].items()]
    rows.append(["two raters, Pearson", ceiling["clips"], bare_html(ceiling["pairwise_r"], notes, OF_RATERS)])
    note = (
        f"{ceiling['raters']} raters. The ceiling is the correlation with these labels that a perfect judge would "
        "reach; no model can be expected to exceed it. It belongs beside Pearson and, nearly, Spearman, and is "
        "lower within a source, where scores differ less."
    )
    return noted_table(["", "rated clips", "ceiling"], rows, notes) + paragraph(note, "soft")


def all_metrics(plans: Mapping[str, Any]) -> str:
    """Every metric overall, and inside the sources."""
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


Curves = Mapping[str, Mapping[Any, plots.Run]]

SINGLE_SEED = (
    "one training run, listed for the spread over seeds; the tables of the chosen seed have intervals over singers"
)
P_VALUE = "a p value is itself a statement of uncertainty, and has no interval"
ASKED_ONCE = "the probe was asked once, on the validation clips"
KNOWN = "it is known, not estimated"


def variants(found: Mapping[str, Any], plans: Mapping[str, Any]) -> str:
    """Every plan minus the winner on validation, with p values corrected for looking at all of them."""
    if not found["compared"]:
        return paragraph("Only one plan was evaluated.", "soft")
    notes = Notes()
    rows = [
        [
            f"{plan_title(plan)} minus {plan_title(found['reference'])}", METRIC_TITLES[metric],
            figure_html(one, notes, name="delta", sign="+"),
            bare_html(one["p"], notes, P_VALUE), bare_html(one["p_holm"], notes, P_VALUE),
        ]
        for plan, of_plan in found["compared"].items()
        for metric, one in of_plan.items()
        if plan in plans
    ]  # fmt: skip
    count = found["family"]
    others = "1 other plan" if count == 1 else f"{count} other plans"
    note = (
        f"{plan_title(found['reference'])} was chosen before the test clips were looked at; {others} are compared with "
        "it. p is two-sided, from the paired resamples; Holm's correction keeps the chance of any false difference in "
        "a column below the level that is asked for. Differences to a control are expected."
    )
    headers = ["", "figure", "difference", "p", "p after Holm"]
    return noted_table(headers, rows, notes) + paragraph(note, "soft")


def training(plans: Mapping[str, Any], curves: Curves, palette: Mapping[str, str]) -> str:
    """Curves by epoch, where there are any, what every seed reached, and the spread of the seeds."""
    runs = {plan: {int(seed): run for seed, run in curves[plan].items()} for plan in plans if curves.get(plan)}
    chosen = {plan: figures["seed"] for plan, figures in plans.items()}
    spread = _seeds(plans) + _spread(plans) + _speakers(plans)
    if not runs:
        return paragraph("No training curves were given.") + spread
    loss, ranks = (plots.training_curve(runs, chosen, key, palette) for key in plots.EPOCH_KEYS)
    figures = in_a_row(
        picture(
            loss,
            "Loss on the training clips. A plan's own loss falls if it learns; levels of two plans do not compare.",
        ),
        picture(ranks, "Spearman on the validation clips. Falling while the loss still falls is overfitting."),
    )
    how = (
        "A thin line is a seed, the thick one the seed shown in this report; the ring marks its best validation epoch."
    )
    return plan_legend(palette) + figures + paragraph(how, "soft") + spread


def _seeds(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = [
        [plan_title(plan), f"{entry['seed']}{' (shown)' if entry['seed'] == figures['seed'] else ''}",
         bare_html(entry["val_spearman"], notes, SINGLE_SEED), bare_html(entry["test_spearman"], notes, SINGLE_SEED)]
        for plan, figures in plans.items()
        for entry in figures["per_seed"]
    ]  # fmt: skip
    return noted_table(["", "seed", "validation Spearman", "test Spearman"], rows, notes)


def _spread(plans: Mapping[str, Any]) -> str:
    notes = Notes()
    rows = []
    for plan, figures in plans.items():
        for key, where in (("val_spearman", "validation"), ("test_spearman", "test")):
            found = figures["seed_spread"][key]
            parts = [bare_html(found[part], notes, found["no_interval"]) for part in ("mean", "sd", "min", "max")]
            rows.append([plan_title(plan), where, found["seeds"], *parts])
    headers = ["Spearman over seeds", "split", "seeds", "mean", "standard deviation", "lowest", "highest"]
    return noted_table(headers, rows, notes)


def _speakers(plans: Mapping[str, Any]) -> str:
    """How well an independent probe names singers by what each plan knows of a clip, before and after training."""
    notes = Notes()
    rows = [
        [plan_title(plan), bare_html(probe["before"], notes, ASKED_ONCE), bare_html(probe["after"], notes, ASKED_ONCE),
         bare_html(probe["chance"], notes, KNOWN), probe["singers"]]
        for plan, figures in plans.items()
        if (probe := figures.get("speaker_probe")) is not None
    ]  # fmt: skip
    if not rows:
        return ""
    how = (
        "Speaker probe: how often a linear classifier of its own names the singer of a validation clip from what the "
        "plan's chosen seed knows of it. An adversary is to bring it towards chance without losing Spearman."
    )
    headers = ["", "before training", "after", "chance", "singers"]
    return paragraph(how, "soft") + noted_table(headers, rows, notes)
