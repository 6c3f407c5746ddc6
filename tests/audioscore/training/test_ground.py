import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audioscore.data.split.sort import read_split
from audioscore.errors import DataError, ModelError
from audioscore.files import read_json, write_json
from audioscore.scoring.checkpoint import DESCRIPTION
from audioscore.training.recipe import read_ground


def read(ground: Any, index: Path, **training: Any) -> Any:
    settings = ground.config(**training).training
    return read_ground("baseline", index, ground.features, settings, "d.dir", "abc", "cpu")


def test_the_identity_depends_on_settings_but_not_on_processes_or_seeds(ground: Any) -> None:
    same = read(ground, ground.index).identity
    assert read(ground, ground.index, processes=2, checkpoint_steps=7, seeds=[9]).identity == same
    for changed in ({"width": 9}, {"save": "full"}, {"init": "warm:/somewhere"}):
        assert read(ground, ground.index, **changed).identity != same


def test_a_warm_start_that_has_seen_test_clips_is_refused(ground: Any, tmp_path: Path) -> None:
    ground.train("baseline", tmp_path / "plan", seeds=[1], epochs=1)
    scorer = tmp_path / "plan" / "seed-1"
    warm = read(ground, ground.index, init=f"warm:{scorer}")
    assert warm.origin == "warm: seed-1"
    seen = read_split(ground.index, "test")[0]
    description = read_json(scorer / DESCRIPTION)
    write_json(scorer / DESCRIPTION, {**description, "seen_clips": [*description["seen_clips"], seen.sha256]})
    with pytest.raises(DataError, match=rf"\b1 of the \d+ test clips \({seen.audio_file}\)"):
        read(ground, ground.index, init=f"warm:{scorer}")


def test_an_encoder_that_the_features_are_not_of_is_refused(ground: Any, tmp_path: Path) -> None:
    features = Path(shutil.copytree(ground.features, tmp_path / "features"))
    config = features / "encoders" / "muq" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ModelError, match=r"\bmuq\b"):
        replace(ground, features=features).train("baseline", tmp_path / "plan", seeds=[1], epochs=1)
    assert not (tmp_path / "plan" / "seed-1").exists()


def test_extracting_again_leaves_saved_scorers_alone(ground: Any, tmp_path: Path) -> None:
    again = ground.extract(tmp_path / "features")
    again.train("baseline", tmp_path / "plan", seeds=[1], epochs=1)
    weights = tmp_path / "plan" / "seed-1" / "encoders" / "muq" / "model.safetensors"
    before = weights.stat().st_ino, weights.read_bytes()
    ground.extract(tmp_path / "features")
    assert (weights.stat().st_ino, weights.read_bytes()) == before
    assert (tmp_path / "features" / "encoders" / "muq" / "model.safetensors").stat().st_ino != before[0]
