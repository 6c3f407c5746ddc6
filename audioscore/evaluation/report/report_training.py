"""What training did, how much luck is in it, and which differences between plans are more than chance."""

from collections.abc import Mapping
from typing import Any

from audioscore.evaluation.report import plots
from audioscore.evaluation.report.figure_text import (
    METRIC_TITLES,
    Notes,
    bare_html,
    figure_html,
    noted_table,
    plan_title,
)
from audioscore.evaluation.report.metrics import in_a_row, plan_legend
from audioscore.html import figure_html as picture
from audioscore.html import paragraph

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
