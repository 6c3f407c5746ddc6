from pathlib import Path

import pytest
import torch

from audioscore.encoders import muq_conformer, muq_front, muq_inference
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_conformer import Conformer
from audioscore.encoders.muq_inference import MuQInference
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.encoders.products import Numbers

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
        monkeypatch.setattr(muq_conformer, "MIN_CHANNELS", 1)
    inference = MuQInference(encoder)
    assert isinstance(inference.front, muq_front.FrontEnd) == quick
    assert isinstance(inference.through, Conformer) == quick
    for wave, frames in zip(waves(), inference.hear(waves()), strict=True):
        torch.testing.assert_close(frames, encoder.frames(wave), rtol=0, atol=2e-5)
    for layer in range(encoder.layer):
        for wave, frames in zip(waves(), inference.hear(waves(), layer), strict=True):
            torch.testing.assert_close(frames, prefix_frames(encoder, wave, layer), rtol=0, atol=2e-5)


def test_after_much_audio_the_front_end_gives_its_memory_back(
    encoder: MuQEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muq_front, "MIN_CHANNELS", 1)
    inference = MuQInference(encoder)
    assert isinstance(inference.front, muq_front.FrontEnd)
    kept = inference.front._scratches._free
    before = inference.hear(waves())
    assert len(kept) > 0
    monkeypatch.setattr(muq_inference, "LONG_SECONDS", 1)
    for frames, again in zip(before, inference.hear(waves()), strict=True):
        torch.testing.assert_close(frames, again, rtol=0, atol=1e-6)
    assert len(kept) == 0


def test_nothing_is_nothing(encoder: MuQEncoder) -> None:
    assert MuQInference(encoder).hear([]) == []


def test_windows_that_are_equally_long_share_a_pass_and_leave_no_core_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muq_inference, "cores", lambda: 2)
    windows = [torch.zeros(length) for length in (2_400, 24_000, 2_639, 2_400, 24_100, 24_000)]
    assert muq_inference._equally_long(windows) == [[1, 4], [5], [0, 2], [3]]
    monkeypatch.setattr(muq_inference, "BATCH_MEL", 100)
    assert len(muq_inference._equally_long(windows)) == 5


@pytest.mark.parametrize("numbers", ["float32", "int16"])
def test_the_fast_mode_is_close_and_leaves_the_encoder_as_it_was(
    encoder: MuQEncoder, numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muq_front, "MIN_CHANNELS", 1)
    monkeypatch.setattr(muq_conformer, "MIN_CHANNELS", 1)
    monkeypatch.setattr(muq_inference, "quick_numbers", lambda device: numbers)
    before = [encoder.frames(wave) for wave in waves()]
    fast = MuQInference(encoder, fast=True).hear(waves())
    for frames, quick, wave in zip(before, fast, waves(), strict=True):
        apart = (quick - frames).square().mean().sqrt() / (frames - frames.mean(0)).square().mean().sqrt()
        assert (apart > 5e-5) == (numbers != "float32")  # elsewhere it is exact
        assert apart < 0.01
        assert torch.equal(encoder.frames(wave), frames)
