from typing import Any

import pytest
import torch

from audioscore.config import Plan, TrainingSection
from audioscore.encoders.features import Kind
from audioscore.scoring.head import build_head
from audioscore.scoring.scorer import Tuning
from audioscore.training.recipe import fit_settings, recipe_of

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
def test_candidates_get_what_is_asked_and_differ_by_the_voice_alone(plan: Plan, dims: dict[str, int]) -> None:
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
def test_what_of_muq_stands_before_the_head(changed: dict[str, Any], tuning: Tuning | None) -> None:
    assert recipe_of("baseline", TrainingSection(**changed), DIMS).tuning == tuning


def test_the_predecessors_head_is_the_baselines_and_the_hybrids_is_its_kin() -> None:
    settings = TrainingSection(head="predecessor", hidden=48)
    assert recipe_of("baseline", settings, DIMS).head == {"kind": "predecessor", "dim": 32, "hidden": 48}
    assert recipe_of("hybrid", settings, DIMS).head["kind"] == "songeval"
    assert recipe_of("hybrid", TrainingSection(fusion="pooled"), DIMS).head["pooled"] is True


@pytest.mark.parametrize("plan", ["baseline", "hybrid", "campplus_only", "muq_frozen"])
@pytest.mark.parametrize("head", ["light", "songeval", "predecessor"])
def test_every_plans_head_can_be_built(plan: Plan, head: str) -> None:
    settings = TrainingSection.model_validate({"head": head, "width": 8, "hidden": 8})
    with torch.random.fork_rng(devices=[]):
        assert build_head(recipe_of(plan, settings, DIMS).head).representation_dim > 0


def test_settings_of_a_fit_are_those_of_the_configuration() -> None:
    settings = TrainingSection(
        epochs=7, batch_clips=9, micro_clips=3, loss="list_mle", absolute_weight=0.3, margin_per_point=0.2
    )
    found = fit_settings(settings, recipe_of("baseline", settings, DIMS))
    assert (found.epochs, found.batch_clips, found.micro_clips, found.clip_norm) == (7, 9, 3, 1.0)
    assert (found.objective.loss, found.objective.absolute_weight) == ("list_mle", 0.3)
    assert found.objective.margin_per_point == 0.2
