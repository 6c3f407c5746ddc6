"""CAM++ beside 3D-Speaker's own package: the same weights give the same embedding, of the same features."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audioscore.demo.pretrain import save_campplus
from audioscore.encoders.campplus import fbank, load_campplus
from audioscore.encoders.compute import quiet_imports

pytestmark = pytest.mark.services


def noise(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def speakerlab_fbank() -> Any:
    with quiet_imports():
        from speakerlab.process.processor import FBank

    return FBank(80, sample_rate=16_000, mean_nor=True)


@pytest.mark.parametrize("dim", [192, 512])
def test_embeddings_equal_speakerlabs(tmp_path: Path, dim: int, randomize_norms: Callable[[Any], None]) -> None:
    from speakerlab.models.campplus.DTDNN import CAMPPlus

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dim)
        reference = CAMPPlus(feat_dim=80, embedding_size=dim)
        randomize_norms(reference)
    save_campplus(reference.eval(), tmp_path / "campplus")
    encoder = load_campplus(str(tmp_path / "campplus"))
    parameters = [sum(value.numel() for value in one.parameters()) for one in (reference, encoder.module)]
    assert (encoder.dim, parameters[0]) == (dim, parameters[1])
    for samples in (16_000, 68_800, 155_200):
        wave = noise(samples)
        with torch.inference_mode():
            wanted = reference(speakerlab_fbank()(wave)[None])[0]
        assert (encoder.embedding(wave) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("samples", [4_000, 16_000, 16_001, 100_399])
def test_features_equal_speakerlabs(samples: int) -> None:
    assert torch.equal(fbank(noise(samples)), speakerlab_fbank()(noise(samples)))
