"""The report and model card of a run: rendered when it registers, and again later from its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audioscore.errors import ModelError, UsageError
from audioscore.evaluation.predict import Evaluation, read_evaluation
from audioscore.evaluation.report.model_card import MODEL_CARD, render_model_card
from audioscore.evaluation.report.page import Curves, render_report
from audioscore.evaluation.robustness.run import ROBUSTNESS_FILE, read_robustness
from audioscore.files import read_json, write_json, write_text
from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.trained_plan import PLAN_FILE, TrainedPlan, read_trained
from audioscore.tracking.connection import connect

REPORT, RESULT, PAGE = "report.html", "result.json", "page.json"


def write_page(
    target: Path, evaluation: Path, plans: Sequence[TrainedPlan], recordings: Path, facts: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write report.html, model_card.md, and page.json (the facts that no other file of the run holds) under `target`.

    Args:
        evaluation: folder of an evaluation.
        recordings: data folder.
        facts: `provenance`, `data`, `decision` (the gate's, with the `winner`), `validation` (the data gate's document)
            and `champion` (the champion's figures on the same clips, or None).
    """
    write_json(target / PAGE, facts)
    return _render(
        target / REPORT, read_evaluation(evaluation), plans, recordings, evaluation, read_json(target / PAGE)
    )


def page_of(run: Path) -> Path:
    """Return the report of a finished run. Raises UsageError if the run did not finish."""
    if not run.is_dir():
        raise UsageError(f"{run}: no such run. Pass its id, as `audioscore models --json` prints it, or its folder.")
    if not (run / REPORT).is_file():
        raise UsageError(f"{run}: no {REPORT}, since the run did not finish. See its logs in {run / 'logs'}.")
    return run / REPORT


def render_again(run: Path) -> Path:
    """Render a finished run's report with the current code. Raises UsageError if files of its steps are missing."""
    page = page_of(run)
    outputs = ("evaluate-scorers/evaluation", f"register-winner/outcome/{PAGE}", "fetch-data/data")
    evaluations, facts, recordings = (sorted(run.glob(f"steps/*/{output}")) for output in outputs)
    plans = sorted(path.parent for path in run.glob(f"steps/*/**/train-scorer/*/{PLAN_FILE}"))
    if not len(evaluations) == len(facts) == len(recordings) == 1 or not plans:
        raise UsageError(f"{run}: files of its steps are missing or of an older version. Run the pipeline again.")
    evaluation, trained = read_evaluation(evaluations[0]), [read_trained(plan) for plan in plans]
    return _render(page, evaluation, trained, recordings[0], evaluations[0], read_json(facts[0]))[0]


def _render(
    page: Path,
    evaluation: Evaluation,
    plans: Sequence[TrainedPlan],
    recordings: Path,
    robustness: Path,
    facts: Mapping[str, Any],
) -> tuple[Path, Path]:
    """Render report and model card; `robustness` is the folder that may hold the robustness tests."""
    tests = read_robustness(robustness) if (robustness / ROBUSTNESS_FILE).is_file() else None
    found = {"robustness": tests, "validation": facts["validation"]}
    provenance, decision = facts["provenance"], facts["decision"]
    figures, rows = evaluation.figures, evaluation.predictions
    curves: Curves = {trained.plan: trained.curves for trained in plans}
    text = render_report(
        figures, rows, curves, provenance, facts["data"], decision, champion=facts["champion"], recordings=recordings,
        **found,
    )  # fmt: skip
    winner = next(trained for trained in plans if trained.plan == decision["winner"])
    described = read_description(winner.scorer_folder())
    card = page.with_name(MODEL_CARD)
    described_card = render_model_card(figures, rows, described, provenance, decision, **found)
    write_text(card, described_card, errors="backslashreplace")
    write_text(page, text, errors="backslashreplace")
    return page, card


def fetch_outcome(tracking_uri: str, run_id: str, target: Path) -> dict[str, Any]:
    """Download result.json, report and model card of a pipeline run to `target`. Returns the result.

    Raises:
        ModelError: the server has no result of the run `run_id`.
    """
    import mlflow

    client = connect(tracking_uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    for run in client.search_runs(experiments, f"tags.run_id = '{run_id}'"):
        names = [found.path for found in client.list_artifacts(run.info.run_id)]
        if RESULT not in names:
            continue
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name == RESULT or name.endswith((".html", ".md")):
                mlflow.artifacts.download_artifacts(
                    run_id=run.info.run_id, artifact_path=name, dst_path=str(target), tracking_uri=tracking_uri
                )
        result: dict[str, Any] = read_json(target / RESULT)
        return result
    raise ModelError(f"{tracking_uri}: no result of run {run_id}. Check the log of the run's last step.")
