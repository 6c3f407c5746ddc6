"""Tags of a registered version: where it came from, how good it is, and why it is champion or not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from audioscore.errors import ModelError
from audioscore.evaluation.gate.decision import Decision
from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.trained_plan import TrainedPlan
from audioscore.tracking.registry import now

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from audioscore.config import Config
    from audioscore.tracking.registry import ModelVersion

NO_DVC = "not under DVC"
NO_CHAMPION = "none"
COMPARED_WITH = "compared_with"
ROBUSTNESS_TAG, NOT_RUN = "probes", "not run"
PROMOTE_TAG_PREFIX = "judged_"  # prefix of the tags that `audioscore promote` writes, promoted or not


@dataclass(frozen=True)
class RobustnessOutcome:
    """Names of the robustness tests that flag a model, and of those among them that refuse its promotion."""

    flagged: tuple[str, ...]
    refusing: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """Where a registered version came from."""

    run_id: str
    data_digest: str
    data_revision: str | None  # a git commit, or the md5 in the .dvc file beside the folder
    code_revision: str


def version_tags(
    winner: TrainedPlan,
    figures: Mapping[str, Any],
    decision: Decision,
    champion: "ModelVersion | None",
    provenance: Provenance,
    robustness: RobustnessOutcome | None,
) -> dict[str, str]:
    """Return the tags of a new version.

    Args:
        figures: the winner's test figures.
        robustness: None if the robustness tests did not run.
    """
    return {
        "plan": winner.plan,
        "run_id": provenance.run_id,
        "decision": decision.reason,
        "promoted": str(decision.promoted).lower(),
        "data_digest": provenance.data_digest,
        "dvc_rev": provenance.data_revision or NO_DVC,
        "code_rev": provenance.code_revision,
        "licence_of_weights": read_description(winner.scorer_folder()).licence,
        "test_spearman": interval_text(figures["spearman"]),
        "test_spearman_within_source": interval_text(figures["spearman_within_source"]),
        COMPARED_WITH: compared_with(champion),
        ROBUSTNESS_TAG: NOT_RUN if robustness is None else json.dumps(asdict(robustness)),
    }


def refusing_tests_of(tags: Mapping[str, str], refuse: Sequence[str] = ()) -> list[str]:
    """Return the robustness tests that refuse a version: those of its evaluation, and flagged ones named in `refuse`.

    A version without robustness tests is refused by every test named in `refuse`. Raises ModelError if the tag is not
    valid.

    >>> tags = {"probes": '{"flagged": ["clipping", "low_pass"], "refusing": ["clipping"]}'}
    >>> refusing_tests_of(tags), refusing_tests_of(tags, ["low_pass", "gain_up"])
    (['clipping'], ['clipping', 'low_pass'])
    >>> refusing_tests_of({"probes": "not run"}), refusing_tests_of({}, ["low_pass"])
    ([], ['low_pass'])
    """
    tag = tags.get(ROBUSTNESS_TAG, NOT_RUN)
    if tag == NOT_RUN:
        return list(refuse)
    try:
        found = json.loads(tag)
        flagged_now = [str(name) for name in found["flagged"] if name in refuse]
        return list(dict.fromkeys([*map(str, found["refusing"]), *flagged_now]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"tag {ROBUSTNESS_TAG} of the version: {tag!r} is not a valid list of tests. Correct it."
        ) from error


def tag_promotion_decision(
    client: "MlflowClient", name: str, version: int, decision: Decision, champion: "ModelVersion | None", digest: str
) -> None:
    """Tag a version with the decision of `audioscore promote`; the tags of its registration stay."""
    tags = {
        "at": now(),
        "decision": decision.reason,
        "promoted": str(decision.promoted).lower(),
        "data_digest": digest,
        COMPARED_WITH: compared_with(champion),
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), f"{PROMOTE_TAG_PREFIX}{key}", value)


def compared_with(champion: "ModelVersion | None") -> str:
    """Return the tag value that names the champion of a comparison."""
    return f"v{champion.version}" if champion else NO_CHAMPION


def interval_text(figure: Mapping[str, Any]) -> str:
    """Format an estimate as a tag value.

    >>> interval_text({"value": 0.5, "lo": 0.25, "hi": 0.75})
    '0.500 (0.250 to 0.750)'
    """
    if figure["value"] is None:
        return "undefined"
    if figure["lo"] is None:
        return f"{figure['value']:.3f} (no interval)"
    return f"{figure['value']:.3f} ({figure['lo']:.3f} to {figure['hi']:.3f})"


def provenance_table(
    config: "Config", provenance: Provenance, winner: TrainedPlan, champion: "ModelVersion | None"
) -> dict[str, Any]:
    """Return the provenance table of the report."""
    description = read_description(winner.scorer_folder())
    table = {
        **{name.replace("_", " "): value or NO_DVC for name, value in asdict(provenance).items()},
        "registered model": config.registry.model,
        "compared with": f"v{champion.version}" if champion else "no champion yet",
        "started from": description.training.get("init", "scratch"),
        "licence of the weights": description.licence,
    }
    for kind, reference in description.encoders.items():
        source = reference.id or "embedded in the scorer"
        table[f"encoder {kind}"] = f"{source}, sha256 {reference.sha256[:16]}"
    return table
