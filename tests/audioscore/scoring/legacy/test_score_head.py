from typing import Any

import numpy as np
import pytest
import torch

from audioscore.encoders.features import Features
from audioscore.errors import ModelError, UsageError
from audioscore.scoring.head import build_head
from audioscore.scoring.legacy.model import (
    DISCRIMINATOR_PREFIX,
    LegacyScoreHead,
    legacy_state,
    load_legacy_head,
)
from audioscore.scoring.network import Batch, collate


@pytest.fixture
def head(legacy: Any) -> LegacyScoreHead:
    ours = LegacyScoreHead(32, 48)
    load_legacy_head(ours, legacy.head, "weights.pt")
    return ours.eval()


def clips(*lengths: int) -> list[Features]:
    generator = torch.Generator().manual_seed(1)
    return [{"muq": torch.randn(length, 32, generator=generator)} for length in lengths]


def test_raw_outputs_are_the_negative_arctanh_of_tags(legacy: Any, head: LegacyScoreHead) -> None:
    for seconds in (0.7, 2.3):
        wave = np.sin(np.cumsum(np.random.default_rng(1).normal(0.05, 0.02, round(seconds * 24_000)))) * 0.3
        with torch.no_grad():
            raw = float(head(collate([{"muq": legacy.hidden(wave.astype(np.float32))}]))[0])
        assert raw == pytest.approx(-np.arctanh((legacy.tag(wave.astype(np.float32)) - 3) / 2), abs=1e-5)


def test_higher_is_better(legacy: Any, head: LegacyScoreHead) -> None:
    """The legacy tag is best at 1: a larger logit of its class gives a smaller raw output."""
    frames = clips(40)
    with torch.no_grad():
        before = float(head(collate(frames))[0])
    worse = {
        **legacy.head,
        "fc.bias": legacy.head["fc.bias"] + torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]),
    }
    load_legacy_head(head, worse, "weights.pt")
    with torch.no_grad():
        assert float(head(collate(frames))[0]) == pytest.approx(before - 1, abs=1e-5)


@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
def test_batch_mates_and_padding_change_nothing(head: LegacyScoreHead, filler: float) -> None:
    found = clips(7, 90, 1, 33)
    batch = collate(found)
    real = torch.arange(90) < batch.lengths[:, None]
    padded = batch.frames.masked_fill(~real[..., None], filler)
    with torch.no_grad():
        alone = torch.cat([head(collate([clip])) for clip in found])
        together = head(Batch(batch.lengths, padded))
        represented = head.represent(Batch(batch.lengths, padded))
        predicted = head.predict(represented)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert represented.shape == (4, head.representation_dim)
    torch.testing.assert_close(predicted, together)
    assert float(alone.std()) > 1e-2  # a constant output must not pass


def test_every_weight_that_is_read_is_trained(head: LegacyScoreHead) -> None:
    head(collate(clips(20, 50))).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert head.classes.weight.grad.abs().sum(dim=1).gt(0).tolist() == [False, True, False, False, False]


def test_weights_keep_their_names_and_bits(legacy: Any, head: LegacyScoreHead) -> None:
    back = legacy_state(head)
    assert back.keys() == legacy.head.keys()
    assert all(torch.equal(back[name], value) for name, value in legacy.head.items())
    assert head.classes.weight.shape == (5, 64)
    back["fc.bias"].zero_()
    assert head.classes.bias.any()  # a copy


def test_only_the_discriminator_is_ignored(legacy: Any) -> None:
    ours = LegacyScoreHead(32, 48)
    extra = {f"{DISCRIMINATOR_PREFIX}0.weight": torch.zeros(3, 64)}
    load_legacy_head(ours, {**legacy.head, **extra}, "weights.pt")
    state = {**legacy.head, "fc2.weight": torch.zeros(1)}
    del state["attn.3.out_proj.bias"]
    pattern = r"old/weights\.pt: 1 key missing \(attn\.3\.out_proj\.bias\), 1 key too many \(fc2\.weight\)"
    with pytest.raises(ModelError, match=pattern):
        load_legacy_head(ours, state, "old/weights.pt")
    with pytest.raises(ModelError, match=r"\b1 .*shape .*ffd\.0\.weight \[49, 32\].*\[48, 32\]"):
        load_legacy_head(ours, {**legacy.head, "ffd.0.weight": torch.zeros(49, 32)}, "weights.pt")


def test_build_head_builds_the_legacy_head() -> None:
    ours = build_head({"kind": "predecessor", "dim": 16, "hidden": 5})
    assert isinstance(ours, LegacyScoreHead)
    assert (ours.representation_dim, [ours.feed_forward[0].out_features, len(ours.attentions)]) == (32, [5, 4])
    with pytest.raises(UsageError, match=r"\b30 channels.*\b8 "):
        build_head({"kind": "predecessor", "dim": 30, "hidden": 5})
    with pytest.raises(ModelError, match="'width'"):
        build_head({"kind": "predecessor", "dim": 16, "hidden": 5, "width": 3})
    with pytest.raises(ValueError, match="MuQ"):
        ours(Batch(torch.ones(2, dtype=torch.long), None, torch.zeros(2, 8)))
