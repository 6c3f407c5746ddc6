"""The last step: choose the winner, compare it with the champion on the same clips, log, register, report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import audioscore
from audioscore.data.clips import Clip
from audioscore.data.sort import read_split
from audioscore.encoders.extract import choose_device, extract_features, read_extraction
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored import StoredFeatures
from audioscore.errors import GateRefused
from audioscore.evaluation.gate import Decision, choose_winner, decide
from audioscore.evaluation.predict import PREDICTIONS, Evaluation, read_evaluation, validation_by_plan
from audioscore.evaluation.report import render_report
from audioscore.files import read_json, write_json, write_text
from audioscore.scoring.checkpoint import load_encoders_of, load_network, read_description
from audioscore.scoring.network import raw_outputs
from audioscore.scoring.scorer import CANDIDATES
from audioscore.scoring.trained import TrainedPlan, read_trained
from audioscore.tracking.connection import connect, initialise
from audioscore.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    SCORER_ARTIFACT,
    ModelVersion,
    describe_version,
    promote,
    scorer_folder,
    version_by_alias,
    version_of,
)
from audioscore.tracking.runs import PARAM_CHARACTERS, DatasetInput, dataset_name, flatten, log_dataset, log_plan

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from audioscore.config import Config

log = logging.getLogger(__name__)

# What a registered scorer needs to run, pinned to the versions that made it.
REQUIREMENTS = (
    "addict", "av", "mlflow", "modelscope", "muq", "numpy", "pandas", "peft", "pydantic", "pyyaml", "safetensors",
    "scipy", "soxr", "torch", "torchaudio", "torchvision", "transformers",
)  # fmt: skip
RESULT, REPORT = "result.json", "report.html"


@dataclass(frozen=True)
class RunFolders:
    """Where the steps before left their work."""

    data: Path
    validated: Path
    index: Path
    features: Path
    plans: tuple[Path, ...]
    evaluation: Path


@dataclass(frozen=True)
class Provenance:
    """What a registered version says of where it came from."""

    run_id: str
    data_digest: str
    data_revision: str | None  # the git commit it came from, or the md5 in the .dvc file beside the folder
    code_revision: str


def register_winner(
    folders: RunFolders, target: Path, config: "Config", provenance: Provenance, tracking_uri: str, artifacts: Path
) -> dict[str, Any]:
    """Decide, log both plans, register the winner's scorer, and write result.json and report.html under `target`.

    Returns the document that `run --json` prints. The champion is re-scored now, on the test clips that neither model
    has seen.
    """
    plans = [read_trained(folder) for folder in folders.plans]
    evaluation = read_evaluation(folders.evaluation)
    winner_plan = choose_winner(validation_by_plan(plans, CANDIDATES))
    winner = next(trained for trained in plans if trained.plan == winner_plan)
    experiment = initialise(tracking_uri, config.registry.model, artifacts)
    client = connect(tracking_uri)
    champion = version_by_alias(client, config.registry.model, CHAMPION)
    decision = _decide(winner, champion, folders, config, tracking_uri)
    log.info("winner on validation: %s; %s", winner_plan, decision.reason)
    result = _result(plans, evaluation, winner_plan, decision, folders, provenance)
    page = render_report(
        evaluation.figures,
        evaluation.predictions,
        {trained.plan: trained.curves for trained in plans},
        _provenance_table(config, provenance, winner, champion),
        _data_summary(folders, result["data"]),
        {**result["decision"], "winner": winner_plan},
    )
    write_text(target / REPORT, page)
    files = [target / REPORT, folders.evaluation / PREDICTIONS]
    data = _dataset(folders, config, provenance, result["data"])
    winner_run = _log_runs(client, experiment, plans, evaluation, config, provenance, winner_plan, files, data)
    registered = _register(
        client, config.registry.model, winner, winner_run, decision, champion, evaluation, provenance
    )
    result["registered"] = describe_version(registered)
    write_json(target / RESULT, result)
    return result


def _decide(
    winner: TrainedPlan, champion: ModelVersion | None, folders: RunFolders, config: "Config", tracking_uri: str
) -> Decision:
    """The gate on the test clips that neither the winner nor the champion has seen."""
    clips = read_split(folders.index, "test")
    seen = set(read_description(winner.scorer_folder()).seen_clips)
    champion_folder = scorer_folder(tracking_uri, champion.uri) if champion else None
    if champion_folder is not None:
        seen |= set(read_description(champion_folder).seen_clips)
    fresh = sorted((clip for clip in clips if clip.sha256 not in seen), key=report_order)
    return decide(
        rescore(winner.scorer_folder(), fresh, folders),
        None if champion_folder is None else rescore(champion_folder, fresh, folders),
        scores=[clip.score for clip in fresh if clip.score is not None],
        singers=[clip.singer_id for clip in fresh],
        sources=[clip.source for clip in fresh],
        dropped=len(clips) - len(fresh),
        margin=config.registry.margin,
        min_spearman=config.registry.min_spearman,
        confidence=config.evaluation.confidence,
        resamples=config.evaluation.resamples,
        seed=config.evaluation.seed,
    )


def report_order(clip: Clip) -> tuple[str, str]:
    """The order in which the evaluation lists clips: the same resamples then give the same intervals."""
    return str(clip.sha256), clip.audio_file


def rescore(scorer: Path, clips: Sequence[Clip], folders: RunFolders) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Raw outputs of a saved scorer now, on clips of this run; its own encoders run where the store lacks features."""
    description = read_description(scorer)
    references = description.encoders
    store = FeatureStore(read_extraction(folders.features).store)
    missing = [
        clip
        for clip in clips
        for reference in description.encoders.values()
        if not store.has(reference, str(clip.sha256))
    ]
    layer, device = description.prefix_layer, choose_device("auto")
    if layer is not None:
        prefix = prefix_reference(description.encoders["muq"], layer)
        missing += [clip for clip in clips if not store.has(prefix, str(clip.sha256))]
    if missing:
        encoders = load_encoders_of(scorer, device=device)
        extract_features(clips, folders.data, encoders, store, prefix_layer=layer)
        references = {kind: encoder.reference for kind, encoder in encoders.items()}  # in the precision of this device
    features = StoredFeatures(clips, references, tuple(references), store, prefix_layer=layer)
    return raw_outputs(load_network(scorer, description, device), features, device)


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
        "run_id": provenance.run_id,
        "data_digest": provenance.data_digest,
        "dvc_rev": provenance.data_revision or "not under DVC",
        "code_rev": provenance.code_revision,
    }
    parameters = flatten(config.model_dump(mode="json"))
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
            tags,
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


def _register(
    client: "MlflowClient",
    name: str,
    winner: TrainedPlan,
    run_id: str,
    decision: Decision,
    champion: ModelVersion | None,
    evaluation: Evaluation,
    provenance: Provenance,
) -> ModelVersion:
    """Log the winner's scorer as a pyfunc model, register it, tag it with its evidence, and set its alias."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    folder = winner.scorer_folder()
    description = read_description(folder)
    spearman = evaluation.figures["plans"][winner.plan]["spearman"]
    tags = {
        "plan": winner.plan,
        "decision": decision.reason,
        "promoted": str(decision.promoted).lower(),
        "data_digest": provenance.data_digest,
        "dvc_rev": provenance.data_revision or "not under DVC",
        "code_rev": provenance.code_revision,
        "licence_of_weights": description.licence,
        "test_spearman": _interval_text(spearman),
        "compared_with": f"v{champion.version}" if champion else "none",
    }
    outputs = [ColSpec(DataType.double, part, required=False) for part in ("score", "lo", "hi", "raw", "seconds")]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "audio")]),
        outputs=Schema([*outputs, ColSpec(DataType.string, "error", required=False)]),
    )
    package = Path(audioscore.__file__).parent
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="scorer",
            python_model=str(package / "tracking" / "pyfunc_scorer.py"),
            artifacts={SCORER_ARTIFACT: str(folder)},
            code_paths=[str(package)],
            pip_requirements=pinned_requirements(),
            signature=signature,
            registered_model_name=name,
        )
    number = int(logged.registered_model_version)
    try:
        if decision.promoted:
            promote(client, name, number, expected=champion.version if champion else None)
        else:
            client.set_registered_model_alias(name, CHALLENGER, str(number))
    except GateRefused as refusal:  # the champion moved meanwhile: the version stays, and says why it is no champion
        tags |= {"promoted": "false", "decision": str(refusal)}
        client.set_registered_model_alias(name, CHALLENGER, str(number))
        raise
    finally:
        for key, value in tags.items():
            client.set_model_version_tag(name, str(number), key, value)
    log.info("registered %s v%d as %s", name, number, CHAMPION if decision.promoted else CHALLENGER)
    return version_of(client, name, number)


def pinned_requirements() -> list[str]:
    """`name==version` of what a registered scorer imports, as installed here."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            pinned.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue  # a slimmer environment: what is not installed was not used
    return pinned


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
        "decision": {
            "delta": decision.delta,
            "lo": decision.lo,
            "hi": decision.hi,
            "promoted": decision.promoted,
            "reason": decision.reason,
        },
        "warnings": figures["warnings"],
    }


def _provenance_table(
    config: "Config", provenance: Provenance, winner: TrainedPlan, champion: ModelVersion | None
) -> dict[str, Any]:
    description = read_description(winner.scorer_folder())
    table = {
        **{name.replace("_", " "): value or "not under DVC" for name, value in asdict(provenance).items()},
        "registered model": config.registry.model,
        "compared with": f"v{champion.version}" if champion else "no champion yet",
        "started from": description.training.get("init", "scratch"),
        "licence of the weights": description.licence,
    }
    for kind, reference in description.encoders.items():
        where = reference.id or "embedded in the scorer"
        table[f"encoder {kind}"] = f"{where}, sha256 {reference.sha256[:16]}"
    return table


def _data_summary(folders: RunFolders, counts: Mapping[str, Any]) -> dict[str, Any]:
    summary = {name: value for name, value in counts.items() if name != "digest"}
    report = read_json(folders.index / "split_report.json")
    song_share = f"{report['shared_song_share']:.0%} of the test clips whose song is known"
    return {**summary, "test clips with a song that is also in train": f"{report['shared_songs']} ({song_share})"}


def _interval_text(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None or figure["lo"] is None:
        return "undefined"
    return f"{figure['value']:.3f} ({figure['lo']:.3f} to {figure['hi']:.3f})"
