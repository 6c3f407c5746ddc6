"""Registered scorers and candidates on the same clips now: what the gate, `compare` and `evaluate` rest on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.encoders.extract import choose_device, extract_features
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.evaluation.gate.decision import Decision, decide
from audioscore.evaluation.gate.slices import SliceRule
from audioscore.scoring.checkpoint import load_encoders_of, load_network, read_description
from audioscore.scoring.network import raw_outputs

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection, RegistrySection


def report_order(clip: Clip) -> tuple[str, str]:
    """The order in which the evaluation lists clips: the same resamples then give the same intervals."""
    return str(clip.sha256), clip.audio_file


def unseen(clips: Sequence[Clip], scorers: Iterable[Path]) -> list[Clip]:
    """The clips that no scorer was fitted, selected or calibrated on, in `report_order`."""
    seen = {sha256 for scorer in scorers for sha256 in read_description(scorer).seen_clips}
    return sorted((clip for clip in clips if clip.sha256 not in seen), key=report_order)


def rescore(scorer: Path, clips: Sequence[Clip], data: Path, store: FeatureStore) -> NDArray[np.float64]:
    """Raw outputs of a saved scorer now; its own encoders run where the store lacks features.

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


def judge(
    challenger: Path,
    champion: Path | None,
    clips: Sequence[Clip],
    data: Path,
    store: FeatureStore,
    registry: "RegistrySection",
    evaluation: "EvaluationSection",
    failed_probes: Sequence[str] = (),
) -> Decision:
    """The gate on those of the scored clips that neither scorer has seen; the rest is counted."""
    fresh = unseen(clips, [challenger] if champion is None else [challenger, champion])
    return decide(
        rescore(challenger, fresh, data, store),
        None if champion is None else rescore(champion, fresh, data, store),
        scores=[clip.score for clip in fresh if clip.score is not None],
        singers=[clip.singer_id for clip in fresh],
        sources=[clip.source for clip in fresh],
        dropped=len(clips) - len(fresh),
        failed_probes=failed_probes,
        margin=registry.margin,
        slices=SliceRule(registry.slice_margin, registry.slice_clips, registry.slice_singers),
        min_spearman=registry.min_spearman,
        confidence=evaluation.confidence,
        resamples=evaluation.resamples,
        seed=evaluation.seed,
    )
