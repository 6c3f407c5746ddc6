"""Head warm-up: one learning curve, one step count, and the same result after a kill."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from audioscore.encoders.muq_layers import MuQSuffix
from audioscore.training.data import fit_statistics
from audioscore.training.loop import Fit, HeadWarmup, fit_network
from audioscore.training.recipe import load_plan_data

STEPS = 8 + 12  # two epochs of the head, three that follow, of 64 clips in batches of 16
Script = Callable[[list[float]], list[dict[str, Any]]]
LORA = {"tuning": "lora", "lora": {"rank": 4, "alpha": 6}}
SHORT = {"seeds": [1], "epochs": 2, "batch_clips": 10}


class Killed(Exception):
    """Ends a fit as a kill does."""


class Recorder:
    """Collects the calls of a callback, and ends the fit after step `last`."""

    def __init__(self, last: int = -1) -> None:
        self.last = last
        self.calls: list[Any] = []

    def on_start(self, step: int, steps: int) -> None:
        self.calls.append((step, steps))

    def on_step(self, step: int) -> None:
        self.calls.append(step)
        if step == self.last:
            raise Killed

    def on_epoch(self, entry: dict[str, float]) -> None:
        self.calls.append(f"epoch {entry['epoch']:.0f}")

    def on_end(self, error: BaseException | None) -> None:
        pass


def fit(
    toys: Any, checkpoint: Path | None = None, *, recorder: Recorder | None = None, resume: bool = False, **changed: Any
) -> Fit:
    """A warm-up of two epochs, then three with an adversary; checkpoints every 3 steps."""
    network = toys.network(dropout=0.3)
    fit_statistics(network, toys.train.features)
    train, adversary = toys.adversary(toys.train, network.head.representation_dim)
    settings = toys.settings(**{"epochs": 3, "adversary_weight": 0.5, "schedule": "cosine", **changed})
    return fit_network(
        network, train, toys.val, settings, seed=1, adversary=adversary, checkpoint=checkpoint, identity="this",
        resume=resume, callbacks=[] if recorder is None else [recorder], device="cpu",
        warmup=HeadWarmup(toys.train, toys.val, 2),
    )  # fmt: skip


def test_epochs_and_steps_are_numbered_on(toys: Any) -> None:
    recorder = Recorder()
    found = fit(toys, recorder=recorder)
    assert [entry["epoch"] for entry in found.curve] == [1, 2, 3, 4, 5]
    assert recorder.calls[0] == (0, STEPS)
    assert [call for call in recorder.calls if isinstance(call, int)] == list(range(1, STEPS + 1))
    assert [call for call in recorder.calls if isinstance(call, str)] == [f"epoch {number}" for number in range(1, 6)]


def test_each_part_has_the_whole_schedule(toys: Any) -> None:
    rates = [entry["learning_rate"] for entry in fit(toys).curve]
    assert rates == pytest.approx([3e-3 * factor for factor in (0.5, 0.0, 0.75, 0.25, 0.0)])


def test_the_warmup_checkpoint_is_not_read_after_the_warmup(toys: Any, tmp_path: Path) -> None:
    wanted, checkpoint = fit(toys), tmp_path / "fit.checkpoint"
    with pytest.raises(Killed):
        fit(toys, checkpoint, recorder=Recorder(13))
    (tmp_path / "fit.head.checkpoint").write_bytes(b"damaged")
    found = fit(toys, checkpoint, resume=True)
    weights = wanted.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.network.state_dict().items())


def test_tuning_starts_from_the_best_head_of_the_warmup(toys: Any, scripted: Script) -> None:
    kept = scripted([0.9, 0.4, 0.5, 0.3, 0.2])
    found = fit(toys)
    assert (found.best_epoch, found.selection, len(found.curve)) == (1, 0.9, 5)
    assert all(torch.equal(value, kept[0][name]) for name, value in found.network.state_dict().items())
    kept = scripted([0.9, 0.4, 0.5])
    still = fit(toys, epochs=1, learning_rate=0.0)
    assert all(torch.equal(value, kept[2][name]) for name, value in still.network.state_dict().items())


def test_patience_counts_from_the_warmup_on(toys: Any, scripted: Script) -> None:
    scripted([0.9, 0.4, 0.5, 0.3, 0.2, 0.1])
    assert len(fit(toys, epochs=4, patience=2).curve) == 4
    scripted([0.1, 0.4, 0.5, 0.3, 0.2, 0.1])
    found = fit(toys, epochs=4, patience=2)
    assert (found.best_epoch, len(found.curve)) == (3, 5)


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(toys: Any, tmp_path: Path, seed: int) -> None:
    generator, checkpoint, wanted = random.Random(seed), tmp_path / "fit.checkpoint", fit(toys)
    kills = [*sorted(generator.sample(range(1, 8), 2)), 8, 9, generator.randrange(10, STEPS)]
    for number, kill in enumerate(kills):
        recorder = Recorder(kill)
        with pytest.raises(Killed):
            fit(toys, checkpoint, recorder=recorder, resume=number > 0)
        assert recorder.calls[0][0] >= max([0, *kills[:number]]) - 3, "steps before a checkpoint are not repeated"
    found = fit(toys, checkpoint, resume=True)
    weights = wanted.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.network.state_dict().items())
    assert [entry["train_loss"] for entry in found.curve] == [entry["train_loss"] for entry in wanted.curve]
    assert found.best_epoch == wanted.best_epoch


def test_warmup_uses_stored_features(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    plain = MuQSuffix.forward

    def count(suffix: Any, *given: Any) -> Any:
        passes.append(len(given[0]))
        return plain(suffix, *given)

    monkeypatch.setattr(MuQSuffix, "forward", count)
    found = corpus.train("baseline", tmp_path / "warmed", **SHORT, **LORA, head_warmup_epochs=3)
    warmed = sum(passes)
    passes.clear()
    corpus.train("baseline", tmp_path / "plain", **SHORT, **LORA)
    assert warmed == sum(passes), "warm-up and statistics use stored features"
    assert [entry["epoch"] for entry in found.curves[1]] == [1, 2, 3, 4, 5]
    tuned = load_file(found.scorer_folder() / "muq.safetensors")
    assert all(value.any() for name, value in tuned.items() if "lora_B" in name) == (
        max(found.curves[1], key=lambda entry: entry["selection"])["epoch"] > 3
    )
    assert sorted(path.name for path in found.folder.iterdir()) == ["plan.json", "seed-1", "seed-1.json"]


def test_statistics_of_stored_features_are_those_of_extracted_ones(corpus: Any, tmp_path: Path) -> None:
    tuned, frozen = (
        corpus.train("hybrid", tmp_path / name, **SHORT, **options)
        for name, options in (("lora", LORA), ("frozen", {}))
    )
    for name in ("fusion.norms.muq.mean", "fusion.norms.muq.std"):
        ours, wanted = (load_file(one.scorer_folder() / "head.safetensors")[name] for one in (tuned, frozen))
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("plan", "changed", "expected"),
    [
        ("baseline", LORA, True),
        ("hybrid", {"tuning": "full"}, True),
        ("baseline", {}, False),
        ("muq_frozen", LORA, False),
        ("baseline", {**LORA, "layers": "mix"}, False),
    ],
)
def test_which_plans_have_a_warmup(
    corpus: Any, tmp_path: Path, plan: Any, changed: dict[str, Any], expected: bool
) -> None:
    found = corpus.train(plan, tmp_path, **SHORT, **changed, head_warmup_epochs=2)
    assert len(found.curves[1]) == (4 if expected else 2)


def test_a_warm_start_has_no_warmup(corpus: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = corpus.train("baseline", tmp_path / "first", **SHORT).scorer_folder()
    changed = {**SHORT, **LORA, "head_warmup_epochs": 2, "init": f"warm:{first}"}
    with caplog.at_level("INFO", "audioscore.training.train"):
        assert len(corpus.train("baseline", tmp_path / "warm", **changed).curves[1]) == 2
    assert "baseline, seed 1: " in caplog.text
    assert len(corpus.train("hybrid", tmp_path / "scratch", **changed).curves[1]) == 4, "no part fits the hybrid"


def test_untuned_splits_are_the_same_clips_with_stored_features(corpus: Any) -> None:
    settings = corpus.config(**LORA, adversary={"weight": 0.5}).training
    found = load_plan_data("hybrid", corpus.index, corpus.features, settings, "d.dir", "abc", "cpu")
    for name, split in found.splits.items():
        untuned = found.untuned(name, kept_bytes=0)
        assert replace(untuned, features=split.features, targets=split.targets) == split
        assert untuned.targets is None
        assert "windows" in split.features[0]
        assert "windows" not in untuned.features[0]
        assert untuned.features[0] is not untuned.features[0], "no features stay in memory"
