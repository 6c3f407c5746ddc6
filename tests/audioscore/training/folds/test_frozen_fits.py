"""Fits of several heads at once against the plain training loop, with dropout off."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from audioscore.errors import ModelError
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.training.batches import draw_batches
from audioscore.training.data import TrainingSplit, fit_statistics
from audioscore.training.distributed import start
from audioscore.training.folds import frozen_fits
from audioscore.training.folds.frozen_fits import ClipStatistics, FrozenFit, fit_frozen
from audioscore.training.step import Stepper

CPU = torch.device("cpu")
KINDS = {"muq": ("muq",), "campplus": ("campplus",), "both": ("muq", "campplus")}
# Fits of 48 and 41 clips in batches of 16: three batches each, the last ones of different size.
ROWS = (np.arange(48), np.arange(20, 61))


def part(split: TrainingSplit, rows: Any, kinds: tuple[str, ...] = ("muq", "campplus")) -> TrainingSplit:
    features = [{kind: split.features[row][kind] for kind in kinds} for row in rows]
    lists = ([values[row] for row in rows] for values in (split.scores, split.sources, split.keys, split.groups))
    return TrainingSplit(features, *lists)  # type: ignore[arg-type]


def new_head(kinds: tuple[str, ...], seed: int, split: TrainingSplit, **options: Any) -> ScoreHead:
    torch.manual_seed(seed)
    head = ScoreHead(
        {kind: {"muq": 6, "campplus": 5}[kind] for kind in kinds}, width=8, hidden=8, dropout=0.0, **options
    )
    fit_statistics(ScoreNetwork(head), split.features)
    return head


def plain(head: ScoreHead, split: TrainingSplit, settings: Any, seed: int, epochs: int) -> list[ScoreNetwork]:
    """Networks after each epoch of the training loop's own steps."""
    stepper = Stepper(start("cpu"), ScoreNetwork(copy.deepcopy(head)), None, split, settings, seed)
    after, step = [], 0
    for epoch in range(1, epochs + 1):
        stepper.module.train()
        drawn = draw_batches(
            split.scores, split.sources, split.groups, keys=split.keys, batch_clips=settings.batch_clips, seed=seed,
            epoch=epoch,
        )  # fmt: skip
        for rows in drawn:
            stepper.step(rows, step, "")
            step += 1
        after.append(copy.deepcopy(stepper.network))
    return after


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("options", [{}, {"kind": "attention"}, {"pooled": True}])
@pytest.mark.parametrize("covariance", [True, False])
def test_fits_equal_the_training_loop(
    toys: Any, kinds: str, options: dict[str, Any], covariance: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not covariance:
        monkeypatch.setattr(frozen_fits, "FRAMES_PER_CHANNEL", 100)
    split = part(toys.train, range(64), KINDS[kinds])
    settings = toys.settings(
        epochs=5, schedule="cosine", warmup_share=0.2, objective=replace(toys.settings().objective, absolute_weight=0.3)
    )
    seeds = (1, 2)
    heads = [
        new_head(KINDS[kinds], seed, part(split, rows, KINDS[kinds]), **options)
        for seed, rows in zip(seeds, ROWS, strict=True)
    ]
    clips = ClipStatistics.read(split.features, CPU)
    assert clips is not None
    assert (clips.covariance is not None) == (covariance and "muq" in KINDS[kinds])
    expected = [
        plain(head, part(split, rows, KINDS[kinds]), settings, seed, 3)
        for head, rows, seed in zip(heads, ROWS, seeds, strict=True)
    ]
    losses: list[float] = []
    fits = [FrozenFit(rows, seed) for rows, seed in zip(ROWS, seeds, strict=True)]
    outputs = fit_frozen(
        heads, clips, split, fits, settings, epochs=3, observe=lambda epoch, loss, raw: losses.append(loss)
    )
    assert outputs.shape == (3, 2, 64)
    assert losses[2] < losses[0]
    for index, networks in enumerate(expected):
        for epoch, network in enumerate(networks):
            np.testing.assert_allclose(
                outputs[epoch, index], raw_outputs(network, split.features), atol=2e-3, rtol=2e-3
            )
        again = raw_outputs(ScoreNetwork(heads[index]), split.features)
        np.testing.assert_allclose(again, outputs[2, index], atol=1e-5)


def test_fewer_epochs_are_the_beginning_of_the_same_fit(toys: Any) -> None:
    split, settings = part(toys.train, range(64)), toys.settings(epochs=6, schedule="cosine")
    clips = ClipStatistics.read(split.features, CPU)
    assert clips is not None
    fits, observe = [FrozenFit(np.arange(64), 1)], lambda *_: None
    found = [
        fit_frozen(
            [new_head(("muq", "campplus"), 1, split)], clips, split, fits, settings, epochs=count, observe=observe
        )
        for count in (2, 4)
    ]
    np.testing.assert_array_equal(found[0], found[1][:2])


def test_clips_that_do_not_fit_into_memory_are_not_read(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_fits, "MEMORY", 1000)
    assert ClipStatistics.read(toys.train.features, CPU) is None
    assert ClipStatistics.read([{"campplus": clip["campplus"]} for clip in toys.train.features], CPU) is not None


def test_a_clip_whose_features_are_not_finite_is_named(toys: Any) -> None:
    split = part(toys.train, range(64))
    broken = replace(
        split, features=[*split.features[:63], {**split.features[63], "campplus": torch.full((5,), np.inf)}]
    )
    clips = ClipStatistics.read(broken.features, CPU)
    assert clips is not None
    head = new_head(("muq", "campplus"), 1, split)
    with pytest.raises(ModelError, match="seed 4"):
        fit_frozen([head], clips, broken, [FrozenFit(np.arange(64), 4)], toys.settings(), epochs=1)


def test_batches_without_an_order_change_nothing(toys: Any) -> None:
    split = part(toys.train, range(64))
    equal = replace(split, scores=[70.0] * 64)
    clips = ClipStatistics.read(split.features, CPU)
    assert clips is not None
    head = new_head(("muq", "campplus"), 1, split)
    before = raw_outputs(ScoreNetwork(copy.deepcopy(head)), split.features)
    fit_frozen([head], clips, equal, [FrozenFit(np.arange(64), 1)], toys.settings(), epochs=2)
    np.testing.assert_array_equal(raw_outputs(ScoreNetwork(head), split.features), before)
