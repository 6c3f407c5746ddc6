"""The last step: choose the winner, compare it with the champion on the same clips, log, register, report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.split.sort import read_split
from audioscore.data.versions.revision import folder_digest
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.errors import AudioscoreError, DataError, GateRefused
from audioscore.evaluation.gate.decision import CHAMPION as BESIDE
from audioscore.evaluation.gate.decision import Decision, beside_champion, choose_winner
from audioscore.evaluation.predict import PREDICTIONS, Evaluation, read_evaluation, validation_by_plan
from audioscore.evaluation.robustness.run import PROBES, failed, flagged, read_probes
from audioscore.files import read_json, write_json
from audioscore.scoring.scorer import CANDIDATES
from audioscore.scoring.trained_plan import TrainedPlan, read_trained
from audioscore.tracking.compare import JudgingData, judge, predict_scorers
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.provenance import NO_DVC, Probed, Provenance, provenance_table, version_tags
from audioscore.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    describe_version,
    promote,
    scorer_folder,
    version_of,
)
from audioscore.tracking.run_page import RESULT, write_page
from audioscore.tracking.runs import (
    PARAM_CHARACTERS,
    RUN_ID,
    SCORER,
    DatasetInput,
    dataset_name,
    flatten,
    forget_runs,
    log_dataset,
    log_plan,
    log_scorer,
    look,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from audioscore.config import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolders:
    """Where the steps before left their work."""

    data: Path
    validated: Path
    index: Path
    features: Path
    plans: tuple[Path, ...]
    evaluation: Path


def register_winner(
    folders: RunFolders,
    target: Path,
    config: "Config",
    provenance: Provenance,
    tracking_uri: str,
    artifacts: Path,
) -> dict[str, Any]:
    """Decide, log both plans, register the winner's scorer, and write result.json, report.html and
    model_card.md under `target`.

    Returns the document that `run --json` prints. The champion is re-scored now, on the test clips that neither model
    has seen. Tried again after it was broken off, it registers nothing twice, and ends what was begun.
    """
    plans = [read_trained(folder) for folder in folders.plans]
    evaluation = read_evaluation(folders.evaluation)
    winner_plan = choose_winner(validation_by_plan(plans, CANDIDATES))
    winner = next(trained for trained in plans if trained.plan == winner_plan)
    probed = _probed(folders.evaluation, winner_plan, config.evaluation.probes.refuse)
    experiment = initialise(tracking_uri, config.registry.model, artifacts)
    client = connect(tracking_uri)
    scorer_digest = folder_digest(winner.scorer_folder())
    before = look(client, experiment, config.registry.model, provenance.run_id, scorer_digest)
    champion = before.champion
    reigning = scorer_folder(tracking_uri, champion.uri) if champion else None
    decision = judge(
        winner.scorer_folder(),
        reigning,
        read_split(folders.index, "test"),
        folders.data,
        FeatureStore(read_extraction(folders.features).store),
        config.registry,
        config.evaluation,
        probed.refusing if probed else (),
    )
    if before.version and before.promoted and not decision.promoted:  # it was, whatever is found today
        reason = before.version.tags.get("decision", "promoted by an earlier try")
        decision = replace(decision, promoted=True, reason=reason)
    log.info("winner on validation: %s; %s", winner_plan, decision.reason)
    result = _result(plans, evaluation, winner_plan, decision, folders, provenance)
    if probed and probed.flagged:
        listed = ", ".join(probed.flagged)
        result["warnings"] += [f"The {winner_plan} is flagged by probes: {listed}. The report has the effects."]
    verdict = {**result["decision"], "winner": winner_plan, **decision.parts()}
    facts = provenance_table(config, provenance, winner, champion)
    told = {
        "provenance": facts,
        "data": _data_summary(folders, result["data"]),
        "decision": verdict,
        "validation": read_json(folders.validated / "validation.json"),
        "champion": _beside(reigning, plans, evaluation, folders, provenance, config),
    }
    pages = write_page(target, folders.evaluation, plans, folders.data, told)
    data = _dataset(folders, config, provenance, result["data"])
    files = [*pages, folders.evaluation / PREDICTIONS]
    tags = version_tags(winner, evaluation.figures["plans"][winner_plan], decision, champion, provenance, probed)
    if before.version:
        run, number = before.version.run_id, before.version.version
        log.info("an earlier try of this run registered %s; this one goes on from there", before.version.uri)
        for path in files:
            client.log_artifact(run, str(path))
    else:
        forget_runs(client, experiment, config.registry.model, provenance.run_id)
        run = _log_runs(client, experiment, plans, evaluation, config, provenance, winner_plan, files, data)
        number = log_scorer(winner.scorer_folder(), run, config.registry.model)
    try:
        _settle(client, config.registry.model, number, decision, champion, tags, promoted=before.promoted)
    except GateRefused as refusal:  # the pages were written, and logged, for a promotion that did not come
        told["decision"] = {**verdict, "promoted": False, "reason": str(refusal).rstrip(".")}
        for page in write_page(target, folders.evaluation, plans, folders.data, told):
            client.log_artifact(run, str(page))
        raise
    result["registered"] = describe_version(version_of(client, config.registry.model, number))
    write_json(target / RESULT, result)
    client.log_artifact(run, str(target / RESULT))
    return result


def _probed(evaluation: Path, plan: str, refuse: Sequence[str]) -> Probed | None:
    """What the probes said of a plan; None where they were left out."""
    if not (evaluation / PROBES).is_file():
        return None
    document = read_probes(evaluation)
    if document["reason"] is not None:
        return None
    of_plan = document["plans"][plan]
    return Probed(tuple(flagged(of_plan)), tuple(failed(of_plan, refuse)))


def _beside(
    reigning: Path | None,
    plans: Sequence[TrainedPlan],
    evaluation: Evaluation,
    folders: RunFolders,
    provenance: Provenance,
    config: "Config",
) -> dict[str, Any] | None:
    """Every figure of the champion and the plans on the clips that are new to all, or the reason why there are none;
    None where there is no champion.
    """
    if reigning is None:
        return None
    judged_on = JudgingData(folders.data, folders.index, provenance.data_digest)
    store = FeatureStore(read_extraction(folders.features).store)
    try:
        rows, _ = predict_scorers({BESIDE: reigning}, judged_on, "test", store)
        chosen: dict[str, int] = {trained.plan: trained.representative for trained in plans}
        return beside_champion(evaluation.predictions, chosen, rows, config.evaluation)
    except DataError as fault:
        log.warning("the page has no champion to compare with: %s", fault)
        return {"reason": str(fault)}


def _log_runs(
    client: "MlflowClient",
    experiment: str,
    plans: Sequence[TrainedPlan],
    evaluation: Evaluation,
    config: "Config",
    provenance: Provenance,
    winner: str,
    files: Sequence[Path],
    data: DatasetInput,
) -> str:
    """A parent run for the pipeline run and a child a plan; returns the winner's run id."""
    tags = {
        RUN_ID: provenance.run_id,
        "data_digest": provenance.data_digest,
        "dvc_rev": provenance.data_revision or NO_DVC,
        "code_rev": provenance.code_revision,
    }
    # Where the run runs is not in a step's settings.
    parameters = flatten(config.model_dump(mode="json", exclude={"containers", "cluster"}))
    parent = str(client.create_run(experiment, run_name=provenance.run_id, tags={**tags, "winner": winner}).info.run_id)
    log_dataset(client, parent, data)
    for name, value in parameters.items():
        client.log_param(parent, name, str(value)[:PARAM_CHARACTERS])
    for path in files:
        client.log_artifact(parent, str(path))
    runs: dict[str, str] = {
        trained.plan: log_plan(
            client,
            experiment,
            parent,
            trained,
            evaluation.figures["plans"][trained.plan],
            parameters,
            {**tags, SCORER: folder_digest(trained.scorer_folder())},
            files,
            data,
        )
        for trained in plans
    }
    client.set_terminated(parent)
    return runs[winner]


def _dataset(folders: RunFolders, config: "Config", provenance: Provenance, counts: Mapping[str, Any]) -> DatasetInput:
    """The run's data; where the configuration names no URI, its own copy stands for it."""
    uri = config.data.uri or str(folders.data)
    revisions = {"data_revision": provenance.data_revision, "code_revision": provenance.code_revision}
    return DatasetInput(dataset_name(uri), provenance.data_digest, uri, {**counts, **revisions})


def _settle(
    client: "MlflowClient",
    name: str,
    version: int,
    decision: Decision,
    champion: ModelVersion | None,
    tags: dict[str, str],
    *,
    promoted: bool = False,
) -> None:
    """Tag a version with its evidence, and make it champion, or challenger where the gate said no.

    The evidence comes first, and says that it is promoted only once it is: whatever ends this, no tag says too much.
    What an earlier try has `promoted` already keeps the aliases that it has by now, after a rollback too.
    """

    def tag(key: str, value: str) -> None:
        client.set_model_version_tag(name, str(version), key, value)

    for key, value in {**tags, "promoted": str(promoted).lower()}.items():
        tag(key, value)
    if promoted:
        return
    if decision.promoted:
        try:
            promote(client, name, version, expected=champion.version if champion else None, why=decision.reason)
        except AudioscoreError as refusal:  # the champion moved meanwhile, or the lock could not be had
            tag("decision", str(refusal))
            client.set_registered_model_alias(name, CHALLENGER, str(version))
            raise
        tag("promoted", "true")
    else:
        client.set_registered_model_alias(name, CHALLENGER, str(version))
    log.info("registered %s v%d as %s", name, version, CHAMPION if decision.promoted else CHALLENGER)


def _result(
    plans: Sequence[TrainedPlan],
    evaluation: Evaluation,
    winner: str,
    decision: Decision,
    folders: RunFolders,
    provenance: Provenance,
) -> dict[str, Any]:
    figures = evaluation.figures
    controls = {**figures["controls"]}
    controls |= {name: plan for name, plan in figures["plans"].items() if name not in CANDIDATES}
    counts = {split: len(read_split(folders.index, split)) for split in ("train", "val", "test")}
    validation = read_json(folders.validated / "validation.json")
    return {
        "run_id": provenance.run_id,
        "data": {
            "digest": provenance.data_digest,
            "clips": sum(counts.values()),
            **counts,
            "rejected": len(validation["rejected"]),
        },
        "plans": {trained.plan: figures["plans"][trained.plan] for trained in plans if trained.plan in CANDIDATES},
        "controls": controls,
        "comparison": figures["comparison"],
        "winner": winner,
        "decision": decision.verdict(),
        "gate": decision.parts(),
        "variants": figures["variants"],
        "noise_ceiling": figures["noise_ceiling"],
        "warnings": [*figures["warnings"]],
    }


def _data_summary(folders: RunFolders, counts: Mapping[str, Any]) -> dict[str, Any]:
    summary = {name: value for name, value in counts.items() if name != "digest"}
    report = read_json(folders.index / "split_report.json")
    song_share = f"{report['shared_song_share']:.0%} of the test clips whose song is known"
    return {**summary, "test clips with a song that is also in train": f"{report['shared_songs']} ({song_share})"}
