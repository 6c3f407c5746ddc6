"""The model card of a run's winner, in Markdown: what it is, what it is for, what is known of it, and what is not.

It stands beside the report, is made from the same inputs, and holds no figure that the report does not have.
Source of the headings: Mitchell et al., Model Cards for Model Reporting, 2019.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from audioscore.evaluation.evaluate import BASELINE, HYBRID
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report.decision import METRIC_TITLES, SIGNED, UNITS, figure_text, lead_text, plan_title
from audioscore.evaluation.report.page import SOURCE_HEADERS, flat, sources_of

if TYPE_CHECKING:
    from audioscore.scoring.scorer import Description

MODEL_CARD = "model_card.md"
NON_COMMERCIAL = "-NC"  # in a licence's name: its weights, and what is made from them, may not be sold
HEARS = {"muq": "MuQ (features of the music and the singing)", "campplus": "CAM++ (the timbre of the voice)"}
TUNED = {"frozen": "frozen", "lora": "tuned by low-rank adapters", "full": "tuned whole"}


def render_model_card(
    evaluation: Mapping[str, Any],
    predictions: Sequence[Prediction],
    description: "Description",
    provenance: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
    *,
    probes: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
) -> str:
    """The card of the scorer that `description` describes, whose plan is one of the evaluation's.

    The other arguments are those of `render_report`. Names from the data are escaped.
    """
    plan = description.plan
    name = str(provenance.get("registered model", "audioscore"))
    sections = {
        "What it is": _what(description),
        "Intended use and limits": _use(description, predictions, probes),
        "Training data": _data(description, predictions, validation),
        "Evaluation": _evaluation(evaluation, plan, decision),
        "Probes and known faults": _probes(plan, probes, evaluation["warnings"]),
        "Calibration": _calibration(description, evaluation["plans"][plan]),
        "Licence": _licence(description),
        "Provenance": _list(f"{_text(key)}: {_text(value)}" for key, value in flat(provenance).items()),
        "How to load it": _loading(name),
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    return f"# {_text(name)}: {plan_title(plan)}\n\n{body}\n"


def _text(value: Any) -> str:
    """A name from the data as plain Markdown.

    >>> _text("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    plain = html.escape(" ".join(str(value).split()), quote=False)
    for sign in "\\`*[]|":
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "Nothing was recorded."


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _what(description: "Description") -> str:
    kinds = [HEARS.get(kind, kind) for kind in description.encoders]
    tuning = TUNED[description.tuning.mode] if description.tuning else "frozen"
    return (
        f"A scorer of recorded singing. It hears {' and '.join(kinds)}; MuQ, where it is heard, is {tuning}. The head "
        f"({_text(description.head.get('kind', 'light'))}) was trained on pairs of recordings that people scored, and "
        "its output is mapped to the 0-100 scale of their labels: higher is better. Every score comes with an "
        f"interval. This is seed {description.seed}, the one of its plan that did best on validation."
    )


def _use(description: "Description", predictions: Sequence[Prediction], probes: Mapping[str, Any] | None) -> str:
    known = ", ".join(_text(row[0]) for row in sources_of(predictions))
    lines = [
        f"For: ranking and scoring recordings of one singer from the sources it was trained on ({known}).",
        "Not for: recordings from other sources, microphones or processing, which nothing here says anything about.",
        "Not for: decisions about a person that no person looks at.",
        "It is refused what is too short, silent or clipped to be judged.",
        "It repeats the judgement of those who labelled, their taste and their mistakes included.",
    ]
    if flags := _flags(description.plan, probes):
        lines.append(
            f"It was caught rewarding faults, or hearing what should not matter: {'; '.join(flags)}. See below."
        )
    if NON_COMMERCIAL in description.licence:
        lines.append(f"Not for commercial use: its weights are under {_text(description.licence)}.")
    return _list(lines)


def _data(description: "Description", predictions: Sequence[Prediction], validation: Mapping[str, Any] | None) -> str:
    lines = [
        f"Digest: `{_text(description.data_digest)}`",
        f"Fitted, selected or calibrated on {len(description.seen_clips)} recordings, listed in `scorer.json`.",
    ]
    if validation is not None:
        lines.append(
            f"The data gate accepted {validation['accepted']} of {validation['clips']} rows and rejected "
            f"{len(validation['rejected'])}."
        )
    rows = [[_text(row[0]), *row[1:]] for row in sources_of(predictions)]
    return f"{_list(lines)}\n\n{_table(SOURCE_HEADERS, rows)}"


def _metric(figures: Mapping[str, Any], metric: str) -> str:
    return figure_text(figures[metric], UNITS.get(metric, "ratio"), sign="+" if metric in SIGNED else "")


def _evaluation(evaluation: Mapping[str, Any], plan: str, decision: Mapping[str, Any] | None) -> str:
    """Overall and within source, by slice, beside the other plan, the controls and the raters' ceiling."""
    figures, counts = evaluation["plans"][plan], evaluation["counts"]
    inside = figures["within_source"]
    metrics = [metric for metric in METRIC_TITLES if metric in inside]
    overall = [[METRIC_TITLES[m].removesuffix(" overall"), _metric(figures, m), _metric(inside, m)] for m in metrics]
    said = (
        f"On {counts['clips']} test clips of {counts['singers']} singers, none of them in its training data as far as "
        f"singers are known. Brackets hold {evaluation['confidence']:.0%} intervals from {evaluation['resamples']} "
        f"bootstrap resamples of whole {evaluation['clusters']}s. Within source is the figure to trust: overall, "
        "telling the recording domains apart is rewarded."
    )
    slices = [
        [f"{kind} {_text(name)}", str(one["clips"]), *(_metric(one, metric) for metric in ("spearman", "mae", "bias"))]
        for kind, key in (("source", "per_source"), ("score", "per_band"))
        for name, one in figures[key].items()
    ]
    top = [
        [f"{name} or above", *(figure_text(one[key], "share") for key in ("precision", "recall"))]
        for name, one in figures["at_or_above"].items()
    ]
    return "\n\n".join(
        [
            _text(lead_text(decision)[0]),
            said,
            _table(["", "overall", "within source"], overall),
            _table(["slice", "clips", "Spearman", "MAE", "bias"], slices),
            _table(["human score", "precision", "recall"], top),
            _beside(evaluation),
        ]
    )


def _beside(evaluation: Mapping[str, Any]) -> str:
    """What the figures have to be compared with."""
    lines = []
    if comparison := evaluation["comparison"]:
        overall = figure_text(comparison, name="delta", sign="+")
        within = figure_text(comparison["within_source"], name="delta", sign="+")
        pair = f"{plan_title(HYBRID)} minus {plan_title(BASELINE)}"
        lines.append(f"{pair}: Spearman {overall}; within source {within}.")
    for name, control in evaluation["controls"].items():
        if control["spearman"]["value"] is not None:
            within = _metric(control, "spearman_within_source")
            lines.append(f"{_text(name)} alone: Spearman {_metric(control, 'spearman')}; within source {within}.")
    ceiling = evaluation["noise_ceiling"]
    if ceiling["clips"]:
        inside = figure_text(ceiling["within_source"])
        lines.append(f"Noise ceiling of the raters: {figure_text(ceiling['overall'])}; within source {inside}.")
    return _list(lines)


def _flags(plan: str, probes: Mapping[str, Any] | None) -> list[str]:
    found = {} if probes is None else probes["plans"].get(plan, {}).get("degradations", {})
    return [_text(one["title"]) for one in found.values() if one["flagged"]]


def _probes(plan: str, probes: Mapping[str, Any] | None, warnings: Sequence[str]) -> str:
    """What degraded recordings did to its scores, and what a reader of the figures must know."""
    parts = [_list(map(_text, warnings))] if warnings else []
    of_plan = None if probes is None else probes["plans"].get(plan)
    if probes is None or of_plan is None:
        return "\n\n".join(["No probe was run: it is not known what faults do to its scores.", *parts])
    rows = [
        [_text(one["title"]), one["expected"], figure_text(one["effect"], "points", sign="+"),
         figure_text(one["violations"], "share"), "flagged" if one["flagged"] else "not flagged"]
        for one in of_plan["degradations"].values()
    ]  # fmt: skip
    if rows:
        parts.append(_table(["change", "score should be", "effect, points", "violations", "verdict"], rows))
    else:
        parts.append("No recording was degraded: it is not known what faults do to its scores.")
    domain = of_plan["domain"]
    if domain["balanced_accuracy"] is None:
        parts.append(f"How much of the recording domain it knows was not asked: {_text(domain['reason'])}.")
    else:
        accuracy = figure_text(domain["balanced_accuracy"])
        parts.append(f"Recording domain, read off what it knows within a band of scores: balanced accuracy {accuracy}.")
    return "\n\n".join(parts)


def _calibration(description: "Description", figures: Mapping[str, Any]) -> str:
    coverage = figures["coverage"]
    return (
        f"Raw outputs are mapped to scores by a monotone map through {len(description.calibration.raw)} knots, fitted "
        "on validation clips, which changes no order. The interval is split-conformal, from residuals of singers that "
        f"the map had not seen, meant to hold {description.calibration.coverage:.0%} of human scores. On the test "
        f"clips it holds {figure_text(coverage, 'share', 'share')} of {coverage['clips']}."
    )


def _licence(description: "Description") -> str:
    lines = [f"Weights of the scorer: {_text(description.licence)}, those of the encoders it was made from."]
    for kind, reference in description.encoders.items():
        where = reference.id or "embedded in the scorer"
        lines.append(f"{kind}: {_text(where)}, {_text(reference.licence)}, sha256 `{reference.sha256}`")
    if "unknown" in description.licence:
        lines.append("Unknown means that nothing may be assumed: ask whoever made those weights.")
    return _list(lines)


def _loading(name: str) -> str:
    return f"""From a scorer's folder:

```python
from pathlib import Path

from audioscore.scoring.checkpoint import load_scorer

answer = load_scorer(Path("scorer")).score("take.m4a")
print(answer.score, answer.interval)
```

From the registry, where only the pinned requirements are installed:

```python
import mlflow
import pandas

model = mlflow.pyfunc.load_model("models:/{name}@champion")
model.predict(pandas.DataFrame({{"audio": [open("take.m4a", "rb").read()]}}))
```"""
