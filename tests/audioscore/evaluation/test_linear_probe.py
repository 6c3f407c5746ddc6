import math

import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.config import EvaluationSection
from audioscore.errors import DataError, UsageError
from audioscore.evaluation.linear_probe import correct_predictions, domain_probe, speaker_probe


def singer_clips(
    singers: int, each: int, dim: int, spread: float, seed: int = 0
) -> tuple[NDArray[np.float64], list[str]]:
    """Make clips with noise of size 1 around one point for each singer; `spread` is the size of the points."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, spread, (singers, dim))
    singer = np.repeat(np.arange(singers), each)
    return points[singer] + rng.normal(0, 1, (len(singer), dim)), [f"singer{one}" for one in singer]


def test_separate_singers_are_all_recognised() -> None:
    assert speaker_probe(*singer_clips(10, 6, 16, 20.0)) == 1.0


def test_random_features_give_chance_for_singers() -> None:
    values = [speaker_probe(*singer_clips(5, 40, 8, 0.0, seed)) for seed in range(10)]
    # Ten times 200 clips at 1/5: the standard error of the mean is sqrt(0.2 * 0.8 / 2000) = 0.009.
    assert np.mean(values) == pytest.approx(0.2, abs=0.03)


def test_with_many_more_channels_than_clips_too() -> None:
    assert speaker_probe(*singer_clips(6, 5, 512, 2.0)) == 1.0
    values = [speaker_probe(*singer_clips(4, 10, 256, 0.0, seed)) for seed in range(20)]
    assert np.mean(values) == pytest.approx(0.25, abs=0.06)


def test_constant_features_predict_one_singer() -> None:
    _, names = singer_clips(4, 5, 3, 1.0)
    assert speaker_probe(np.full((20, 3), 0.1), names) == 0.25


def test_every_singer_counts_the_same() -> None:
    """One separable singer with 90 clips and two inseparable ones with 5: 1, 1/2, 1/2, not 95 %."""
    rng = np.random.default_rng(1)
    far, near = rng.normal(50, 1, (90, 4)), rng.normal(0, 1, (10, 4))
    values = [
        speaker_probe(np.concatenate([far, rng.normal(0, 1, near.shape)]), ["a"] * 90 + ["b"] * 5 + ["c"] * 5)
        for _ in range(30)
    ]
    assert np.mean(values) == pytest.approx(2 / 3, abs=0.08)


def test_a_rare_singer_has_equal_weight() -> None:
    rng = np.random.default_rng(2)
    features = np.concatenate([rng.normal(0, 1, (300, 1)), rng.normal(3, 1, (12, 1))])
    names = np.array(["often"] * 300 + ["rare"] * 12)
    hits = correct_predictions(features, names.tolist())
    assert hits[names == "rare"].mean() > 0.8


def test_accuracy_is_near_sklearns_ridge_classifier() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    model_selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    for spread in (0.2, 0.4, 0.8):
        features, names = singer_clips(8, 20, 12, spread, seed=5)
        model = pipeline.make_pipeline(preprocessing.StandardScaler(), linear.RidgeClassifierCV(np.logspace(-3, 4, 15)))
        folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
        wanted = model_selection.cross_val_score(model, features, names, cv=folds, scoring="balanced_accuracy").mean()
        assert speaker_probe(features, names) == pytest.approx(wanted, abs=0.06)


def test_a_clip_is_not_in_its_own_training_folds() -> None:
    names = [f"s{one % 5}" for one in range(50)]
    assert speaker_probe(np.eye(50), names) < 0.4


def test_scale_shift_and_the_order_of_names_change_nothing() -> None:
    features, names = singer_clips(6, 10, 8, 0.7)
    wanted = correct_predictions(features, names, seed=3)
    assert 0 < wanted.mean() < 1
    np.testing.assert_array_equal(correct_predictions(1e3 * features + 7.0, names, seed=3), wanted)
    np.testing.assert_array_equal(
        correct_predictions(np.hstack([features, np.full((60, 2), 0.3)]), names, seed=3), wanted
    )


def test_the_seed_determines_the_folds() -> None:
    features, names = singer_clips(6, 10, 8, 0.5)
    same = [correct_predictions(features, names, seed=4) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert any((correct_predictions(features, names, seed=seed) != same[0]).any() for seed in range(5, 9))


def test_two_clips_a_singer_are_enough_with_any_number_of_folds() -> None:
    features, names = singer_clips(7, 2, 16, 20.0)
    for folds in (2, 3, 10):
        assert speaker_probe(features, names, folds=folds) == 1.0


@pytest.mark.parametrize(("features", "names", "message"), [
    (np.ones((3, 2)), ["a", "b"], r"\[N, D\] .*2 clips.*\[3, 2\]"),
    (np.ones(4), ["a"] * 4, r"4 clips.*\[4\]"), (np.ones((4, 0)), ["a"] * 4, r"4 clips.*\[4, 0\]"),
    (np.array([[1.0], [np.nan], [np.inf], [2.0]]), ["a", "a", "b", "b"], r"\b2 of 4 clips"),
    (np.ones((4, 2)), ["a"] * 4, r"2 singers .*\b1\b"), (np.ones((0, 2)), [], r"2 singers .*\b0\b"),
    (np.ones((6, 2)), ["a", "a", "b", "c", "d", "d"], r"\b2 of 4 singers .*\(b, c\)"),
])  # fmt: skip
def test_unusable_clips_are_an_error(features: NDArray[np.float64], names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        speaker_probe(features, names)


def test_one_cross_validation_fold_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"2 folds .*\b1\b"):
        speaker_probe(*singer_clips(3, 3, 2, 1.0), folds=1)


SETTINGS = EvaluationSection(resamples=200)
SourceClips = tuple[NDArray[np.float64], list[float], list[str | None], list[str | None]]


def source_clips(
    separation: float, *, voice: float = 0.0, each: int = 40, singers: int = 8, seed: int = 0
) -> SourceClips:
    """Make clips of two sources with scores of 80 to 90 and 8 singers each; features are noise, source and singer."""
    rng = np.random.default_rng(seed)
    source = np.repeat([0, 1], each)
    singer = np.tile(np.arange(each) % singers, 2) + singers * source
    features = rng.normal(0, 1, (2 * each, 6))
    features[:, 0] += separation * source
    features += voice * rng.normal(0, 1, (2 * singers, 6))[singer]
    scores = [float(value) for value in rng.uniform(80, 90, 2 * each)]
    return features, scores, [("ktv", "acapella")[one] for one in source], [f"s{one}" for one in singer]


def test_a_separable_source_is_predicted() -> None:
    found = domain_probe(*source_clips(20.0), SETTINGS)
    assert (found["balanced_accuracy"]["value"], found["balanced_accuracy"]["hi"]) == (1, 1)
    assert found["balanced_accuracy"]["lo"] == pytest.approx(1 / (1 + 1.96**2 / 16), abs=1e-3)  # Wilson's, 16 singers
    assert (found["chance"], found["clips"], found["reason"]) == (0.5, 80, None)
    assert {band: sum(own.values()) for band, own in found["bands"].items()}.keys() == {"80-85", "85-90"}
    assert sum(sum(own.values()) for own in found["bands"].values()) == 80


def test_random_features_give_chance() -> None:
    found = [domain_probe(*source_clips(0.0, seed=seed), SETTINGS) for seed in range(12)]
    assert np.mean([one["balanced_accuracy"]["value"] for one in found]) == pytest.approx(0.5, abs=0.06)
    assert sum(one["balanced_accuracy"]["lo"] < 0.5 < one["balanced_accuracy"]["hi"] for one in found) >= 9


def test_cross_validation_folds_are_by_singer() -> None:
    found = [domain_probe(*source_clips(0.0, voice=30.0, seed=seed), SETTINGS) for seed in range(12)]
    assert np.mean([one["balanced_accuracy"]["value"] for one in found]) == pytest.approx(0.5, abs=0.12)


def test_each_source_counts_the_same() -> None:
    _, _, sources, singers = source_clips(0.0, each=40)
    keep = [*range(40), *range(40, 46)]  # 40 of one, 6 of the other
    found = domain_probe(
        np.zeros((46, 6)), [82.0] * 46, [sources[k] for k in keep], [singers[k] for k in keep], SETTINGS
    )
    assert found["balanced_accuracy"]["value"] == 0.5  # constant features predict one source
    assert found["bands"] == {"80-85": {"acapella": 6, "ktv": 40}}


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    features, _, sources, singers = source_clips(1.5, each=24)
    found = domain_probe(features, [82.0] * 48, sources, singers, EvaluationSection(resamples=4000))
    value, lo, hi = (found["balanced_accuracy"][part] for part in ("value", "lo", "hi"))
    assert 0.5 < lo < value < hi <= 1
    assert hi - lo == pytest.approx(2 * 1.96 * math.sqrt(value * (1 - value) / 48), rel=0.5)


def test_no_band_with_both_sources_is_a_reason() -> None:
    features, _, sources, singers = source_clips(5.0)
    scores = [60.0 + 0.5 * index if source == "ktv" else 90.0 for index, source in enumerate(sources)]
    found = domain_probe(features, scores, sources, singers, SETTINGS)
    reason = found.pop("reason")
    assert found == {"balanced_accuracy": None, "chance": None, "clips": 0, "bands": {}}
    assert "acapella 90 to 90" in reason
    assert "ktv 60 to 79.5" in reason


def test_one_singer_of_a_source_or_an_unknown_source_is_not_enough() -> None:
    features, scores, sources, singers = source_clips(5.0)
    alone = [singer if source == "ktv" else "s99" for singer, source in zip(singers, sources, strict=True)]
    found = domain_probe(features, scores, sources, alone, SETTINGS)
    assert (found["balanced_accuracy"], found["clips"]) == (None, 0)
    unknown = [source if source == "ktv" else None for source in sources]
    found = domain_probe(features, scores, unknown, singers, SETTINGS)
    assert "unknown 8" in found["reason"]
    assert domain_probe(np.zeros((0, 4)), [], [], [], SETTINGS)["reason"]


def test_a_singer_in_both_sources_is_in_one_cross_validation_fold() -> None:
    features, scores, sources, _ = source_clips(20.0)
    shared: list[str | None] = [f"s{index % 8}" for index in range(80)]
    found = domain_probe(features, scores, sources, shared, SETTINGS)
    assert found["balanced_accuracy"]["value"] == 1.0


def test_the_same_clips_give_the_same_figures() -> None:
    assert domain_probe(*source_clips(1.0), SETTINGS) == domain_probe(*source_clips(1.0), SETTINGS)


def test_features_that_are_not_finite_or_too_few_are_an_error() -> None:
    features, scores, sources, singers = source_clips(1.0)
    with pytest.raises(DataError, match=r"80 clips.*\[79, 6\]"):
        domain_probe(features[1:], scores, sources, singers, SETTINGS)
    features[3, 3] = np.nan
    with pytest.raises(DataError, match=r"80 clips.*\[80, 6\]"):
        domain_probe(features, scores, sources, singers, SETTINGS)
