"""CAM++ beside 3D-Speaker's own package: the same weights give the same embedding, of the same features."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioscore.encoders.campplus import fbank, load_campplus
from audioscore.encoders.quiet import quiet_imports

pytestmark = pytest.mark.services


def sung(seconds: float, pitch: float, seed: int) -> Tensor:
    """A voice that holds a note with vibrato, and breathes. Shape: -> [T], 16 kHz."""
    time = torch.arange(round(seconds * 16_000), dtype=torch.float64) / 16_000
    semitones = 0.4 * torch.sin(2 * torch.pi * 5.5 * time)
    phase = 2 * torch.pi * torch.cumsum(pitch * 2 ** (semitones / 12), 0) / 16_000
    breath = torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
    return (0.1 * sum(torch.sin(k * phase) / k for k in range(1, 15)) + 0.003 * breath).float()


def published(network: nn.Module, folder: Path) -> None:
    """The network in the layout of a ModelScope snapshot, its statistics and norms as if trained."""
    chance = torch.Generator().manual_seed(2)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-0.3, 0.3, generator=chance)
            part.running_var.uniform_(0.5, 1.5, generator=chance)
            for values in (part.weight, part.bias) if part.affine else ():
                nn.init.uniform_(values, 0.5, 1.5, generator=chance)
    folder.mkdir()
    torch.save(network.state_dict(), folder / "campplus.bin")
    (folder / "configuration.json").write_text(json.dumps({"model": {"pretrained_model": "campplus.bin"}}))


@pytest.mark.parametrize("dim", [192, 512])
def test_the_same_weights_give_the_embedding_of_speakerlabs_network(tmp_path: Path, dim: int) -> None:
    from speakerlab.models.campplus.DTDNN import CAMPPlus

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dim)
        network = CAMPPlus(feat_dim=80, embedding_size=dim)
    published(network, tmp_path / "campplus")
    judge = CAMPPlus(feat_dim=80, embedding_size=dim)
    judge.load_state_dict(torch.load(tmp_path / "campplus" / "campplus.bin", weights_only=True), strict=True)
    judge.eval()
    encoder = load_campplus(str(tmp_path / "campplus"))
    assert encoder.dim == dim
    assert sum(value.numel() for value in judge.parameters()) == sum(
        value.numel() for value in encoder.module.parameters()
    )
    for seconds, pitch in ((1.0, 110.0), (4.3, 220.0), (9.7, 392.0)):
        wave = sung(seconds, pitch, dim)
        with torch.inference_mode():
            wanted = judge(speakerlab_fbank()(wave)[None])[0]
        embedding = encoder.embedding(wave)
        assert embedding.shape == (dim,)
        assert (embedding - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("samples", [4_000, 16_000, 16_001, 100_399])
def test_the_features_are_those_of_speakerlabs_fbank(samples: int) -> None:
    wave = sung(7.0, 196.0, 1)[:samples]
    assert torch.equal(fbank(wave), speakerlab_fbank()(wave))


def speakerlab_fbank() -> Any:
    """As its inference script makes it."""
    with quiet_imports():
        from speakerlab.process.processor import FBank

    return FBank(80, sample_rate=16_000, mean_nor=True)
