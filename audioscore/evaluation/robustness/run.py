"""Robustness tests and domain probe of the trained plans on the test clips, written as one document."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audioscore.data.clips import Clip
from audioscore.data.split.sort import read_split
from audioscore.encoders.compute import choose_device
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError, ModelError
from audioscore.evaluation.bootstrap import FEW_CLUSTERS, or_none, singer_clusters
from audioscore.evaluation.linear_probe import domain_probe
from audioscore.evaluation.robustness.degradations import DEGRADATIONS
from audioscore.evaluation.robustness.measure import (
    CLEAN,
    DegradedScores,
    ScorerUnderTest,
    load_scorer_under_test,
    robustness_metrics,
    score_degraded,
    select_clips,
)
from audioscore.files import read_json, write_json
from audioscore.scoring.scorer import BRANCHES
from audioscore.scoring.trained_plan import read_trained

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection

log = logging.getLogger(__name__)

ROBUSTNESS_FILE = "probes.json"
CLIP_KEYS = ("audio_file", "sha256", "singer_id", "source", "score")
OFF = "robustness tests are turned off: evaluation.robustness.clips is 0"


def run_robustness_tests(
    plan_folders: Sequence[Path],
    index_folder: Path,
    features_folder: Path,
    data_folder: Path,
    target: Path,
    settings: "EvaluationSection",
) -> dict[str, Any]:
    """Test the representative scorer of every plan, and write probes.json into `target`.

    Degraded clips are scored by the candidates, and by the controls that need no further encoders.

    Raises: DataError where the test split has no scored clip.
    """
    test = read_split(index_folder, "test")
    if not test:
        raise DataError("test split: no scored clips. Add singers, or enlarge split.test.")
    device = choose_device("auto")
    scorers = [load_scorer_under_test(read_trained(folder), device) for folder in plan_folders]
    selected = select_clips(test, settings.robustness.clips)
    log.info("robustness tests: %d test clips, %d degradations", len(selected), len(DEGRADATIONS))
    degraded = score_degraded(scorers, selected, data_folder, device) if selected else DegradedScores([], {}, [])
    plans = {
        scorer.plan: _plan_metrics(
            scorer, degraded, _domain_probe(scorer, test, features_folder, device, settings), settings
        )
        for scorer in scorers
    }
    document: dict[str, Any] = {
        **settings.bootstrap,
        **settings.robustness.model_dump(mode="json"),
        "reason": None if selected else OFF,
        "warnings": [*_warnings(degraded), *_undecided(plans, settings.robustness.refuse)],
        "probed": [{key: getattr(clip, key) for key in CLIP_KEYS} for clip in degraded.clips],
        "left_out": [
            {"probe": one.version, "audio_file": one.audio_file, "reason": one.reason} for one in degraded.skipped
        ],
        "plans": plans,
    }
    write_json(target / ROBUSTNESS_FILE, document)
    return document


def read_robustness(folder: Path) -> dict[str, Any]:
    """Read what `run_robustness_tests` wrote. Raises ModelError where the file is missing."""
    if not (folder / ROBUSTNESS_FILE).is_file():
        raise ModelError(f"{folder}: no {ROBUSTNESS_FILE}; the robustness tests did not finish. Evaluate again.")
    document: dict[str, Any] = read_json(folder / ROBUSTNESS_FILE)
    return document


def flagged(plan: Mapping[str, Any]) -> list[str]:
    """Return the robustness tests that flag a plan, from its part of the document."""
    return [name for name, figures in plan["degradations"].items() if figures["flagged"]]


def failed(plan: Mapping[str, Any], refuse: Sequence[str]) -> list[str]:
    """Return the tests among `refuse` that flag a plan: each of them refuses its promotion.

    >>> failed({"degradations": {"noise_10db": {"flagged": True}, "clipping": {"flagged": True}}}, ["clipping"])
    ['clipping']
    """
    return [name for name in flagged(plan) if name in refuse]


def _plan_metrics(
    scorer: ScorerUnderTest, degraded: DegradedScores, domain: dict[str, Any], settings: "EvaluationSection"
) -> dict[str, Any]:
    """Return one plan's part of the document; without degradations where it did not score them."""
    scores = degraded.scores.get(scorer.plan, {})
    singers = [clip.singer_id for clip in degraded.clips]
    return {
        "seed": scorer.description.seed,
        "degradations": {
            name: {
                "title": one.title,
                **robustness_metrics(scores[CLEAN], scores[name], one.expected, singers, settings),
            }
            for name, one in DEGRADATIONS.items()
            if scores
        },
        "domain": domain,
        "scores": {version: [or_none(float(value)) for value in values] for version, values in scores.items()},
    }


def _domain_probe(
    scorer: ScorerUnderTest, test: Sequence[Clip], features_folder: Path, device: str, settings: "EvaluationSection"
) -> dict[str, Any]:
    """Run the domain probe on the whole test split, with features from the store."""
    from audioscore.encoders.stored_features import StoredFeatures
    from audioscore.scoring.network import representations

    extraction = read_extraction(features_folder)
    kinds = [kind for plan, own in BRANCHES.items() if plan == scorer.plan for kind in own]
    layer = scorer.description.prefix_layer
    features = StoredFeatures(test, extraction.encoders, kinds, FeatureStore(extraction.store), prefix_layer=layer)
    represented = representations(scorer.network, features, device)
    scores = [clip.score for clip in test if clip.score is not None]
    return domain_probe(
        represented, scores, [clip.source for clip in test], [clip.singer_id for clip in test], settings
    )


def _warnings(degraded: DegradedScores) -> list[str]:
    warnings = []
    singers = len(np.unique(singer_clusters([clip.singer_id for clip in degraded.clips])))
    if degraded.clips and singers < FEW_CLUSTERS:
        warnings.append(f"Robustness tests: only {singers} singers; the intervals are rough and probably too narrow.")
    if degraded.skipped:
        clips = len({one.audio_file for one in degraded.skipped})
        warnings.append(f"Robustness tests: {len(degraded.skipped)} degraded versions of {clips} clips were skipped.")
    return warnings


def _undecided(plans: Mapping[str, Any], refuse: Sequence[str]) -> list[str]:
    """Return a warning for each test in `refuse` that has no interval for a plan, and so cannot refuse it."""
    return [
        f"Robustness test {name} cannot refuse {plan}: no interval ({figures['wrong_way']['no_interval']})."
        for plan, of_plan in plans.items()
        for name, figures in of_plan["degradations"].items()
        if name in refuse and figures["wrong_way"]["lo"] is None
    ]
