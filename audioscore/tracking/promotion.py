"""Promoting a version that is already registered: the gate once more, against the champion of today."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from audioscore.data.clips import Clip
from audioscore.encoders.store import FeatureStore
from audioscore.errors import GateRefused
from audioscore.evaluation.gate.decision import Decision
from audioscore.tracking.compare import JudgingData, judge
from audioscore.tracking.connection import connect, require_database
from audioscore.tracking.provenance import compared_with, note_judgement, refusing_probes_of
from audioscore.tracking.registry import (
    CHAMPION,
    ModelVersion,
    promote,
    scorer_folder,
    version_by_alias,
    version_of,
)

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection, RegistrySection


@dataclass(frozen=True)
class Judgement:
    """What came of it: the version, the champion it was compared with, and the gate's decision."""

    challenger: ModelVersion
    champion: ModelVersion | None
    decision: Decision

    def to_json(self) -> dict[str, Any]:
        """For `audioscore promote --json`."""
        return {
            "name": self.challenger.name,
            "version": self.challenger.version,
            "compared_with": compared_with(self.champion),
            "decision": self.decision.verdict(),
            "gate": self.decision.parts(),
        }


def promote_if_better(
    tracking_uri: str,
    name: str,
    version: int,
    judged_on: JudgingData,
    store: FeatureStore,
    registry: "RegistrySection",
    evaluation: "EvaluationSection",
) -> Judgement:
    """Score a version and the champion now, on the same test clips, and promote it where the gate lets it.

    Either way the version's `judged_` tags say what was found. Probes that failed at its evaluation refuse it still.
    Raises GateRefused where it is champion already, ModelError where there is no such version.
    """
    require_database(tracking_uri)
    client = connect(tracking_uri)
    challenger = version_of(client, name, version)
    champion = version_by_alias(client, name, CHAMPION)
    if champion is not None and champion.version == version:
        raise GateRefused(f"{challenger.uri} is the champion already.")
    clips: list[Clip] = [clip for _, clip in judged_on.clips("test")]
    decision = judge(
        scorer_folder(tracking_uri, challenger.uri),
        scorer_folder(tracking_uri, champion.uri) if champion else None,
        clips,
        judged_on.data,
        store,
        registry,
        evaluation,
        refusing_probes_of(challenger.tags, evaluation.probes.refuse),
    )
    if decision.promoted:
        try:
            promote(client, name, version, expected=champion.version if champion else None, why=decision.reason)
        except GateRefused as refusal:  # the champion moved while both were scored
            decision = replace(decision, promoted=False, reason=str(refusal).rstrip("."))
    note_judgement(client, name, version, decision, champion, judged_on.digest)
    return Judgement(version_of(client, name, version), champion, decision)
