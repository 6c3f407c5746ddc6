from pathlib import Path

import pytest
import torch

from audioscore.encoders import muq_front, muq_inference
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_inference import MuQInference
from audioscore.encoders.muq_layers import prefix_frames

LENGTHS = (24_000, 24_100, 6_000, 100_123, 24_000, 240_001)


@pytest.fixture(scope="module", params=[1, 2])
def encoder(request: pytest.FixtureRequest, tiny_encoders: Path) -> MuQEncoder:
    """Read below its last layer, and at it, where a norm follows."""
    return load_muq(str(tiny_encoders / "muq-small"), layer=request.param, window_seconds=2.0)


def waves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("quick", [False, True])
def test_together_or_alone_the_frames_are_the_encoders_own(
    encoder: MuQEncoder, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quick:  # as for a MuQ of the published width
        monkeypatch.setattr(muq_front, "MIN_CHANNELS", 1)
        monkeypatch.setattr(muq_front, "PIECE_FRAMES", 17)
    inference = MuQInference(encoder)
    assert isinstance(inference.front, muq_front.FrontEnd) == quick
    for wave, frames in zip(waves(), inference.hear(waves()), strict=True):
        torch.testing.assert_close(frames, encoder.frames(wave), rtol=0, atol=2e-5)
    for layer in range(encoder.layer):
        for wave, frames in zip(waves(), inference.hear(waves(), layer), strict=True):
            torch.testing.assert_close(frames, prefix_frames(encoder, wave, layer), rtol=0, atol=2e-5)


def test_nothing_is_nothing(encoder: MuQEncoder) -> None:
    assert MuQInference(encoder).hear([]) == []


def test_windows_that_are_equally_long_share_a_pass_and_leave_no_core_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muq_inference, "cores", lambda: 2)
    windows = [torch.zeros(length) for length in (2_400, 24_000, 2_639, 2_400, 24_100, 24_000)]
    assert muq_inference._equally_long(windows) == [[1, 4], [5], [0, 2], [3]]
    monkeypatch.setattr(muq_inference, "BATCH_MEL", 100)
    assert len(muq_inference._equally_long(windows)) == 5


def test_the_fast_mode_leaves_the_encoder_as_it_was(encoder: MuQEncoder) -> None:
    wave = waves()[0]
    before = encoder.frames(wave)
    MuQInference(encoder, fast=True).hear([wave])
    assert torch.equal(encoder.frames(wave), before)
