import json
from dataclasses import replace
from pathlib import Path

import pytest

from audioscore.errors import ModelError
from audioscore.scoring.trained_plan import (
    Outcome,
    SpeakerFigures,
    TrainedPlan,
    read_outcome,
    read_trained,
    write_outcome,
    write_trained,
)

CURVE = [{"epoch": 1, "train_loss": 0.7}, {"epoch": 2, "train_loss": 0.5}]
OUTCOMES = {
    1: Outcome(0.3, 0.35, CURVE, 4321, ("head.regressor.0.weight", "head.attention.score.bias")),
    2: Outcome(0.4, 0.25, CURVE[:1], 4321, ("head.regressor.0.weight",), SpeakerFigures(0.5, 0.25, 8)),
}


@pytest.fixture
def trained(tmp_path: Path) -> TrainedPlan:
    return TrainedPlan("hybrid", tmp_path, 2, OUTCOMES)


def test_a_written_plan_is_read_with_integer_seeds(trained: TrainedPlan) -> None:
    write_trained(trained)
    again = read_trained(trained.folder)
    assert again == trained
    assert "/" not in (trained.folder / "plan.json").read_text()
    assert isinstance(again.outcomes[1].trainable, tuple)
    assert (again.outcomes[1].speakers, again.outcomes[2].speakers) == (None, SpeakerFigures(0.5, 0.25, 8))


def test_figures_and_curves_by_seed(trained: TrainedPlan) -> None:
    assert (trained.validation, trained.curves) == ({1: 0.3, 2: 0.4}, {1: CURVE, 2: CURVE[:1]})
    assert trained.chosen is OUTCOMES[2]
    assert replace(trained, representative=1).chosen is OUTCOMES[1]


def test_the_representatives_scorer_is_the_default(trained: TrainedPlan) -> None:
    assert trained.scorer_folder() == trained.folder / "seed-2"
    assert trained.scorer_folder(1) == trained.folder / "seed-1"
    assert trained.scorer_folder(0) == trained.folder / "seed-0"
    assert replace(trained, representative=0).scorer_folder() == trained.folder / "seed-0"


def test_a_training_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"plan\.json"):
        read_trained(tmp_path)


@pytest.mark.parametrize("seed", [1, 2])
def test_an_outcome_is_read_by_the_same_training(tmp_path: Path, seed: int) -> None:
    note = tmp_path / "seed.json"
    assert read_outcome(note, "0123") is None
    write_outcome(note, "0123", OUTCOMES[seed])
    assert read_outcome(note, "0123") == OUTCOMES[seed]


def test_an_outcome_of_another_training_is_refused(tmp_path: Path) -> None:
    note = tmp_path / "seed-1.json"
    write_outcome(note, "0123", OUTCOMES[1])
    with pytest.raises(ModelError, match=r"seed-1\.json: (?!damaged)"):
        read_outcome(note, "4567")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"identity": "0123"}', '{"identity": "0123", "curve": 1}'])
def test_a_damaged_outcome_is_refused(tmp_path: Path, text: str) -> None:
    note = tmp_path / "seed-1.json"
    note.write_text(text)
    with pytest.raises(ModelError, match=r"seed-1\.json: damaged.* --resume"):
        read_outcome(note, "0123")


def test_an_outcome_with_a_missing_part_is_refused(tmp_path: Path) -> None:
    note = tmp_path / "seed-2.json"
    write_outcome(note, "0123", OUTCOMES[2])
    whole = json.loads(note.read_text())
    for part in set(whole) - {"centre"}:  # which earlier versions did not write
        note.write_text(json.dumps({name: value for name, value in whole.items() if name != part}))
        with pytest.raises(ModelError, match=r"damaged"):
            read_outcome(note, "0123")
