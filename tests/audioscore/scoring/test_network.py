from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audioscore.encoders.features import WINDOWS, Features
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import LayerMix, prefix_frames
from audioscore.scoring import network as network_module
from audioscore.scoring.head import ScoreHead, build_head
from audioscore.scoring.network import Batch, ScoreNetwork, batches, collate, raw_outputs, representations
from audioscore.scoring.scorer import Tuning

MakeTuned = Callable[..., Any]
UNTRAINED = [
    Tuning("lora", 0, 4, 2), Tuning("lora", 1, 4, 2), Tuning("full", 0), Tuning("full", 1), Tuning("frozen", 0)
]  # fmt: skip
TRAINED = [Tuning("lora", 0, 4, 6), Tuning("full", 1), Tuning("frozen", 0, mix=True), Tuning("lora", 0, 4, 6, mix=True)]


def waves(*seconds: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(round(24_000 * one), generator=generator) for one in seconds]


def features_of(encoder: MuQEncoder, tuning: Tuning, *given: Tensor) -> list[Features]:
    """Stored features of each wave for a network that continues from `tuning.from_layer`."""
    generator = torch.Generator().manual_seed(9)
    return [
        {"muq": prefix_frames(encoder, wave, tuning.from_layer), WINDOWS: torch.tensor(encoder.windows(len(wave))),
        "campplus": torch.randn(64, generator=generator)} for wave in given
    ]  # fmt: skip


def package_states(encoder: MuQEncoder, wave: Tensor) -> list[Tensor]:
    """All hidden states of the upstream forward pass, window by window. Shape: -> depth + 1 times [F, dim]."""
    count = -(-len(wave) // int((encoder.window or 1e9) * 24_000))
    with torch.inference_mode():
        parts = [encoder.module(part[None]).hidden_states for part in torch.tensor_split(wave, count)]
    return [torch.cat([part[layer][0] for part in parts]) for layer in range(len(parts[0]))]


@pytest.fixture
def bare(tiny_encoders: Path) -> MuQEncoder:
    """MuQ without tuned weights."""
    return load_muq(str(tiny_encoders / "muq-small"), layer=2)


def plain(count: int = 9) -> tuple[ScoreNetwork, list[Features]]:
    """A network with only a head, and clips for it."""
    generator = torch.Generator().manual_seed(0)
    features: list[Features] = [{"muq": torch.randn(3 + 7 * index, 6, generator=generator)} for index in range(count)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ScoreNetwork(ScoreHead({"muq": 6}, width=8, hidden=8, dropout=0.3)), features


def test_without_layers_of_muq_the_network_is_the_head() -> None:
    network, features = plain()
    assert not network.windowed
    batch = collate(features)
    assert network.encode(batch) is batch
    network.eval()
    with torch.inference_mode():
        assert torch.equal(network(batch), network.head(batch))


def test_a_mix_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="mix"):
        ScoreNetwork(nn.Identity(), None, LayerMix(2))


@pytest.mark.parametrize(("limit", "value"), [("BATCH_CLIPS", 2), ("BATCH_FRAMES", 60), ("BATCH_FRAMES", 1)])
def test_many_clips_run_in_batches(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    network, features = plain()
    whole, represented = raw_outputs(network, features), representations(network, features)
    assert len(list(batches(network, features))) == 1
    monkeypatch.setattr(network_module, limit, value)
    assert len(list(batches(network, features))) > 2
    np.testing.assert_allclose(raw_outputs(network, features), whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(representations(network, features), represented, rtol=0, atol=1e-5)
    assert (whole.shape, whole.dtype) == ((9,), np.float64)
    assert raw_outputs(network, []).shape == (0,)


def test_padding_counts_towards_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = plain()
    monkeypatch.setattr(network_module, "BATCH_FRAMES", 1000)
    features: list[Features] = [{"muq": torch.ones(length, 6)} for length in (10, 10, 10, 10, 700, 10, 10, 10)]
    held = [batch.frames.shape[:2].numel() for batch in batches(network, features) if batch.frames is not None]
    assert max(held) <= 1000, held


def test_clips_are_read_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    network, features = plain()
    monkeypatch.setattr(network_module, "BATCH_CLIPS", 3)
    read: list[int] = []

    class Counted(list[Features]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    next(batches(network, Counted(features)))
    assert read == [0, 1, 2, 3]


def test_outputs_are_made_in_eval_mode_and_are_the_same_twice() -> None:
    network, features = plain()
    network.train()
    assert np.array_equal(raw_outputs(network, features), raw_outputs(network, features))
    assert not any(part.training for part in network.modules())
    network.train()
    represented = representations(network, features)
    assert not any(part.training for part in network.modules())
    with torch.inference_mode():
        assert np.array_equal(
            network.predict(torch.tensor(represented).float()).double(), raw_outputs(network, features)
        )


def test_dtypes_of_outputs() -> None:
    network, features = plain()
    network.eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        near = network(collate(features))
    wanted = raw_outputs(network, features)
    assert near.dtype == torch.float32
    np.testing.assert_allclose(near, wanted, rtol=0, atol=0.05)
    batch = collate([{"muq": clip["muq"].double()} for clip in features])
    assert network.double()(batch).dtype == torch.float64


@pytest.mark.parametrize("tuning", UNTRAINED, ids=str)
def test_an_untrained_tuned_network_is_the_frozen_one(make_tuned: MakeTuned, bare: MuQEncoder, tuning: Tuning) -> None:
    made = make_tuned(tuning, moved=False)
    given = waves(0.6, 1.3, 0.9)
    ours = raw_outputs(made.network, features_of(made.muq, tuning, *given))
    frozen = ScoreNetwork(made.network.head)
    reference = raw_outputs(frozen, [{"muq": bare.frames(wave)} for wave in given])
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)
    assert np.ptp(reference) > 1e-3


@pytest.mark.parametrize(("from_layer", "layer"), [(0, 1), (0, 2), (1, 2)])
def test_an_equal_mix_is_the_mean(make_tuned: MakeTuned, tiny_encoders: Path, layer: int, from_layer: int) -> None:
    tuning = Tuning("frozen", from_layer, mix=True)
    made = make_tuned(tuning, moved=False, layer=layer)
    assert made.network.mix.logits.shape == (layer - from_layer + 1,)
    whole = load_muq(str(tiny_encoders / "muq-small"), layer=2)
    given = waves(0.6, 1.3)
    states = [package_states(whole, wave)[from_layer : layer + 1] for wave in given]
    mean = [torch.stack(one).mean(0) for one in states]
    batch = made.network.encode(collate(features_of(made.muq, tuning, *given), windowed=True))
    for ours, wanted in zip(batch.frames, mean, strict=True):
        torch.testing.assert_close(ours[: len(wanted)], wanted, rtol=0, atol=1e-5)
    reference = raw_outputs(ScoreNetwork(made.network.head), [{"muq": one} for one in mean])
    np.testing.assert_allclose(
        raw_outputs(made.network, features_of(made.muq, tuning, *given)), reference, rtol=0, atol=1e-5
    )


def test_a_learned_mix_weighs_each_layer_by_its_softmax(make_tuned: MakeTuned, bare: MuQEncoder) -> None:
    tuning = Tuning("frozen", 0, mix=True)
    made = make_tuned(tuning)
    logits = made.network.mix.logits.detach().double().numpy()
    weights = np.exp(logits) / np.exp(logits).sum()
    assert np.ptp(weights) > 1e-3
    (wave,) = waves(1.3)
    wanted = sum(w * state.double() for w, state in zip(weights, package_states(bare, wave), strict=True))
    mixed = made.network.encode(collate(features_of(made.muq, tuning, wave), windowed=True))
    np.testing.assert_allclose(mixed.frames[0].detach(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tuning", TRAINED, ids=str)
def test_a_long_recording_runs_window_by_window(make_tuned: MakeTuned, tuning: Tuning) -> None:
    made = make_tuned(tuning)
    given = waves(61.0, 2.0, 31.0)
    features = features_of(made.muq, tuning, *given)
    assert [int(clip[WINDOWS]) for clip in features] == [3, 1, 2]
    mixed: list[Features] = []
    for wave in given:
        states = package_states(made.muq, wave)  # through its adapters, or its tuned layers
        if not tuning.mix:
            mixed.append({"muq": states[2]})
            continue
        weights = made.network.mix.logits.softmax(0)
        mixed.append({"muq": sum(w * state for w, state in zip(weights, states, strict=True)).detach()})
    reference = raw_outputs(ScoreNetwork(made.network.head), mixed)
    np.testing.assert_allclose(raw_outputs(made.network, features), reference, rtol=0, atol=1e-5)
    alone = np.concatenate([raw_outputs(made.network, [clip]) for clip in features])
    np.testing.assert_allclose(alone, reference, rtol=0, atol=1e-5)


HEADS: list[dict[str, Any]] = [
    {"kind": "light"}, {"kind": "light", "pooled": True}, {"kind": "attention"},
    {"kind": "songeval", "heads": 4, "layers": 2}, {"kind": "songeval", "pooled": True, "heads": 4, "layers": 2}
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["kind"] + ("-pooled" if "pooled" in head else ""))
@pytest.mark.parametrize("tuning", TRAINED, ids=str)
def test_batch_mates_and_padding_change_nothing(make_tuned: MakeTuned, tuning: Tuning, head: dict[str, Any]) -> None:
    made = make_tuned(tuning, plan="hybrid", window=1.0, **head)
    features = features_of(made.muq, tuning, *waves(0.5, 1.9, 0.7, 2.6, 1.0))
    assert [int(clip[WINDOWS]) for clip in features] == [1, 2, 1, 3, 1]
    together = raw_outputs(made.network, features)
    alone = np.concatenate([raw_outputs(made.network, [clip]) for clip in features])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(raw_outputs(made.network, features[::-1])[::-1], together, rtol=0, atol=1e-5)
    assert np.ptp(together) > 1e-3
    batch = collate(features, windowed=True)
    # Zeros at the end stay within what a window may hold.
    more = Batch(batch.lengths, nn.functional.pad(batch.frames, (0, 0, 0, 7)), batch.embedding, batch.windows)
    real = torch.arange(batch.frames.shape[1])[None] < batch.lengths[:, None]
    loud = Batch(batch.lengths, batch.frames.masked_fill(~real[..., None], 1e4), batch.embedding, batch.windows)
    with torch.inference_mode():
        for other in (more, loud):
            np.testing.assert_allclose(made.network(other), together, rtol=0, atol=1e-5)


def test_both_branches_change_the_output(make_tuned: MakeTuned) -> None:
    tuning = Tuning("lora", 1, 4, 2)
    made = make_tuned(tuning, plan="hybrid")
    features = features_of(made.muq, tuning, *waves(0.5, 0.9))
    before = raw_outputs(made.network, features)
    for branch in ("muq", "campplus"):
        other = [{**clip, branch: clip[branch].flip(-1)} for clip in features]
        assert (np.abs(raw_outputs(made.network, other) - before) > 1e-6).all()


def test_the_legacy_head_runs_after_tuned_layers(make_tuned: MakeTuned) -> None:
    tuning = Tuning("lora", 1, 4, 2)
    made = make_tuned(tuning, window=1.0)
    with torch.random.fork_rng(devices=[]):
        head = build_head({"kind": "predecessor", "dim": 32, "hidden": 16})
    network = ScoreNetwork(head, made.network.suffix)
    features = features_of(made.muq, tuning, *waves(0.5, 2.6, 0.9))
    reference = raw_outputs(ScoreNetwork(head), [{"muq": package_states(made.muq, w)[2]} for w in waves(0.5, 2.6, 0.9)])
    np.testing.assert_allclose(raw_outputs(network, features), reference, rtol=0, atol=1e-5)
    assert representations(network, features).shape == (3, 64)
