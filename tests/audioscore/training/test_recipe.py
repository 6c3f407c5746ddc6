import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from audioscore.config import Plan, TrainingSection
from audioscore.data.split.sort import read_split
from audioscore.encoders.features import Kind
from audioscore.errors import DataError, ModelError
from audioscore.files import read_json, write_json
from audioscore.scoring.checkpoint import DESCRIPTION
from audioscore.scoring.head import build_head
from audioscore.scoring.scorer import Tuning
from audioscore.training.recipe import fit_settings, load_plan_data, recipe_of

DIMS: dict[Kind, int] = {"muq": 32, "campplus": 16}
RICH: dict[str, Any] = {
    "head": "songeval", "tuning": "lora", "layers": "mix", "adversary": {"weight": 0.5}, "width": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "dims", "kind"), [("campplus_only", {"campplus": 16}, "light"), ("muq_frozen", {"muq": 32}, "attention")]
)
def test_controls_are_light_frozen_and_without_an_adversary(plan: Plan, dims: dict[str, int], kind: str) -> None:
    recipe = recipe_of(plan, TrainingSection(**RICH), DIMS)
    assert (recipe.tuning, recipe.adversary) == (None, False)
    assert (recipe.head["dims"], recipe.head["kind"]) == (dims, kind)
    assert fit_settings(TrainingSection(**RICH), recipe).adversary_weight == 0.0


@pytest.mark.parametrize(("plan", "dims"), [("baseline", {"muq": 32}), ("hybrid", {"muq": 32, "campplus": 16})])
def test_candidates_follow_the_settings_and_differ_only_by_the_voice(plan: Plan, dims: dict[str, int]) -> None:
    settings = TrainingSection(**RICH)
    recipe = recipe_of(plan, settings, DIMS)
    assert recipe.head == {
        "dims": dims, "width": 16, "hidden": 64, "dropout": 0.2, "kind": "songeval", "pooled": False, "heads": 8,
        "layers": 4,
    }  # fmt: skip
    assert recipe.tuning == Tuning("lora", 0, 128, 48, mix=True)
    assert recipe.adversary
    assert fit_settings(settings, recipe).adversary_weight == 0.5


@pytest.mark.parametrize(
    ("changed", "tuning"),
    [
        ({}, None),
        ({"tune_from": 1}, None),
        ({"layers": "mix", "tune_from": 1}, Tuning("frozen", 1, mix=True)),
        ({"tuning": "full", "tune_from": 1}, Tuning("full", 1)),
        ({"tuning": "lora", "lora": {"rank": 4, "alpha": 6}}, Tuning("lora", 0, 4, 6)),
    ],
)
def test_the_tuned_part_of_muq(changed: dict[str, Any], tuning: Tuning | None) -> None:
    assert recipe_of("baseline", TrainingSection(**changed), DIMS).tuning == tuning


def test_the_legacy_head_is_only_for_the_baseline() -> None:
    settings = TrainingSection(head="legacy", hidden=48)
    assert recipe_of("baseline", settings, DIMS).head == {"kind": "predecessor", "dim": 32, "hidden": 48}
    assert recipe_of("hybrid", settings, DIMS).head["kind"] == "songeval"
    assert recipe_of("hybrid", TrainingSection(fusion="pooled"), DIMS).head["pooled"] is True


@pytest.mark.parametrize("plan", ["baseline", "hybrid", "campplus_only", "muq_frozen"])
@pytest.mark.parametrize("head", ["light", "songeval", "legacy"])
def test_every_plans_head_can_be_built(plan: Plan, head: str) -> None:
    settings = TrainingSection.model_validate({"head": head, "width": 8, "hidden": 8})
    with torch.random.fork_rng(devices=[]):
        assert build_head(recipe_of(plan, settings, DIMS).head).representation_dim > 0


def test_fit_settings_are_those_of_the_configuration() -> None:
    settings = TrainingSection(
        epochs=7, batch_clips=9, micro_clips=3, loss="list_mle", absolute_weight=0.3, margin_per_point=0.2
    )
    found = fit_settings(settings, recipe_of("baseline", settings, DIMS))
    assert (found.epochs, found.batch_clips, found.micro_clips, found.clip_norm) == (7, 9, 3, 1.0)
    assert (found.objective.loss, found.objective.absolute_weight) == ("list_mle", 0.3)
    assert found.objective.margin_per_point == 0.2


def read(corpus: Any, index: Path, **training: Any) -> Any:
    settings = corpus.config(**training).training
    return load_plan_data("baseline", index, corpus.features, settings, "d.dir", "abc", "cpu")


def test_the_identity_depends_on_settings_but_not_on_processes_or_seeds(corpus: Any) -> None:
    same = read(corpus, corpus.index).identity
    assert read(corpus, corpus.index, processes=2, checkpoint_steps=7, seeds=[9]).identity == same
    for changed in ({"width": 9}, {"save": "full"}, {"init": "warm:/somewhere"}):
        assert read(corpus, corpus.index, **changed).identity != same


def test_a_warm_start_trained_on_test_clips_is_refused(corpus: Any, tmp_path: Path) -> None:
    corpus.train("baseline", tmp_path / "plan", seeds=[1], epochs=1)
    scorer = tmp_path / "plan" / "seed-1"
    warm = read(corpus, corpus.index, init=f"warm:{scorer}")
    assert warm.origin == "warm: seed-1"
    seen = read_split(corpus.index, "test")[0]
    description = read_json(scorer / DESCRIPTION)
    write_json(scorer / DESCRIPTION, {**description, "seen_clips": [*description["seen_clips"], seen.sha256]})
    with pytest.raises(DataError, match=rf"\b1 of the \d+ test clips \({seen.audio_file}\)"):
        read(corpus, corpus.index, init=f"warm:{scorer}")


def test_an_encoder_other_than_that_of_the_features_is_refused(corpus: Any, tmp_path: Path) -> None:
    features = Path(shutil.copytree(corpus.features, tmp_path / "features"))
    config = features / "encoders" / "muq" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ModelError, match=r"\bmuq\b"):
        replace(corpus, features=features).train("baseline", tmp_path / "plan", seeds=[1], epochs=1)
    assert not (tmp_path / "plan" / "seed-1").exists()


def test_extracting_again_does_not_change_saved_scorers(corpus: Any, tmp_path: Path) -> None:
    again = corpus.extract(tmp_path / "features")
    again.train("baseline", tmp_path / "plan", seeds=[1], epochs=1)
    weights = tmp_path / "plan" / "seed-1" / "encoders" / "muq" / "model.safetensors"
    before = weights.stat().st_ino, weights.read_bytes()
    corpus.extract(tmp_path / "features")
    assert (weights.stat().st_ino, weights.read_bytes()) == before
    assert (tmp_path / "features" / "encoders" / "muq" / "model.safetensors").stat().st_ino != before[0]
