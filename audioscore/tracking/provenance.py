"""What a registered version says of itself: where it came from, how good it is, and why it is champion or not."""

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
PROBES, NOT_RUN = "probes", "not run"
JUDGED = "judged_"  # begins the tags that each `audioscore promote` leaves, refused or not


@dataclass(frozen=True)
class Probed:
    """Names of the probes that a model is flagged by, and of those among them that refuse it."""

    flagged: tuple[str, ...]
    refusing: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What a registered version says of where it came from."""

    run_id: str
    data_digest: str
    data_revision: str | None  # the git commit it came from, or the md5 in the .dvc file beside the folder
    code_revision: str


def version_tags(
    winner: TrainedPlan,
    figures: Mapping[str, Any],
    decision: Decision,
    champion: "ModelVersion | None",
    provenance: Provenance,
    probed: Probed | None,
) -> dict[str, str]:
    """The tags of a new version.

    `figures` are the winner's, of the evaluation; with `probed` None, no probe was run.
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
        PROBES: NOT_RUN if probed is None else json.dumps(asdict(probed)),
    }


def refusing_probes_of(tags: Mapping[str, str], refuse: Sequence[str] = ()) -> list[str]:
    """The probes that refuse a version: those that did when it was evaluated, and those that flagged it of `refuse`.

    Of a version that no probe was asked about, every one of `refuse` does. Raises ModelError where the tags cannot be
    read.

    >>> said = {"probes": '{"flagged": ["clipping", "low_pass"], "refusing": ["clipping"]}'}
    >>> refusing_probes_of(said), refusing_probes_of(said, ["low_pass", "gain_up"])
    (['clipping'], ['clipping', 'low_pass'])
    >>> refusing_probes_of({"probes": "not run"}), refusing_probes_of({}, ["low_pass"])
    ([], ['low_pass'])
    """
    said = tags.get(PROBES, NOT_RUN)
    if said == NOT_RUN:
        return list(refuse)
    try:
        found = json.loads(said)
        now_refusing = [str(name) for name in found["flagged"] if name in refuse]
        return list(dict.fromkeys([*map(str, found["refusing"]), *now_refusing]))
    except (ValueError, KeyError, TypeError) as fault:
        raise ModelError(f"the version's tag {PROBES} is {said!r}, which names no refusing probes. Mend it.") from fault


def note_judgement(
    client: "MlflowClient", name: str, version: int, decision: Decision, champion: "ModelVersion | None", digest: str
) -> None:
    """Tag a version with what `audioscore promote` found; what was said at its registration stays."""
    tags = {
        "at": now(),
        "decision": decision.reason,
        "promoted": str(decision.promoted).lower(),
        "data_digest": digest,
        COMPARED_WITH: compared_with(champion),
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), f"{JUDGED}{key}", value)


def compared_with(champion: "ModelVersion | None") -> str:
    """The champion of a comparison, in a tag."""
    return f"v{champion.version}" if champion else NO_CHAMPION


def interval_text(figure: Mapping[str, Any]) -> str:
    """An estimate in a tag.

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
    """For the report: where the winner came from."""
    description = read_description(winner.scorer_folder())
    table = {
        **{name.replace("_", " "): value or NO_DVC for name, value in asdict(provenance).items()},
        "registered model": config.registry.model,
        "compared with": f"v{champion.version}" if champion else "no champion yet",
        "started from": description.training.get("init", "scratch"),
        "licence of the weights": description.licence,
    }
    for kind, reference in description.encoders.items():
        where = reference.id or "embedded in the scorer"
        table[f"encoder {kind}"] = f"{where}, sha256 {reference.sha256[:16]}"
    return table
