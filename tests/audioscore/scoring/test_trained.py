from dataclasses import replace
from pathlib import Path

import pytest

from audioscore.errors import ModelError
from audioscore.scoring.trained import TrainedPlan, read_trained, write_trained


@pytest.fixture
def trained(tmp_path: Path) -> TrainedPlan:
    curve = [{"epoch": 1, "train_loss": 0.7}, {"epoch": 2, "train_loss": 0.5}]
    return TrainedPlan("hybrid", tmp_path, 2, {1: 0.3, 2: 0.4}, {1: curve, 2: curve[:1]}, 4321, ("mlp.0.weight",))


def test_what_was_written_comes_back_with_seeds_as_numbers(trained: TrainedPlan) -> None:
    write_trained(trained)
    assert read_trained(trained.folder) == trained
    assert "/" not in (trained.folder / "plan.json").read_text()


def test_the_representatives_scorer_is_the_default(trained: TrainedPlan) -> None:
    assert trained.scorer_folder() == trained.folder / "seed-2"
    assert trained.scorer_folder(1) == trained.folder / "seed-1"
    assert replace(trained, representative=0).scorer_folder() == trained.folder / "seed-0"


def test_a_training_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no plan\.json; its training did not finish\. Run it again\."):
        read_trained(tmp_path)
