from pathlib import Path

import pytest
import torch

from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.errors import ModelError
from audioscore.muq_cpu import conformer as muq_conformer
from audioscore.muq_cpu import front_end as muq_front
from audioscore.muq_cpu import inference as muq_inference
from audioscore.muq_cpu.conformer import Conformer
from audioscore.muq_cpu.inference import MuQInference
from audioscore.muq_cpu.matmul import Numbers

LENGTHS = (24_000, 24_100, 6_000, 100_123, 24_000, 240_001)


@pytest.fixture(scope="module", params=[1, 2])
def encoder(request: pytest.FixtureRequest, tiny_encoders: Path) -> MuQEncoder:
    """Read below its last layer, and at it, where a norm follows."""
    return load_muq(str(tiny_encoders / "muq-small"), layer=request.param, window_seconds=2.0)


def waves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("quick", [False, True])
def test_frames_of_a_batch_equal_the_encoders(
    encoder: MuQEncoder, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quick:
        monkeypatch.setattr(muq_front, "MIN_CHANNELS", 1)
        monkeypatch.setattr(muq_front, "PIECE_FRAMES", 17)
        monkeypatch.setattr(muq_conformer, "MIN_CHANNELS", 1)
    inference = MuQInference(encoder)
    assert inference.hear([]) == []
    assert isinstance(inference.front, muq_front.FrontEnd) == quick
    assert isinstance(inference.through, Conformer) == quick
    for wave, frames in zip(waves(), inference.hear(waves()), strict=True):
        torch.testing.assert_close(frames, encoder.frames(wave), rtol=0, atol=2e-5)
    for layer in range(encoder.layer):
        for wave, frames in zip(waves(), inference.hear(waves(), layer), strict=True):
            torch.testing.assert_close(frames, prefix_frames(encoder, wave, layer), rtol=0, atol=2e-5)


def test_the_front_end_frees_memory_after_long_audio(encoder: MuQEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muq_front, "MIN_CHANNELS", 1)
    inference = MuQInference(encoder)
    freed: list[object] = []
    monkeypatch.setattr(muq_front.FrontEnd, "forget", lambda front: freed.append(front))
    before = inference.hear(waves())
    assert freed == []
    monkeypatch.setattr(muq_inference, "LONG_SECONDS", 1)
    for frames, again in zip(before, inference.hear(waves()), strict=True):
        torch.testing.assert_close(frames, again, rtol=0, atol=1e-6)
    assert freed == [inference.front]


def test_windows_of_equal_length_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muq_inference, "cores", lambda: 2)
    windows = [torch.zeros(length) for length in (2_400, 24_000, 2_639, 2_400, 24_100, 24_000)]
    assert muq_inference._equally_long(windows) == [[1, 4], [5], [0, 2], [3]]
    monkeypatch.setattr(muq_inference, "BATCH_MEL", 100)
    assert len(muq_inference._equally_long(windows)) == 5


def test_short_waves_and_wrong_layers_are_refused(tiny_encoders: Path) -> None:
    inference = MuQInference(load_muq(str(tiny_encoders / "muq-small"), layer=2))
    with pytest.raises(ModelError, match=r"\b6000\b.*\[5999\]"):
        inference.hear([torch.zeros(24_000), torch.zeros(5_999)])
    with pytest.raises(ModelError, match=r"layer 2: .*0 to 1\b"):
        inference.hear([torch.zeros(24_000)], 2)


@pytest.mark.parametrize("numbers", ["float32", "int16"])
def test_the_fast_mode_is_close_and_keeps_the_encoder(
    encoder: MuQEncoder, numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muq_front, "MIN_CHANNELS", 1)
    monkeypatch.setattr(muq_conformer, "MIN_CHANNELS", 1)
    monkeypatch.setattr(muq_inference, "quick_numbers", lambda device: numbers)
    before = [encoder.frames(wave) for wave in waves()]
    fast = MuQInference(encoder, fast=True).hear(waves())
    for frames, quick, wave in zip(before, fast, waves(), strict=True):
        apart = (quick - frames).square().mean().sqrt() / (frames - frames.mean(0)).square().mean().sqrt()
        assert (apart > 5e-5) == (numbers != "float32")
        assert apart < 0.01
        assert torch.equal(encoder.frames(wave), frames)
