import math

import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.config import EvaluationSection
from audioscore.errors import DataError
from audioscore.evaluation.linear_probe import domain_probe

SETTINGS = EvaluationSection(resamples=200)
Clips = tuple[NDArray[np.float64], list[float], list[str | None], list[str | None]]


def clips(separation: float, *, voice: float = 0.0, each: int = 40, singers: int = 8, seed: int = 0) -> Clips:
    """Clips of two sources between 80 and 90, 8 singers each: a source's mark and a singer's in features of noise."""
    rng = np.random.default_rng(seed)
    source = np.repeat([0, 1], each)
    singer = np.tile(np.arange(each) % singers, 2) + singers * source
    known = rng.normal(0, 1, (2 * each, 6))
    known[:, 0] += separation * source
    known += voice * rng.normal(0, 1, (2 * singers, 6))[singer]
    scores = [float(value) for value in rng.uniform(80, 90, 2 * each)]
    return known, scores, [("ktv", "acapella")[one] for one in source], [f"s{one}" for one in singer]


def test_a_separable_source_is_predicted() -> None:
    found = domain_probe(*clips(20.0), SETTINGS)
    assert (found["balanced_accuracy"]["value"], found["balanced_accuracy"]["hi"]) == (1, 1)
    assert found["balanced_accuracy"]["lo"] == pytest.approx(1 / (1 + 1.96**2 / 16), abs=1e-3)  # Wilson's, 16 singers
    assert (found["chance"], found["clips"], found["reason"]) == (0.5, 80, None)
    assert {band: sum(own.values()) for band, own in found["bands"].items()}.keys() == {"80-85", "85-90"}
    assert sum(sum(own.values()) for own in found["bands"].values()) == 80


def test_random_features_give_chance() -> None:
    found = [domain_probe(*clips(0.0, seed=seed), SETTINGS) for seed in range(12)]
    assert np.mean([one["balanced_accuracy"]["value"] for one in found]) == pytest.approx(0.5, abs=0.06)
    assert sum(one["balanced_accuracy"]["lo"] < 0.5 < one["balanced_accuracy"]["hi"] for one in found) >= 9


def test_folds_are_by_singer() -> None:
    found = [domain_probe(*clips(0.0, voice=30.0, seed=seed), SETTINGS) for seed in range(12)]
    assert np.mean([one["balanced_accuracy"]["value"] for one in found]) == pytest.approx(0.5, abs=0.12)


def test_each_source_counts_the_same() -> None:
    _, _, sources, singers = clips(0.0, each=40)
    keep = [*range(40), *range(40, 46)]  # 40 of one, 6 of the other
    found = domain_probe(
        np.zeros((46, 6)), [82.0] * 46, [sources[k] for k in keep], [singers[k] for k in keep], SETTINGS
    )
    assert found["balanced_accuracy"]["value"] == 0.5  # constant features name one source for all
    assert found["bands"] == {"80-85": {"acapella": 6, "ktv": 40}}


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    known, _, sources, singers = clips(1.5, each=24)
    found = domain_probe(known, [82.0] * 48, sources, singers, EvaluationSection(resamples=4000))
    value, lo, hi = (found["balanced_accuracy"][part] for part in ("value", "lo", "hi"))
    assert 0.5 < lo < value < hi <= 1
    assert hi - lo == pytest.approx(2 * 1.96 * math.sqrt(value * (1 - value) / 48), rel=0.5)


def test_no_band_with_both_sources_is_a_reason() -> None:
    known, _, sources, singers = clips(5.0)
    scores = [60.0 + 0.5 * place if source == "ktv" else 90.0 for place, source in enumerate(sources)]
    found = domain_probe(known, scores, sources, singers, SETTINGS)
    reason = found.pop("reason")
    assert found == {"balanced_accuracy": None, "chance": None, "clips": 0, "bands": {}}
    assert "acapella 90 to 90" in reason
    assert "ktv 60 to 79.5" in reason


def test_one_singer_of_a_source_or_an_unknown_source_is_not_enough() -> None:
    known, scores, sources, singers = clips(5.0)
    alone = [singer if source == "ktv" else "s99" for singer, source in zip(singers, sources, strict=True)]
    found = domain_probe(known, scores, sources, alone, SETTINGS)
    assert (found["balanced_accuracy"], found["clips"]) == (None, 0)
    unknown = [source if source == "ktv" else None for source in sources]
    found = domain_probe(known, scores, unknown, singers, SETTINGS)
    assert "unknown 8" in found["reason"]
    assert domain_probe(np.zeros((0, 4)), [], [], [], SETTINGS)["reason"]


def test_a_singer_in_both_sources_is_in_one_fold() -> None:
    known, scores, sources, _ = clips(20.0)
    shared: list[str | None] = [f"s{place % 8}" for place in range(80)]
    found = domain_probe(known, scores, sources, shared, SETTINGS)
    assert found["balanced_accuracy"]["value"] == 1.0


def test_the_same_clips_give_the_same_figures() -> None:
    assert domain_probe(*clips(1.0), SETTINGS) == domain_probe(*clips(1.0), SETTINGS)


def test_features_that_are_not_finite_or_too_few_are_refused() -> None:
    known, scores, sources, singers = clips(1.0)
    with pytest.raises(DataError, match=r"80 clips.*\[79, 6\]"):
        domain_probe(known[1:], scores, sources, singers, SETTINGS)
    known[3, 3] = np.nan
    with pytest.raises(DataError, match=r"80 clips.*\[80, 6\]"):
        domain_probe(known, scores, sources, singers, SETTINGS)
