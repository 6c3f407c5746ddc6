"""The last step of a run: decide, write the report, log to MLflow, register the winner, and promote it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.split.groups import SPLITS
from audioscore.data.split.sort import read_split
from audioscore.errors import GateRefused
from audioscore.evaluation.predict import PREDICTIONS
from audioscore.files import read_json, write_json
from audioscore.scoring.scorer import CANDIDATES
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.decide import RunDecision, RunFolders, champion_figures, decide_run
from audioscore.tracking.promotion import tag_and_promote
from audioscore.tracking.provenance import Provenance, provenance_table, version_tags
from audioscore.tracking.registry import describe_version, version_of
from audioscore.tracking.run_page import RESULT, write_page
from audioscore.tracking.runs import DatasetInput, dataset_name, delete_unregistered_runs, log_run, log_scorer

if TYPE_CHECKING:
    from audioscore.config import Config

log = logging.getLogger(__name__)


def register_winner(
    folders: RunFolders, target: Path, config: "Config", provenance: Provenance, tracking_uri: str, artifacts: Path
) -> dict[str, Any]:
    """Register a run's winner, and write result.json, report.html and model_card.md under `target`.

    A step that is repeated after an interruption registers nothing twice: it continues with the version that the
    first attempt registered.

    Args:
        artifacts: folder of MLflow's artifacts; used where the tracking store is a local database.

    Returns:
        The document that `audioscore run --json` prints.

    Raises:
        GateRefused: the champion changed while both were compared. The report then states it.
    """
    model = config.registry.model
    experiment = initialise(tracking_uri, model, artifacts)
    client = connect(tracking_uri)
    run = decide_run(folders, config, provenance, client, experiment, tracking_uri)
    result = _result(run, folders, provenance)
    facts = {
        "provenance": provenance_table(config, provenance, run.winner, run.champion),
        "data": _data_summary(folders, result["data"]),
        "decision": {**result["decision"], "winner": run.winner.plan, **run.decision.parts()},
        "validation": read_json(folders.validated / "validation.json"),
        "champion": champion_figures(run, folders, provenance, config),
    }
    files = [*write_page(target, folders.evaluation, run.plans, folders.data, facts), folders.evaluation / PREDICTIONS]
    if prior := run.prior.version:
        run_id, version = prior.run_id, prior.version
        log.info("%s was registered before the interruption and is used", prior.uri)
        for path in files:
            client.log_artifact(run_id, str(path))
    else:
        delete_unregistered_runs(client, experiment, model, provenance.run_id)
        dataset = dataset_of(folders.data, config, provenance, result["data"])
        figures = run.evaluation.figures["plans"]
        run_id = log_run(client, experiment, run.plans, figures, config, provenance, run.winner.plan, files, dataset)
        version = log_scorer(run.winner.scorer_folder(), run_id, model)
    tags = version_tags(
        run.winner, run.evaluation.figures["plans"][run.winner.plan], run.decision, run.champion, provenance,
        run.robustness,
    )  # fmt: skip
    try:
        tag_and_promote(client, model, version, run.decision, run.champion, tags, promoted=run.prior.promoted)
    except GateRefused as error:  # the report was written and logged for a promotion that did not happen
        facts["decision"] = {**facts["decision"], "promoted": False, "reason": str(error).rstrip(".")}
        for page in write_page(target, folders.evaluation, run.plans, folders.data, facts):
            client.log_artifact(run_id, str(page))
        raise
    result["registered"] = describe_version(version_of(client, model, version))
    write_json(target / RESULT, result)
    client.log_artifact(run_id, str(target / RESULT))
    return result


def dataset_of(data: Path, config: "Config", provenance: Provenance, counts: Mapping[str, Any]) -> DatasetInput:
    """Describe the run's data for MLflow; without a URI in the configuration, the run's own copy is named."""
    uri = config.data.uri or str(data)
    revisions = {"data_revision": provenance.data_revision, "code_revision": provenance.code_revision}
    return DatasetInput(dataset_name(uri), provenance.data_digest, uri, {**counts, **revisions})


def _result(run: RunDecision, folders: RunFolders, provenance: Provenance) -> dict[str, Any]:
    figures = run.evaluation.figures
    of_plans = figures["plans"]
    counts = {split: len(read_split(folders.index, split)) for split in SPLITS}
    validation = read_json(folders.validated / "validation.json")
    warnings = [*figures["warnings"]]
    if run.robustness and run.robustness.flagged:
        listed = ", ".join(run.robustness.flagged)
        warnings.append(f"{run.winner.plan}: robustness tests flagged {listed}. The report has the effects.")
    return {
        "run_id": provenance.run_id,
        "data": {
            "digest": provenance.data_digest,
            "clips": sum(counts.values()),
            **counts,
            "rejected": len(validation["rejected"]),
        },
        "plans": {trained.plan: of_plans[trained.plan] for trained in run.plans if trained.plan in CANDIDATES},
        "controls": {
            **figures["controls"],
            **{name: plan for name, plan in of_plans.items() if name not in CANDIDATES},
        },
        "comparison": figures["comparison"],
        "winner": run.winner.plan,
        "decision": run.decision.verdict(),
        "gate": run.decision.parts(),
        "variants": figures["variants"],
        "noise_ceiling": figures["noise_ceiling"],
        "warnings": warnings,
    }


def _data_summary(folders: RunFolders, counts: Mapping[str, Any]) -> dict[str, Any]:
    summary = {name: value for name, value in counts.items() if name != "digest"}
    report = read_json(folders.index / "split_report.json")
    song_share = f"{report['shared_song_share']:.0%} of the test clips whose song is known"
    return {**summary, "test clips with a song that is also in train": f"{report['shared_songs']} ({song_share})"}
