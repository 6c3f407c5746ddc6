"""Decide a run: which plan wins on validation, and whether it is better than the champion on the same test clips."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.split.sort import read_split
from audioscore.data.versions.revision import folder_digest
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError
from audioscore.evaluation.gate.decision import CHAMPION, Decision, compare_with_champion
from audioscore.evaluation.predict import Evaluation, read_evaluation
from audioscore.evaluation.robustness.run import ROBUSTNESS_FILE, failed, flagged, read_robustness
from audioscore.scoring.trained_plan import TrainedPlan, read_trained
from audioscore.tracking.compare import EvaluationData, decide_on_unseen, predict_scorers
from audioscore.tracking.provenance import Provenance, RobustnessOutcome
from audioscore.tracking.registry import ModelVersion, scorer_folder
from audioscore.tracking.runs import PriorRegistration, find_prior_registration

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from audioscore.config import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolders:
    """The outputs of a run's earlier steps."""

    data: Path
    validated: Path
    index: Path
    features: Path
    plans: tuple[Path, ...]
    evaluation: Path

    @property
    def store(self) -> FeatureStore:
        """The feature store that the extraction step filled."""
        return FeatureStore(read_extraction(self.features).store)


@dataclass(frozen=True)
class RunDecision:
    """A decided run: everything that logging, the report and the promotion need.

    `robustness` is None where the robustness tests did not run; `champion_folder` where there is no champion.
    """

    plans: list[TrainedPlan]
    evaluation: Evaluation
    winner: TrainedPlan
    robustness: RobustnessOutcome | None
    prior: PriorRegistration
    champion_folder: Path | None
    decision: Decision

    @property
    def champion(self) -> ModelVersion | None:
        """The version that the winner was compared with."""
        return self.prior.champion


def decide_run(
    folders: RunFolders,
    config: "Config",
    provenance: Provenance,
    client: "MlflowClient",
    experiment: str,
    tracking_uri: str,
) -> RunDecision:
    """Choose the winner and compare it with the champion, which is scored again now, on clips that neither has seen.

    A run that was interrupted after its promotion stays promoted, whatever the comparison finds when it is repeated.
    """
    plans = [read_trained(folder) for folder in folders.plans]
    evaluation = read_evaluation(folders.evaluation)
    chosen = evaluation.figures.get("winner")
    if chosen is None:
        raise DataError(
            "Winner: the evaluation has none, because no candidate ranks the clips or an earlier version wrote it. "
            "Check the training curves, or evaluate again."
        )
    winner_plan = chosen["plan"]
    winner = next(trained for trained in plans if trained.plan == winner_plan)
    robustness = robustness_outcome(folders.evaluation, winner_plan, config.evaluation.robustness.refuse)
    prior = find_prior_registration(
        client, experiment, config.registry.model, provenance.run_id, folder_digest(winner.scorer_folder())
    )
    champion_folder = scorer_folder(tracking_uri, prior.champion.uri) if prior.champion else None
    decision = decide_on_unseen(
        winner.scorer_folder(),
        champion_folder,
        read_split(folders.index, "test"),
        folders.data,
        folders.store,
        config.registry,
        config.evaluation,
        robustness.refusing if robustness else (),
    )
    if prior.version and prior.promoted and not decision.promoted:
        reason = prior.version.tags.get("decision", "promoted before the step was repeated")
        decision = replace(decision, promoted=True, reason=reason)
    log.info("winner: %s; %s", chosen["reason"], decision.reason)
    return RunDecision(plans, evaluation, winner, robustness, prior, champion_folder, decision)


def robustness_outcome(evaluation: Path, plan: str, refuse: Sequence[str]) -> RobustnessOutcome | None:
    """Read a plan's robustness tests from the evaluation folder; None where they did not run."""
    if not (evaluation / ROBUSTNESS_FILE).is_file():
        return None
    document = read_robustness(evaluation)
    if document["reason"] is not None:
        return None
    of_plan = document["plans"][plan]
    return RobustnessOutcome(tuple(flagged(of_plan)), tuple(failed(of_plan, refuse)))


def champion_figures(
    run: RunDecision, folders: RunFolders, provenance: Provenance, config: "Config"
) -> dict[str, Any] | None:
    """Evaluate champion and plans on the test clips that are new to all of them, for the report.

    Returns None where there is no champion, and `{"reason": …}` where too few clips are left.
    """
    if run.champion_folder is None:
        return None
    data = EvaluationData(folders.data, folders.index, provenance.data_digest)
    try:
        rows, _ = predict_scorers({CHAMPION: run.champion_folder}, data, "test", folders.store)
        chosen: dict[str, int] = {trained.plan: trained.representative for trained in run.plans}
        return compare_with_champion(run.evaluation.predictions, chosen, rows, config.evaluation)
    except DataError as error:
        log.warning("the report has no comparison with the champion: %s", error)
        return {"reason": str(error)}
