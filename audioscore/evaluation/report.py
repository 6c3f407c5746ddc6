"""The evaluation as one self-contained HTML page: the decision in words first, then what it rests on."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audioscore.evaluation import plots
from audioscore.evaluation.evaluate import BASELINE, HYBRID, NO_SOURCE
from audioscore.evaluation.metrics import Array
from audioscore.evaluation.predictions import Prediction
from audioscore.page import definitions, figure_html, render_page, table

PLAN_TITLES = {BASELINE: "A baseline", HYBRID: "B hybrid"}
METRIC_TITLES = {
    "spearman_within_source": "Spearman within source",
    "spearman": "Spearman overall",
    "pairwise_accuracy": "Pairwise accuracy",
    "kendall": "Kendall τ-b",
    "pearson": "Pearson",
    "mae": "MAE, points",
    "rmse": "RMSE, points",
    "bias": "Bias, points",
}
HEADLINE = ("spearman_within_source", "spearman", "pairwise_accuracy", "mae")
IN_POINTS = ("mae", "rmse", "bias")
WORST = 10

Curves = Mapping[str, Mapping[Any, plots.Run]]


def render_report(
    evaluation: Mapping[str, Any],
    predictions: Sequence[Prediction],
    curves: Curves,
    provenance: Mapping[str, Any],
    data_summary: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
) -> str:
    """The page, from `evaluate`'s figures and the predictions they were computed from.

    `curves` is plan -> seed -> epochs, each with `epoch`, `train_loss` and `val_spearman`; seeds may be text, as JSON
    makes them. `decision` is the gate's, or None where it has not been asked. Everything is escaped.
    """
    plans = evaluation["plans"]
    rows = {plan: _test_rows(predictions, plan, figures["seed"]) for plan, figures in plans.items()}
    human = np.array([row.human for row in next(iter(rows.values()))])
    predicted = {plan: np.array([row.predicted for row in of_plan]) for plan, of_plan in rows.items()}
    palette = plots.colours(list(plans))
    sections = [
        ("The plans side by side", _headline(evaluation)),
        ("Predicted against human score", _agreement(rows)),
        ("Errors by band of human score", _residuals(human, predicted, palette)),
        ("Order of pairs, and calibration", _order_and_calibration(plans, human, predicted, palette)),
        ("Inside each recording domain", _per_source(plans)),
        ("All metrics", _all_metrics(plans)),
        ("Training", _training(plans, curves, palette)),
        ("The clips furthest off", _worst(rows)),
        ("Data", _facts(data_summary)),
        ("Provenance", _facts(provenance)),
    ]
    lead, good = _decision_text(decision)
    return render_page("Evaluation", _subtitle(evaluation), sections, lead=lead, good=good)


def _decision_text(decision: Mapping[str, Any] | None) -> tuple[str, bool | None]:
    if decision is None:
        return "Not decided yet: the gate has not been asked whether the winner may be promoted.", None
    return f"{'Promoted' if decision['promoted'] else 'Not promoted'}: {decision['reason']}.", decision["promoted"]


def _subtitle(evaluation: Mapping[str, Any]) -> str:
    counts = evaluation["counts"]
    parts = [f"{counts['clips']} test clips", f"{counts['singers']} singers", f"{counts['songs']} songs"]
    unit = "singers" if evaluation["clusters"] == "singer" else "single clips, since no singer is known"
    return (
        f"{', '.join(parts)}. Brackets hold {evaluation['confidence']:.0%} intervals from {evaluation['resamples']} "
        f"bootstrap resamples of {unit}."
    )


def _title(plan: str) -> str:
    return PLAN_TITLES.get(plan, f"control: {plan}")


def _test_rows(predictions: Sequence[Prediction], plan: str, seed: int) -> list[Prediction]:
    """The rows behind a plan's figures, in one order for all plans."""
    found = (row for row in predictions if (row.plan, row.seed, row.split) == (plan, seed, "test"))
    return sorted(found, key=lambda row: row.clip)


def _number(value: float | None, metric: str = "", sign: str = "") -> str | None:
    """A figure as text: points with two decimals, the rest with three, and a true minus; None if undefined."""
    if value is None:
        return None
    return f"{value:{sign}.{2 if metric in IN_POINTS else 3}f}".replace("-", "\N{MINUS SIGN}")


def _with_interval(found: Mapping[str, Any], metric: str = "", name: str = "value", sign: str = "") -> str | None:
    """A figure and its interval, which a line may break before but not within.

    >>> _with_interval({"value": 0.5, "lo": 0.25, "hi": 0.75})
    '0.500 [0.250,\\xa00.750]'
    """
    value = _number(found[name], metric, sign)
    if value is None or found["lo"] is None:
        return value
    return f"{value} [{_number(found['lo'], metric, sign)},\N{NO-BREAK SPACE}{_number(found['hi'], metric, sign)}]"


def _paragraph(text: str, css: str = "") -> str:
    return f'<p class="{css}">{html.escape(text)}</p>' if css else f"<p>{html.escape(text)}</p>"


def _legend(palette: Mapping[str, str]) -> str:
    """Coloured dots with names. In the page, not in the picture: names may be in any script."""
    entries = (f'<span style="color:{colour}">&#9679;</span> {html.escape(name)}' for name, colour in palette.items())
    return f'<p class="soft">{"&emsp;".join(entries)}</p>'


def _plan_legend(palette: Mapping[str, str]) -> str:
    return _legend({_title(plan): colour for plan, colour in palette.items()})


def _side_by_side(*figures: str) -> str:
    """Figures in a row that wraps on a narrow screen."""
    style = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));gap:0 1.5rem"
    return f'<div style="{style}">{"".join(figures)}</div>'


def _headline(evaluation: Mapping[str, Any]) -> str:
    """The comparison in words, then plans and controls in one table."""
    rows: list[list[Any]] = [
        [_title(plan), *(_with_interval(figures[metric], metric) for metric in HEADLINE)]
        for plan, figures in evaluation["plans"].items()
    ]
    for name, figures in evaluation["controls"].items():
        cells = [_with_interval(figures[metric]) for metric in HEADLINE[:2]]
        rows.append([f"control: {name} only", *cells, None, None])
    note = (
        "Higher is better, except for MAE, the mean error in score points; a dash is a figure that is undefined or was "
        "not asked for. Spearman within source compares only recordings of the same domain, and is the figure to "
        "trust: KTV and a cappella differ in score and in sound, so the overall figure also rewards telling the two "
        "apart. Controls called only did not listen: each ranks the clips by one measured value, and the control "
        "source by the mean score of the recording's domain, which orders nothing within one."
    )
    warnings = "".join(_paragraph(text, "bad") for text in evaluation["warnings"])
    table_html = table(["", *(METRIC_TITLES[metric] for metric in HEADLINE)], rows)
    return _comparison_text(evaluation["comparison"]) + table_html + _paragraph(note, "soft") + warnings


def _comparison_text(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return _paragraph("Only one of the two plans was evaluated, so there is no difference to show.")
    if comparison["delta"] is None or comparison["lo"] is None:
        return _paragraph("The difference between the plans is undefined on these clips.")
    if comparison["lo"] > 0:
        verdict = "B ranks the test clips better than A"
    elif comparison["hi"] < 0:
        verdict = "A ranks the test clips better than B"
    else:
        verdict = "The test clips do not show which plan ranks better: the interval holds zero"
    difference = _with_interval(comparison, name="delta", sign="+")
    within = _with_interval(comparison["within_source"], name="delta", sign="+") or "undefined"
    return _paragraph(f"{verdict}. Spearman of B minus A, on the same clips: {difference}; within source: {within}.")


def _agreement(rows: Mapping[str, Sequence[Prediction]]) -> str:
    """A scatter for each plan, its clips coloured by recording domain."""
    sources = sorted({row.source or NO_SOURCE for of_plan in rows.values() for row in of_plan})
    palette = plots.colours(sources, first=2)  # not the colours of the plans
    figures = []
    for plan, of_plan in rows.items():
        figure = plots.agreement(
            np.array([row.human for row in of_plan]),
            np.array([row.predicted for row in of_plan]),
            np.array([[np.nan if end is None else end for end in (row.lo, row.hi)] for row in of_plan]),
            [row.source or NO_SOURCE for row in of_plan],
            palette,
        )
        figures.append(figure_html(figure, f"{_title(plan)}, seed {of_plan[0].seed}: every test clip."))
    how = (
        "A dot is a test clip, and the faint bar through it the model's own interval. On the dashed line the model "
        "agrees with people; above it, it is too kind. Look for a slope inside each colour: two flat clouds at "
        "different heights mean that the model only tells the recording domains apart."
    )
    return _legend(palette) + _side_by_side(*figures) + _paragraph(how, "soft")


def _residuals(human: Array, predicted: Mapping[str, Array], palette: Mapping[str, str]) -> str:
    """A picture of the errors for each plan, all on one scale."""
    reach = 1.05 * max(1.0, *(float(np.abs(values - human).max()) for values in predicted.values()))
    figures = [
        figure_html(plots.residuals_by_band(human, values, reach, palette[plan]), f"{_title(plan)}: errors by band.")
        for plan, values in predicted.items()
    ]
    how = (
        "A dot is a test clip. The box holds the middle half of a band's errors, its bar is the median, and the "
        "whiskers span the 5th to the 95th percentile. Above zero the model is too kind. Boxes that fall from left to "
        "right mean that it pulls every clip towards the middle of the scale."
    )
    return _side_by_side(*figures) + _paragraph(how, "soft")


def _order_and_calibration(
    plans: Mapping[str, Any], human: Array, predicted: Mapping[str, Array], palette: Mapping[str, str]
) -> str:
    gaps = {plan: figures["pairwise_accuracy_by_gap"] for plan, figures in plans.items()}
    order = figure_html(
        plots.accuracy_by_gap(gaps, palette),
        "Of two clips whose human scores differ by so much, how often the better one is put first, with its interval. "
        "The dashed line is guessing. Small differences are hard for people too.",
    )
    calibration = figure_html(
        plots.calibration(human, predicted, palette),
        "Clips sorted by predicted score and cut into equally full bins, at least 5 clips each. On the dashed line, a "
        "predicted score means what people mean by it.",
    )
    shares = [
        f"{_title(plan)} {figures['coverage']['share']:.0%} of {figures['coverage']['clips']} clips"
        for plan, figures in plans.items()
        if figures["coverage"]["share"] is not None
    ]
    inside = f"Human scores inside the model's own interval: {', '.join(shares) or 'no intervals were given'}."
    return _plan_legend(palette) + _side_by_side(order, calibration) + _paragraph(inside)


def _per_source(plans: Mapping[str, Any]) -> str:
    sources = list(dict.fromkeys(name for figures in plans.values() for name in figures["per_source"]))
    first = next(iter(plans.values()))["per_source"]
    rows = [
        [
            name,
            first[name]["clips"],
            *(_with_interval(figures["per_source"][name]["spearman"]) for figures in plans.values()),
        ]
        for name in sources
    ]
    return table(["source", "clips", *(f"Spearman, {_title(plan)}" for plan in plans)], rows)


def _all_metrics(plans: Mapping[str, Any]) -> str:
    """Every estimate, the errors by band, and the spread over seeds."""
    rows = [
        [title, *(_with_interval(figures[metric], metric) for figures in plans.values())]
        for metric, title in METRIC_TITLES.items()
    ]
    bands = [
        [
            band,
            found["n"],
            *(_number(plans[plan]["bands"][band][key], key) for plan in plans for key in ("mae", "bias")),
        ]
        for band, found in next(iter(plans.values()))["bands"].items()
    ]
    headers = [f"{name}, {_title(plan)}" for plan in plans for name in ("MAE", "bias")]
    return table(["", *map(_title, plans)], rows) + table(["human score", "clips", *headers], bands)


def _training(plans: Mapping[str, Any], curves: Curves, palette: Mapping[str, str]) -> str:
    """Curves by epoch, where there are any, and what every seed reached."""
    runs = {plan: {int(seed): run for seed, run in curves[plan].items()} for plan in plans if curves.get(plan)}
    chosen = {plan: figures["seed"] for plan, figures in plans.items()}
    seeds = [
        [_title(plan), entry["seed"], _number(entry["val_spearman"]), _number(entry["test_spearman"])]
        for plan, figures in plans.items()
        for entry in figures["per_seed"]
    ]
    spread = table(["", "seed", "validation Spearman", "test Spearman"], seeds) + _speakers(plans)
    if not runs:
        return _paragraph("No training curves were given.") + spread
    loss, ranks = (plots.training_curve(runs, chosen, key, palette) for key in plots.EPOCH_KEYS)
    figures = _side_by_side(
        figure_html(
            loss,
            "Loss on the training clips. A plan's own loss falls if it learns; levels of two plans do not compare.",
        ),
        figure_html(ranks, "Spearman on the validation clips. Falling while the loss still falls is overfitting."),
    )
    how = (
        "A thin line is a seed, the thick one the seed shown in this report; the ring marks its best validation epoch."
    )
    return _plan_legend(palette) + figures + _paragraph(how, "soft") + spread


def _speakers(plans: Mapping[str, Any]) -> str:
    """How well an independent probe names singers by what each plan knows of a clip, before and after training."""
    rows = [
        [_title(plan), _number(probe["before"]), _number(probe["after"]), _number(probe["chance"]), probe["singers"]]
        for plan, figures in plans.items()
        if (probe := figures.get("speaker_probe")) is not None
    ]
    if not rows:
        return ""
    how = (
        "Speaker probe: how often a linear classifier of its own names the singer of a validation clip from what the "
        "plan's chosen seed knows of it. An adversary is to bring it towards chance without losing Spearman."
    )
    return _paragraph(how, "soft") + table(["", "before training", "after", "chance", "singers"], rows)


def _worst(rows: Mapping[str, Sequence[Prediction]]) -> str:
    """The clips with the largest error of any plan, each with what every plan says of it."""
    clips = list(zip(*rows.values(), strict=True))  # the same clip under every plan
    clips.sort(key=lambda clip: -max(abs(row.predicted - row.human) for row in clip))
    cells = [
        [clip[0].audio_file, clip[0].source or "-", f"{clip[0].human:.1f}", *(f"{row.predicted:.1f}" for row in clip)]
        for clip in clips[:WORST]
    ]
    note = _paragraph("Listen to these first: either the model is wrong, or the label is.", "soft")
    return note + table(["file", "source", "human", *map(_title, rows)], cells)


def _facts(values: Mapping[str, Any]) -> str:
    return definitions(_flat(values)) if values else _paragraph("Nothing was recorded.", "soft")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of text.

    >>> _flat({"split": {"train": 10, "test": 2}, "share": 0.123456, "files": ["a", "b"]})
    {'split, train': '10', 'split, test': '2', 'share': '0.1235', 'files': 'a, b'}
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{name}, "))
        elif isinstance(value, list | tuple):
            flat[name] = ", ".join(map(str, value)) or "none"
        else:
            flat[name] = f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)
    return flat
