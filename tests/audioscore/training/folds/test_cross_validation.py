import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.data.split.assign import assign_folds, assign_splits, singer_groups
from audioscore.data.split.sort import read_split
from audioscore.errors import DataError, ModelError
from audioscore.evaluation.metrics import within_source_spearman
from audioscore.scoring.scorer import CANDIDATES
from audioscore.scoring.trained_plan import OutOfFold, TrainedPlan, read_trained
from audioscore.training.folds import cross_validation, frozen_fits

FOLDS = 4


def scored(corpus: Any) -> list[Clip]:
    return [clip for split in ("train", "val") for clip in read_split(corpus.index, split)]


def held_out(plan: TrainedPlan) -> OutOfFold:
    found = OutOfFold.read(plan.folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def hybrid(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> TrainedPlan:
    return corpus.train("hybrid", tmp_path_factory.mktemp("plans") / "hybrid", folds=FOLDS)


def test_every_scored_clip_has_an_output_and_the_best_epoch_is_chosen(corpus: Any, hybrid: TrainedPlan) -> None:
    clips, found = scored(corpus), held_out(hybrid)
    assert set(found.raw) == {clip.sha256 for clip in clips}
    raw = [found.raw[str(clip.sha256)] for clip in clips]
    figure = within_source_spearman([clip.score for clip in clips], raw, [clip.source for clip in clips])
    curve = hybrid.curves[1]
    assert [entry["epoch"] for entry in curve] == [1, 2, 3, 4, 5, 6]
    assert found.epochs == max(curve, key=lambda entry: entry["selection"])["epoch"]
    assert [outcome.selection for outcome in hybrid.outcomes.values()] == pytest.approx([figure, figure])
    assert figure > 0.3
    assert read_trained(hybrid.folder) == hybrid


def test_scorers_are_trained_on_all_clips_and_calibrated_out_of_fold(corpus: Any, hybrid: TrainedPlan) -> None:
    from audioscore.scoring.checkpoint import load_scorer

    clips, found = scored(corpus), held_out(hybrid)
    for seed, outcome in hybrid.outcomes.items():
        description = load_scorer(hybrid.scorer_folder(seed)).description
        assert set(description.seen_clips) == set(found.raw)
        assert (description.training["folds"], description.training["best_epoch"]) == (FOLDS, found.epochs)
        knots = np.array(description.calibration.raw) - outcome.centre
        raw = [found.raw[str(clip.sha256)] for clip in clips]
        assert min(raw) <= knots[0] <= knots[-1] <= max(raw)


def test_no_clip_is_predicted_by_a_model_that_was_trained_on_its_singer(
    corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fits that leave a clip out: none of their clips is of its singer, and all plans have the same folds."""
    seen: dict[str, list[Any]] = {}

    def stop(data: Any, divided: Any, *_: Any) -> Any:
        seen[data.plan] = [divided, data]
        raise InterruptedError

    monkeypatch.setattr(cross_validation, "fit_all", stop)
    for plan in CANDIDATES:
        with pytest.raises(InterruptedError):
            corpus.train(plan, corpus.store.parent / f"stopped-{plan}", folds=FOLDS)
    divided = seen["baseline"][0]
    np.testing.assert_array_equal(divided.fold_of, seen["hybrid"][0].fold_of)
    assert len(divided.fits) == FOLDS
    for fold, fit in enumerate(divided.fits):
        inside = {divided.clips[row].singer_id for row in fit.rows}
        outside = {
            clip.singer_id for clip, number in zip(divided.clips, divided.fold_of, strict=True) if number == fold
        }
        assert outside
        assert not inside & outside


def test_large_features_are_fitted_one_after_another(
    corpus: Any, tmp_path: Path, hybrid: TrainedPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_fits, "MEMORY", 1)
    apart = corpus.train("hybrid", tmp_path / "apart", folds=FOLDS)
    assert set(held_out(apart).raw) == set(held_out(hybrid).raw)
    # Only the random numbers of dropout differ.
    values = [list(held_out(plan).raw.values()) for plan in (apart, hybrid)]
    assert np.corrcoef(*values)[0, 1] > 0.8


def test_a_tuned_muq_can_be_cross_validated(corpus: Any, tmp_path: Path) -> None:
    tuned = corpus.train(
        "baseline", tmp_path, folds=3, seeds=[1], epochs=1, tuning="lora", lora={"rank": 4, "alpha": 6},
        head_warmup_epochs=1, adversary={"weight": 0.1},
    )  # fmt: skip
    assert held_out(tuned).epochs == 1
    assert any("lora" in name for name in tuned.chosen.trainable)


def test_by_default_only_a_frozen_muq_is_cross_validated(corpus: Any, tmp_path: Path) -> None:
    tuned = {"seeds": [1], "epochs": 1, "tuning": "lora", "lora": {"rank": 4, "alpha": 6}}
    assert OutOfFold.read(corpus.train("baseline", tmp_path / "lora", folds=None, **tuned).folder) is None
    assert held_out(corpus.train("campplus_only", tmp_path / "frozen", folds=None, seeds=[1], epochs=1)).folds == 5


def test_a_finished_plan_is_kept_and_another_training_is_not(
    corpus: Any, hybrid: TrainedPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "fit_all", None)
    assert corpus.train("hybrid", hybrid.folder, folds=FOLDS, resume=True) == hybrid
    with pytest.raises(ModelError, match="out_of_fold"):
        corpus.train("hybrid", hybrid.folder, folds=FOLDS, resume=True, epochs=3)


@pytest.mark.parametrize("changed", [{"folds": 3}, {"seeds": [1, 2, 3]}, {"folds": 1}])
def test_other_folds_or_seeds_are_trained_again(corpus: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"folds": FOLDS, "seeds": [1], "epochs": 1}
    first = corpus.train("campplus_only", tmp_path, **given)
    again = corpus.train("campplus_only", tmp_path, resume=True, **{**given, **changed})
    assert set(again.outcomes) == set(changed.get("seeds", [1]))
    found = OutOfFold.read(tmp_path)
    if changed.get("folds") == 1:
        assert found is None
    else:
        assert found is not None
        assert found.fits != ""
        assert found.folds == changed.get("folds", FOLDS)
    assert read_trained(first.folder) == again


def test_few_singers_have_fewer_folds_by_default(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for groups, folds in ((4, 4), (3, 3), (2, None)):
        monkeypatch.setattr(
            cross_validation, "singer_groups", lambda clips, path, n=groups: [f"g{k % n}" for k in range(len(clips))]
        )
        found = OutOfFold.read(
            corpus.train("campplus_only", tmp_path / str(groups), folds=None, seeds=[1], epochs=1).folder
        )
        assert (found.folds if found else None) == folds


def test_too_few_singers_for_the_folds(corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\b40 folds"):
        corpus.train("baseline", tmp_path, folds=40)


def test_joined_singers_are_in_one_fold(tmp_path: Path) -> None:
    clips = [Clip(f"{n}.wav", 60.0 + n, f"s{n // 2}", source="ktv", sha256=f"{n:02d}") for n in range(24)]
    path = tmp_path / "splits.json"
    path.write_text(
        json.dumps(
            {
                "seed": 1,
                "groups": {},
                "joined": dict.fromkeys(("sha256:00", "sha256:01", "sha256:10", "sha256:11"), "singer:s0"),
            }
        )
    )
    names = singer_groups(clips, path)
    assert len(set(names)) == 11
    folds = assign_folds(clips, names, 5)
    assert set(folds) == set(range(5))
    assert len({fold for fold, name in zip(folds, names, strict=True) if name == "singer:s0"}) == 1
    counts = np.bincount(folds)
    assert counts.max() - counts.min() <= 4
    assert assign_folds(clips[::-1], names[::-1], 5) == folds[::-1]
    assert len(set(singer_groups(clips, tmp_path / "none.json"))) == 12


def test_estimated_voices_stay_joined_when_the_data_are_sorted_again() -> None:
    clips = [Clip(f"{n:02d}.wav", 60.0 + n, source="ktv", sha256=f"{n:02d}") for n in range(24)]
    voices = [{f"{3 * n + k:02d}.wav" for k in range(3)} for n in range(8)]
    first = assign_splits(clips, val=0.25, test=0.25, seed=1, same_voice=voices)
    again = assign_splits(clips, val=0.25, test=0.25, seed=1, previous=first.groups, joined=first.joined)
    assert again.joined == first.joined
    assert (len(first.joined), len(set(first.joined.values()))) == (24, 8)


def test_rows_of_one_recording_are_in_one_group(tmp_path: Path) -> None:
    rows = [Clip("a.wav", 60.0, "a", sha256="x"), Clip("b.wav", sha256="x"), Clip("c.wav", 70.0, "c", sha256="y")]
    names = singer_groups(rows, tmp_path / "none.json")
    assert names[0] == names[1] != names[2]


def test_ordered_recordings_without_scores_are_trained_on_and_not_predicted(corpus: Any, tmp_path: Path) -> None:
    train = read_split(corpus.index, "train")
    write_index(tmp_path / "index" / "train.json", [train[4:], [replace(clip, score=None) for clip in train[:4]]])
    for split in ("val", "test"):
        write_index(tmp_path / "index" / f"{split}.json", [read_split(corpus.index, split)])
    other = replace(corpus, index=tmp_path)
    plan = other.train("campplus_only", tmp_path / "plan", folds=3, seeds=[1])
    assert not {clip.sha256 for clip in train[:4]} & set(held_out(plan).raw)
    assert len(held_out(plan).raw) == len(scored(corpus)) - 4
