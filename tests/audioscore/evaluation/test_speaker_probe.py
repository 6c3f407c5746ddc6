import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.errors import DataError, UsageError
from audioscore.evaluation.linear_probe import recognised, speaker_probe


def clips(singers: int, each: int, dim: int, spread: float, seed: int = 0) -> tuple[NDArray[np.float64], list[str]]:
    """Clips around one point a singer, `spread` the size of the points among noise of size 1."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, spread, (singers, dim))
    who = np.repeat(np.arange(singers), each)
    return points[who] + rng.normal(0, 1, (len(who), dim)), [f"singer{one}" for one in who]


def test_separate_singers_are_all_recognised() -> None:
    assert speaker_probe(*clips(10, 6, 16, 20.0)) == 1.0


def test_random_features_give_chance() -> None:
    values = [speaker_probe(*clips(5, 40, 8, 0.0, seed)) for seed in range(10)]
    # Ten times 200 clips at 1/5: the standard error of the mean is 0.2 * 0.8 / 2000 under the root, 0.009.
    assert np.mean(values) == pytest.approx(0.2, abs=0.03)


def test_with_many_more_channels_than_clips_too() -> None:
    assert speaker_probe(*clips(6, 5, 512, 2.0)) == 1.0
    values = [speaker_probe(*clips(4, 10, 256, 0.0, seed)) for seed in range(20)]
    assert np.mean(values) == pytest.approx(0.25, abs=0.06)


def test_constant_features_name_one_singer_for_all() -> None:
    _, names = clips(4, 5, 3, 1.0)
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


def test_a_rare_singer_is_not_drowned() -> None:
    rng = np.random.default_rng(2)
    features = np.concatenate([rng.normal(0, 1, (300, 1)), rng.normal(3, 1, (12, 1))])
    names = np.array(["often"] * 300 + ["rare"] * 12)
    hits = recognised(features, names.tolist())
    assert hits[names == "rare"].mean() > 0.8


def test_accuracy_is_near_sklearns_ridge_classifier() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    model_selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    for spread in (0.2, 0.4, 0.8):
        features, names = clips(8, 20, 12, spread, seed=5)
        model = pipeline.make_pipeline(preprocessing.StandardScaler(), linear.RidgeClassifierCV(np.logspace(-3, 4, 15)))
        folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
        wanted = model_selection.cross_val_score(model, features, names, cv=folds, scoring="balanced_accuracy").mean()
        assert speaker_probe(features, names) == pytest.approx(wanted, abs=0.06)


def test_a_clip_is_not_in_its_own_training_folds() -> None:
    names = [f"s{one % 5}" for one in range(50)]
    assert speaker_probe(np.eye(50), names) < 0.4


def test_scale_shift_and_the_order_of_names_change_nothing() -> None:
    features, names = clips(6, 10, 8, 0.7)
    wanted = recognised(features, names, seed=3)
    assert 0 < wanted.mean() < 1
    np.testing.assert_array_equal(recognised(1e3 * features + 7.0, names, seed=3), wanted)
    np.testing.assert_array_equal(recognised(np.hstack([features, np.full((60, 2), 0.3)]), names, seed=3), wanted)


def test_the_same_seed_gives_the_same_answer_and_another_deals_again() -> None:
    features, names = clips(6, 10, 8, 0.5)
    same = [recognised(features, names, seed=4) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert any((recognised(features, names, seed=seed) != same[0]).any() for seed in range(5, 9))


def test_two_clips_a_singer_are_enough_with_any_number_of_folds() -> None:
    features, names = clips(7, 2, 16, 20.0)
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


def test_one_fold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"2 folds .*\b1\b"):
        speaker_probe(*clips(3, 3, 2, 1.0), folds=1)
