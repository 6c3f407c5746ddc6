"""Promotion: the tags and aliases of a new version, and the gate for a version that is already registered."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from audioscore.encoders.store import FeatureStore
from audioscore.errors import AudioscoreError, GateRefused
from audioscore.evaluation.gate.decision import Decision
from audioscore.tracking.compare import EvaluationData, decide_on_unseen
from audioscore.tracking.connection import connect, require_database
from audioscore.tracking.provenance import compared_with, refusing_tests_of, tag_promotion_decision
from audioscore.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    promote,
    scorer_folder,
    version_by_alias,
    version_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from audioscore.config import EvaluationSection, RegistrySection

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromotionDecision:
    """The outcome of `audioscore promote`: the version, the champion it was compared with, and the gate's decision."""

    challenger: ModelVersion
    champion: ModelVersion | None
    decision: Decision

    def to_json(self) -> dict[str, Any]:
        """Return the document of `audioscore promote --json`."""
        return {
            "name": self.challenger.name,
            "version": self.challenger.version,
            "compared_with": compared_with(self.champion),
            "decision": self.decision.verdict(),
            "gate": self.decision.parts(),
        }


def tag_and_promote(
    client: "MlflowClient",
    name: str,
    version: int,
    decision: Decision,
    champion: ModelVersion | None,
    tags: Mapping[str, str],
    *,
    promoted: bool = False,
) -> None:
    """Tag a new version, then make it champion, or challenger where the gate refused it.

    Tags are written first, and `promoted` becomes true only after the promotion, so that an interruption leaves no
    false tag. With `promoted`, an interrupted attempt has promoted the version: the aliases stay as they are now, also
    after a rollback.

    Raises:
        GateRefused: the champion changed since the comparison.
        ModelError: the promotion lock is not available.
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
        except AudioscoreError as error:
            tag("decision", str(error))
            client.set_registered_model_alias(name, CHALLENGER, str(version))
            raise
        tag("promoted", "true")
    else:
        client.set_registered_model_alias(name, CHALLENGER, str(version))
    log.info("registered %s v%d as %s", name, version, CHAMPION if decision.promoted else CHALLENGER)


def promote_if_better(
    tracking_uri: str,
    name: str,
    version: int,
    data: EvaluationData,
    store: FeatureStore,
    registry: "RegistrySection",
    evaluation: "EvaluationSection",
) -> PromotionDecision:
    """Score a registered version and the champion now, on the same test clips, and promote it if the gate passes.

    The decision is written to the version's `judged_` tags in either case. Robustness tests that failed when the
    version was evaluated still refuse it.

    Raises:
        GateRefused: the version is champion already.
        ModelError: there is no such version.
    """
    require_database(tracking_uri)
    client = connect(tracking_uri)
    challenger = version_of(client, name, version)
    champion = version_by_alias(client, name, CHAMPION)
    if champion is not None and champion.version == version:
        raise GateRefused(f"{challenger.uri}: is the champion already. Choose another version.")
    decision = decide_on_unseen(
        scorer_folder(tracking_uri, challenger.uri),
        scorer_folder(tracking_uri, champion.uri) if champion else None,
        [clip for _, clip in data.clips("test")],
        data.data,
        store,
        registry,
        evaluation,
        refusing_tests_of(challenger.tags, evaluation.robustness.refuse),
    )
    if decision.promoted:
        try:
            promote(client, name, version, expected=champion.version if champion else None, why=decision.reason)
        except GateRefused as error:  # the champion changed while both were scored
            decision = replace(decision, promoted=False, reason=str(error).rstrip("."))
    tag_promotion_decision(client, name, version, decision, champion, data.digest)
    return PromotionDecision(version_of(client, name, version), champion, decision)
