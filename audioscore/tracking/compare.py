"""Score saved scorers again on the same clips: for the gate, `compare`, `evaluate` and `promote`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.data.spelling import path_on_disk
from audioscore.data.split.groups import SPLITS
from audioscore.data.split.sort import INDEX, read_split
from audioscore.data.versions.revision import folder_digest
from audioscore.encoders.compute import choose_device
from audioscore.encoders.extract import extract_features
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import DataError, UsageError
from audioscore.evaluation.bootstrap import cluster_counts, estimate, paired_difference, singer_clusters
from audioscore.evaluation.gate.decision import Decision, decide
from audioscore.evaluation.gate.slices import SliceRule
from audioscore.evaluation.metrics import Metric, pairwise_accuracy, spearman, within_sources
from audioscore.evaluation.predict import prediction_rows
from audioscore.evaluation.predictions import Prediction
from audioscore.files import sha256_of
from audioscore.scoring.checkpoint import load_encoders_of, load_network, read_description
from audioscore.scoring.network import raw_outputs

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection, RegistrySection


def report_order(clip: Clip) -> tuple[str, str]:
    """Sort key of clips in an evaluation; with the same order, the same resamples give the same intervals."""
    return str(clip.sha256), clip.audio_file


def unseen(clips: Sequence[Clip], scorers: Iterable[Path]) -> list[Clip]:
    """Return the clips that no scorer was fitted, selected or calibrated on, in `report_order`."""
    seen = {sha256 for scorer in scorers for sha256 in read_description(scorer).seen_clips}
    return sorted((clip for clip in clips if clip.sha256 not in seen), key=report_order)


def rescore(scorer: Path, clips: Sequence[Clip], data: Path, store: FeatureStore) -> NDArray[np.float64]:
    """Compute raw outputs of a saved scorer; its encoders run for clips whose features the store lacks.

    Shape: N clips of the folder `data`, with their sha256 -> [N].
    """
    description = read_description(scorer)
    references = description.encoders
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
        extract_features(clips, data, encoders, store, prefix_layer=layer)
        references = {kind: encoder.reference for kind, encoder in encoders.items()}  # in the precision of this device
    features = StoredFeatures(clips, references, tuple(references), store, prefix_layer=layer)
    return raw_outputs(load_network(scorer, description, device), features, device)


def decide_on_unseen(
    challenger: Path,
    champion: Path | None,
    clips: Sequence[Clip],
    data: Path,
    store: FeatureStore,
    registry: "RegistrySection",
    evaluation: "EvaluationSection",
    failed_tests: Sequence[str] = (),
) -> Decision:
    """Apply the gate to the scored clips that neither scorer was trained on; the other clips are only counted.

    Args:
        failed_tests: names of robustness tests that refuse the challenger.
    """
    fresh = unseen(clips, [challenger] if champion is None else [challenger, champion])
    return decide(
        rescore(challenger, fresh, data, store),
        None if champion is None else rescore(champion, fresh, data, store),
        scores=[clip.score for clip in fresh if clip.score is not None],
        singers=[clip.singer_id for clip in fresh],
        sources=[clip.source for clip in fresh],
        dropped=len(clips) - len(fresh),
        failed_tests=failed_tests,
        margin=registry.margin,
        overall_margin=registry.overall_margin,
        slices=SliceRule(registry.slice_margin, registry.slice_clips, registry.slice_singers),
        min_spearman=registry.min_spearman,
        **evaluation.bootstrap,
    )


ALL = "all"
RUN_DATA, RUN_INDEX, RUN_CONFIG = "steps/*/fetch-data/data", "steps/*/sort-data/index", "config.json"


@dataclass(frozen=True)
class EvaluationData:
    """Clips to evaluate on: the data folder, the folder that holds `index/`, and the data's digest."""

    data: Path
    index: Path
    digest: str

    def clips(self, split: str = "test") -> list[tuple[str, Clip]]:
        """Return the scored clips of a split, or of all splits, each with its split's name and its sha256.

        Raises:
            DataError: there is no scored clip, or a recording is missing.
        """
        splits = SPLITS if split == ALL else (split,)
        found = [(name, self._hashed(clip)) for name in splits for clip in read_split(self.index, name)]
        if not found:
            raise DataError(f"{self.index}: no scored clip in split {split}. Choose another with --split.")
        return found

    def _hashed(self, clip: Clip) -> Clip:
        if clip.sha256 is not None:
            return clip
        path = path_on_disk(self.data, clip.audio_file)
        if not path.is_file():
            raise DataError(f"{path}: listed in the index, but the file is missing. Run `audioscore data sort` again.")
        return replace(clip, sha256=sha256_of(path))


def require_sorted(folder: Path) -> None:
    """Raise UsageError if the folder is not a sorted data folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give a data folder that `audioscore data sort` has sorted.")
    if not (folder / INDEX).is_dir():
        raise UsageError(f"{folder}: not sorted, {INDEX}/ is missing. Run `audioscore data sort {folder}` first.")


def sorted_data(folder: Path) -> EvaluationData:
    """Describe a sorted data folder. Raises UsageError if it is not sorted."""
    require_sorted(folder)
    return EvaluationData(folder, folder, folder_digest(folder))


def data_of_run(run: Path, digest: str) -> EvaluationData:
    """Describe the data and splits in a run's folder. Raises UsageError if they were removed."""
    data, index = sorted(run.glob(RUN_DATA)), sorted(run.glob(RUN_INDEX))
    if len(data) != 1 or len(index) != 1:
        raise UsageError(f"{run}: the run's data were removed. Pass a sorted data folder with --data.")
    return EvaluationData(data[0], index[0], digest)


def predict_scorers(
    scorers: Mapping[str, Path], data: EvaluationData, split: str, store: FeatureStore
) -> tuple[list[Prediction], int]:
    """Predict the clips of a split that no scorer was trained on.

    Returns:
        One row for each scorer (named in the column `plan`) and clip, and the number of clips that were excluded.

    Raises:
        DataError: fewer than 2 clips, or clips of a single singer, are left.
    """
    clips = data.clips(split)
    fresh = unseen([clip for _, clip in clips], scorers.values())
    singers = len(set(singer_clusters([clip.singer_id for clip in fresh])))
    if len(fresh) < 2 or singers < 2:
        raise DataError(
            f"{data.index}: {len(fresh)} of {len(clips)} scored clips in split {split} were not used to train a model, "
            f"from {singers} singers; 2 clips of 2 singers are needed. Pass other data, with singer_id, or another "
            "--split."
        )
    split_of = {(clip.sha256, clip.audio_file): name for name, clip in clips}
    splits = [split_of[clip.sha256, clip.audio_file] for clip in fresh]
    rows = [
        row
        for name, folder in scorers.items()
        for row in prediction_rows(
            name, read_description(folder), splits, fresh, rescore(folder, fresh, data.data, store)
        )
    ]
    return rows, len(clips) - len(fresh)


def compare_predictions(
    rows: Sequence[Prediction], first: str, second: str, settings: "EvaluationSection"
) -> dict[str, Any]:
    """Compute both models' metrics and the difference second - first, each with its bootstrap interval by singer.

    Raises:
        DataError: all clips are of one singer, so that no interval can be estimated.
    """
    of_first = [row for row in rows if row.plan == first]
    raw = {name: [row.raw for row in rows if row.plan == name] for name in (first, second)}
    human = [row.human for row in of_first]
    clusters = singer_clusters([row.singer_id for row in of_first])
    counts = cluster_counts(clusters, settings.resamples, settings.seed)
    metrics: dict[str, Metric] = {
        "spearman": spearman,
        "spearman_within_source": within_sources([row.source for row in of_first]),
        "pairwise_accuracy": pairwise_accuracy,
    }
    confidence = settings.confidence
    return {
        "clips": len(of_first),
        "singers": len(np.unique(clusters)),
        "confidence": confidence,
        "models": {
            name: {
                key: estimate(metric, human, raw[name], counts, confidence).as_dict() for key, metric in metrics.items()
            }
            for name in (first, second)
        },
        "difference": {
            key: paired_difference(metric, human, raw[second], raw[first], counts, confidence).as_dict("delta")
            for key, metric in metrics.items()
        },
    }
