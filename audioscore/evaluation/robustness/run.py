"""Probes of trained plans on held-out clips, in one document: what degrading does to scores, and how much of the source
the model knows.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audioscore.data.clips import Clip
from audioscore.data.split.sort import read_split
from audioscore.encoders.extract import choose_device, read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError, ModelError
from audioscore.evaluation.bootstrap import FEW_CLUSTERS, or_none, singer_clusters
from audioscore.evaluation.linear_probe import domain_probe
from audioscore.evaluation.robustness.degradations import DEGRADATIONS
from audioscore.evaluation.robustness.measure import (
    CLEAN,
    Degraded,
    Judge,
    Progress,
    chosen_clips,
    load_judge,
    probe_figures,
    score_degraded,
)
from audioscore.files import read_json, write_json
from audioscore.scoring.scorer import BRANCHES
from audioscore.scoring.trained_plan import read_trained

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection

log = logging.getLogger(__name__)

PROBES = "probes.json"
OFF = "the degradation probes are turned off: evaluation.probes.clips is 0"


def probe_plans(
    plan_folders: Sequence[Path],
    index_folder: Path,
    features_folder: Path,
    data_folder: Path,
    target: Path,
    settings: "EvaluationSection",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Probe the representative scorer of every plan, and write probes.json into `target`.

    Degraded clips are scored by both candidates, and by those controls that hear what these hear. `progress` is told
    how many clips of how many are done. Raises DataError where the test split has no scored clip.
    """
    test = read_split(index_folder, "test")
    if not test:
        raise DataError("the test split holds no scored clip. Add singers or enlarge split.test.")
    device = choose_device("auto")
    judges = [load_judge(read_trained(folder), device) for folder in plan_folders]
    chosen = chosen_clips(test, settings.probes.clips)
    log.info("probes: %d test clips in %d degraded versions", len(chosen), len(DEGRADATIONS))
    found = score_degraded(judges, chosen, data_folder, device, progress) if chosen else Degraded([], {}, [])
    document: dict[str, Any] = {
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "seed": settings.seed,
        **settings.probes.model_dump(mode="json"),
        "reason": None if chosen else OFF,
        "warnings": _warnings(found),
        "probed": [_about(clip) for clip in found.clips],
        "left_out": [one._asdict() for one in found.left_out],
        "plans": {},
    }
    for judge in judges:
        domain = _domain(judge, test, features_folder, device, settings)
        document["plans"][judge.plan] = _figures_of(judge, found, domain, settings)
    document["warnings"] += _unjudged(document["plans"], settings.probes.refuse)
    write_json(target / PROBES, document)
    return document


def read_probes(folder: Path) -> dict[str, Any]:
    """What `probe_plans` wrote. Raises ModelError where it wrote nothing."""
    if not (folder / PROBES).is_file():
        raise ModelError(f"{folder}: holds no {PROBES}; the probes did not finish. Run the evaluation again.")
    document: dict[str, Any] = read_json(folder / PROBES)
    return document


def flagged(of_plan: Mapping[str, Any]) -> list[str]:
    """Probes that a plan is flagged by, from its part of the document."""
    return [name for name, figures in of_plan["degradations"].items() if figures["flagged"]]


def failed(of_plan: Mapping[str, Any], refuse: Sequence[str]) -> list[str]:
    """Probes among `refuse` that a plan is flagged by: with any of them, it may not be promoted.

    >>> failed({"degradations": {"noise_10db": {"flagged": True}, "clipping": {"flagged": True}}}, ["clipping"])
    ['clipping']
    """
    return [name for name in flagged(of_plan) if name in refuse]


def describe(figures: Mapping[str, Any]) -> str:
    """One probe of one plan in words.

    >>> effect = {"value": 1.25, "lo": 0.75, "hi": 1.5}
    >>> describe({"title": "noise, SNR 10 dB", "expected": "not higher", "effect": effect, "clips": 24})
    'noise, SNR 10 dB: the score moved by +1.25 points (+0.75 to +1.50) over 24 clips, expected not higher'
    """
    effect = figures["effect"]
    if effect["value"] is None:
        return f"{figures['title']}: {effect['no_interval']}"
    span = "no interval" if effect["lo"] is None else f"{effect['lo']:+.2f} to {effect['hi']:+.2f}"
    return (
        f"{figures['title']}: the score moved by {effect['value']:+.2f} points ({span}) over {figures['clips']} clips, "
        f"expected {figures['expected']}"
    )


def _figures_of(judge: Judge, found: Degraded, domain: dict[str, Any], settings: "EvaluationSection") -> dict[str, Any]:
    """One plan's part of the document; without degradations where it was not asked."""
    scores = found.scores.get(judge.plan, {})
    singers = [clip.singer_id for clip in found.clips]
    return {
        "seed": judge.description.seed,
        "degradations": {
            name: {
                "title": one.title,
                **probe_figures(scores[CLEAN], scores[name], one.expected, singers, settings),
            }
            for name, one in DEGRADATIONS.items()
            if scores
        },
        "domain": domain,
        "scores": {version: [or_none(float(value)) for value in values] for version, values in scores.items()},
    }


def _domain(
    judge: Judge, test: Sequence[Clip], features_folder: Path, device: str, settings: "EvaluationSection"
) -> dict[str, Any]:
    """The domain probe on the whole test split, whose features the store has."""
    from audioscore.encoders.stored_features import StoredFeatures
    from audioscore.scoring.network import representations

    extraction = read_extraction(features_folder)
    kinds = [kind for plan, own in BRANCHES.items() if plan == judge.plan for kind in own]
    layer = judge.description.prefix_layer
    features = StoredFeatures(test, extraction.encoders, kinds, FeatureStore(extraction.store), prefix_layer=layer)
    known = representations(judge.network, features, device)
    scores = [clip.score for clip in test if clip.score is not None]
    return domain_probe(known, scores, [clip.source for clip in test], [clip.singer_id for clip in test], settings)


def _warnings(found: Degraded) -> list[str]:
    """What a reader must know of the clips."""
    warnings = []
    singers = len(np.unique(singer_clusters([clip.singer_id for clip in found.clips])))
    if found.clips and singers < FEW_CLUSTERS:
        warnings.append(f"Only {singers} singers in the probed clips: the intervals are rough, and likely too narrow.")
    if found.left_out:
        clips = len({one.audio_file for one in found.left_out})
        warnings.append(f"{len(found.left_out)} degraded versions of {clips} clips were left out; left_out says why.")
    return warnings


def _unjudged(plans: Mapping[str, Any], refuse: Sequence[str]) -> list[str]:
    """A sentence for each probe that is to refuse, and of a plan cannot."""
    return [
        f"{name} is to refuse promotion, but says nothing of {plan}: {figures['wrong_way']['no_interval']}."
        for plan, of_plan in plans.items()
        for name, figures in of_plan["degradations"].items()
        if name in refuse and figures["wrong_way"]["lo"] is None
    ]


def _about(clip: Clip) -> dict[str, Any]:
    return {
        "audio_file": clip.audio_file,
        "sha256": clip.sha256,
        "singer_id": clip.singer_id,
        "source": clip.source,
        "score": clip.score,
    }
