import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from audioscore.encoders import inference as encoder_inference
from audioscore.encoders.inference import (
    MuQInference,
    fast_dtype,
    optimize_network,
    optimized_encoder,
    uses_int16,
)  # fmt: skip
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.errors import ModelError
from audioscore.muq_cpu import FastDtype, matmul
from audioscore.muq_cpu import conformer as muq_conformer
from audioscore.muq_cpu import front_end as muq_front

LENGTHS = (24_000, 24_100, 6_000, 100_123, 24_000, 240_001)


@pytest.fixture(scope="module", params=[1, 2])
def encoder(request: pytest.FixtureRequest, tiny_encoders: Path) -> MuQEncoder:
    """One with its output below the last layer, and one at it, where a norm follows."""
    return load_muq(str(tiny_encoders / "muq-small"), layer=request.param, window_seconds=2.0)


@pytest.fixture
def _small_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the optimized kernels for small models too."""
    monkeypatch.setattr(muq_front, "MIN_CHANNELS", 1)
    monkeypatch.setattr(muq_conformer, "MIN_CHANNELS", 1)
    monkeypatch.setattr(matmul, "MIN_WIDTH", 1)


def waves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]


def check_frames(inference: MuQInference, atol: float) -> None:
    encoder = inference.encoder
    for wave, frames in zip(waves(), inference.encode(waves()), strict=True):
        torch.testing.assert_close(frames, encoder.frames(wave), rtol=0, atol=atol)
    for layer in range(encoder.layer):
        for wave, frames in zip(waves(), inference.encode(waves(), layer), strict=True):
            torch.testing.assert_close(frames, prefix_frames(encoder, wave, layer), rtol=0, atol=atol)


def test_frames_of_a_batch_equal_the_encoders(encoder: MuQEncoder) -> None:
    inference = MuQInference(encoder)
    assert inference.encode([]) == []
    assert inference.optimized is None
    check_frames(inference, 2e-5)


@pytest.mark.usefixtures("_small_is_wide")
@pytest.mark.parametrize("parts", ["front_end", "conformer", "both"])
def test_frames_of_optimized_kernels_equal_the_encoders(
    encoder: MuQEncoder, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muq_front, "PIECE_FRAMES", 17)
    for name, module in (("front_end", muq_front), ("conformer", muq_conformer)):
        if parts not in (name, "both"):
            monkeypatch.setattr(module, "MIN_CHANNELS", 1_000)
    inference = MuQInference(encoder)
    optimized = inference.optimized
    assert optimized is not None
    assert (optimized.front_end is not None) == (parts != "conformer")
    assert (optimized.conformer is not None) == (parts != "front_end")
    check_frames(inference, 2e-5)


@pytest.mark.usefixtures("_small_is_wide")
@pytest.mark.parametrize("value", ["1", "0", ""])
def test_the_environment_switches_the_kernels_off(
    encoder: MuQEncoder, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audioscore.muq_cpu.fast_dtype", lambda device: "int16")
    monkeypatch.setenv("AUDIOSCORE_PLAIN", value)
    network = nn.Sequential(nn.Linear(4, 4))
    if value == "1":
        monkeypatch.setitem(cast(Any, sys.modules), "audioscore.muq_cpu", None)  # importing it raises
        monkeypatch.delattr("audioscore.muq_cpu")
    inference = MuQInference(encoder, fast=True)
    optimized = optimize_network(network, "cpu", fast=True)
    assert fast_dtype("cpu") == ("float32" if value == "1" else "int16")
    assert (optimized is network) == (value == "1")
    assert uses_int16(encoder, optimized, "cpu") == (value != "1")
    assert (optimized_encoder(encoder) is None) == (value == "1")
    assert (inference.optimized is None) == (value == "1")
    if value == "1":
        check_frames(inference, 1e-5)
    assert optimize_network(network, "cuda:0", fast=True) is network


@pytest.mark.usefixtures("_small_is_wide")
def test_memory_is_freed_after_long_audio(encoder: MuQEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = MuQInference(encoder)
    freed: list[object] = []
    monkeypatch.setattr(muq_front.FrontEnd, "release_memory", lambda front: freed.append(front))
    before = inference.encode(waves())
    assert freed == []
    monkeypatch.setattr(encoder_inference, "LONG_SECONDS", 1)
    for frames, again in zip(before, inference.encode(waves()), strict=True):
        torch.testing.assert_close(frames, again, rtol=0, atol=1e-6)
    assert inference.optimized is not None
    assert freed == [inference.optimized.front_end]


def test_windows_of_equal_length_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_inference, "cores", lambda: 2)
    windows = [torch.zeros(length) for length in (2_400, 24_000, 2_639, 2_400, 24_100, 24_000)]
    assert encoder_inference._equally_long(windows) == [[1, 4], [5], [0, 2], [3]]
    monkeypatch.setattr(encoder_inference, "BATCH_MEL", 100)
    assert len(encoder_inference._equally_long(windows)) == 5


def test_short_waves_and_wrong_layers_are_refused(tiny_encoders: Path) -> None:
    inference = MuQInference(load_muq(str(tiny_encoders / "muq-small"), layer=2))
    with pytest.raises(ModelError, match=r"\b6000\b.*\[5999\]"):
        inference.encode([torch.zeros(24_000), torch.zeros(5_999)])
    with pytest.raises(ModelError, match=r"layer 2: .*0 to 1\b"):
        inference.encode([torch.zeros(24_000)], 2)


@pytest.mark.usefixtures("_small_is_wide")
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_the_fast_mode_is_close_and_keeps_the_encoder(
    encoder: MuQEncoder, dtype: FastDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_inference, "fast_dtype", lambda device: dtype)
    before = [encoder.frames(wave) for wave in waves()]
    fast = MuQInference(encoder, fast=True).encode(waves())
    for frames, rounded, wave in zip(before, fast, waves(), strict=True):
        apart = (rounded - frames).square().mean().sqrt() / (frames - frames.mean(0)).square().mean().sqrt()
        assert (apart > 5e-5) == (dtype != "float32")
        assert apart < 0.01
        assert torch.equal(encoder.frames(wave), frames)
