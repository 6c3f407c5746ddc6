"""The model card of a run's winner, in Markdown, with values that are all in the report.

Source: Mitchell et al., Model Cards for Model Reporting, 2019 (headings).
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from audioscore.evaluation.evaluate import BASELINE, HYBRID
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report.page import SOURCE_HEADERS, flat, lead_text, sources_of
from audioscore.evaluation.report.tables import METRIC_TITLES, NOT_MEASURED, SIGNED, UNITS, figure_text, plan_title

if TYPE_CHECKING:
    from audioscore.scoring.scorer import Description

MODEL_CARD = "model_card.md"
NON_COMMERCIAL = "-NC"  # in the name of a licence
FEATURES = {"muq": "MuQ features (music and singing)", "campplus": "CAM++ features (voice timbre)"}
TUNED = {"frozen": "frozen", "lora": "fine-tuned with low-rank adapters", "full": "fully fine-tuned"}


def render_model_card(
    evaluation: Mapping[str, Any],
    predictions: Sequence[Prediction],
    description: "Description",
    provenance: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
    *,
    robustness: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
) -> str:
    """Render the card of the scorer that `description` describes; its plan must be in the evaluation.

    The other arguments are those of `render_report`. Names from the data are escaped.
    """
    plan = description.plan
    name = str(provenance.get("registered model", "audioscore"))
    sections = {
        "Model": _model(description),
        "Intended use and limits": _use(description, predictions, robustness),
        "Training data": _data(description, predictions, validation),
        "Evaluation": _evaluation(evaluation, plan, decision),
        "Robustness and warnings": _robustness(plan, robustness, evaluation["warnings"]),
        "Calibration": _calibration(description, evaluation["plans"][plan]),
        "Licence": _licence(description),
        "Provenance": _list(f"{_text(key)}: {_text(value)}" for key, value in flat(provenance).items()),
        "Usage": _loading(name),
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    return f"# {_text(name)}: {plan_title(plan)}\n\n{body}\n"


def _text(value: Any) -> str:
    """Escape a text for Markdown.

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


def _model(description: "Description") -> str:
    kinds = [FEATURES.get(kind, kind) for kind in description.encoders]
    tuning = TUNED[description.tuning.mode] if description.tuning else "frozen"
    muq = f"; MuQ is {tuning}" if "muq" in description.encoders else ""
    return (
        f"A scorer of recorded singing from {' and '.join(kinds)}{muq}. The head "
        f"({_text(description.head.get('kind', 'light'))}) was trained on recordings with human scores. Its output is "
        "calibrated to their scale (0-100, higher is better); every score has a prediction interval. This is seed "
        f"{description.seed}, {_selection(description)}."
    )


def _selection(description: "Description") -> str:
    if folds := description.training.get("folds"):
        epochs = description.training["best_epoch"]
        return f"trained for {epochs} epochs, as many as were best in a cross-validation with {folds} folds"
    return "the best of its plan on validation"


def _use(description: "Description", predictions: Sequence[Prediction], robustness: Mapping[str, Any] | None) -> str:
    sources = ", ".join(_text(row[0]) for row in sources_of(predictions))
    lines = [
        f"Intended use: scoring and ranking recordings of one singer from the sources it was trained on ({sources}).",
        "Not validated for other sources, microphones or processing.",
        "Not for decisions about people without human review.",
        "Recordings that are too short, silent or clipped are rejected.",
        "The scores reproduce the taste and the errors of the raters.",
    ]
    tests = {} if robustness is None else robustness["plans"].get(description.plan, {}).get("degradations", {})
    if flags := [_text(one["title"]) for one in tests.values() if one["flagged"]]:
        lines.append(f"Flagged by robustness tests: {'; '.join(flags)}.")
    if NON_COMMERCIAL in description.licence:
        lines.append(f"Not for commercial use: the licence of its weights is {_text(description.licence)}.")
    return _list(lines)


def _data(description: "Description", predictions: Sequence[Prediction], validation: Mapping[str, Any] | None) -> str:
    lines = [
        f"Digest: `{_text(description.data_digest)}`",
        f"Trained, selected and calibrated on {len(description.seen_clips)} recordings, listed in `scorer.json`.",
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
    """Show metrics overall, within source and by slice, with the other plan, the controls and the noise ceiling."""
    figures, counts = evaluation["plans"][plan], evaluation["counts"]
    inside = figures["within_source"]
    metrics = [metric for metric in METRIC_TITLES if metric in inside]
    overall = [[METRIC_TITLES[m].removesuffix(" overall"), _metric(figures, m), _metric(inside, m)] for m in metrics]
    basis = (
        f"{counts['clips']} test clips of {counts['singers']} singers, who are not in the training data (as far as "
        f"singers are known). Brackets: {evaluation['confidence']:.0%} interval (bootstrap by "
        f"{evaluation['clusters']}, {evaluation['resamples']} resamples). Overall values also reward separating the "
        "sources; values within source do not."
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
            basis,
            _table(["", "overall", "within source"], overall),
            _table(["slice", "clips", "Spearman", "MAE", "bias"], slices),
            _table(["human score", "precision", "recall"], top),
            _references(evaluation),
        ]
    )


def _references(evaluation: Mapping[str, Any]) -> str:
    """List the values to compare with: the other plan, the controls and the noise ceiling."""
    lines = []
    if comparison := evaluation["comparison"]:
        overall = figure_text(comparison, name="delta", sign="+")
        within = figure_text(comparison["within_source"], name="delta", sign="+")
        pair = f"{plan_title(HYBRID)} minus {plan_title(BASELINE)}"
        lines.append(f"{pair}: Spearman {overall}; within source {within}.")
    for name, control in evaluation["controls"].items():
        if control["spearman"]["value"] is not None:
            within = _metric(control, "spearman_within_source")
            lines.append(f"Control {_text(name)}: Spearman {_metric(control, 'spearman')}; within source {within}.")
    ceiling = evaluation["noise_ceiling"]
    if ceiling["clips"]:
        inside = figure_text(ceiling["within_source"])
        lines.append(f"Noise ceiling: {figure_text(ceiling['overall'])}; within source {inside}.")
    return _list(lines)


def _robustness(plan: str, robustness: Mapping[str, Any] | None, warnings: Sequence[str]) -> str:
    """Show the robustness tests and the domain probe, and the warnings of the evaluation."""
    parts = [_list(map(_text, warnings))] if warnings else []
    of_plan = None if robustness is None else robustness["plans"].get(plan)
    if of_plan is None:
        return "\n\n".join(["No robustness tests.", *parts])
    rows = [
        [_text(one["title"]), one["expected"], figure_text(one["effect"], "points", sign="+"),
         figure_text(one.get("in_order", NOT_MEASURED), "share"), figure_text(one["violations"], "share"),
         "flagged" if one["flagged"] else "passed"]
        for one in of_plan["degradations"].values()
    ]  # fmt: skip
    if rows:
        parts.append(
            _table(["degradation", "expected score", "effect, points", "in order", "violations", "verdict"], rows)
        )
    else:
        parts.append("No robustness tests.")
    domain = of_plan["domain"]
    if domain["balanced_accuracy"] is None:
        parts.append(f"Domain probe: undefined: {_text(domain['reason'])}.")
    else:
        accuracy, chance = figure_text(domain["balanced_accuracy"]), f"{domain['chance']:.3f}"
        parts.append(f"Domain probe within score bands: balanced accuracy {accuracy}, chance {chance}.")
    return "\n\n".join(parts)


def _calibration(description: "Description", figures: Mapping[str, Any]) -> str:
    coverage = figures["coverage"]
    return (
        f"Raw outputs are mapped to scores by a monotone function with {len(description.calibration.raw)} knots, "
        f"fitted on clips that it was not trained on. The prediction interval is conformal, with a nominal coverage of "
        f"{description.calibration.coverage:.0%}. Its coverage on {coverage['clips']} test clips is "
        f"{figure_text(coverage, 'share', 'share')}."
    )


def _licence(description: "Description") -> str:
    lines = [f"Weights of the scorer: {_text(description.licence)} (the licences of its encoders)."]
    for kind, reference in description.encoders.items():
        name = reference.id or "embedded in the scorer"
        lines.append(f"{kind}: {_text(name)}, {_text(reference.licence)}, sha256 `{reference.sha256}`")
    if "unknown" in description.licence:
        lines.append("Unknown licence: ask the authors of the weights before using them.")
    return _list(lines)


def _loading(name: str) -> str:
    return f"""From a scorer's folder:

```python
from pathlib import Path

from audioscore.scoring.checkpoint import load_scorer

result = load_scorer(Path("scorer")).score("recording.m4a")
print(result.score, result.interval)
```

From the registry:

```python
import mlflow
import pandas

model = mlflow.pyfunc.load_model("models:/{name}@champion")
model.predict(pandas.DataFrame({{"audio": [open("recording.m4a", "rb").read()]}}))
```"""
