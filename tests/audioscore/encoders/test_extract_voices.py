import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.config import EncoderSection
from audioscore.data.audio import decode
from audioscore.data.clips import Clip
from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.extract import embed_voices, voice_embedder
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError
from audioscore.files import sha256_of
from audioscore.units import CAMPPLUS_RATE


@pytest.fixture
def encoder(tiny_encoders: Path) -> CampplusEncoder:
    return load_campplus(str(tiny_encoders / "campplus-small"))


def clips_of(folder: Path, count: int) -> list[Clip]:
    names = [f"audio/c{index:03d}.wav" for index in range(count)]
    return [Clip(name, sha256=sha256_of(folder / name)) for name in names]


def test_voices_are_campplus_embeddings_in_clip_order(
    tiny_corpus: Path, encoder: CampplusEncoder, tmp_path: Path
) -> None:
    clips = clips_of(tiny_corpus, 4)
    seen: list[tuple[int, int]] = []
    store = FeatureStore(tmp_path)
    voices = embed_voices(clips, tiny_corpus, encoder, store, lambda *counts: seen.append(counts))
    assert voices.shape == (4, encoder.dim)
    assert voices.dtype == np.float32
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for clip, voice in zip(clips, voices, strict=True):
        wave = torch.from_numpy(decode(tiny_corpus / clip.audio_file).at(CAMPPLUS_RATE))
        np.testing.assert_allclose(voice, encoder.embedding(wave).numpy(), rtol=1e-4, atol=1e-5)
    again = embed_voices(clips[::-1], tmp_path / "gone", encoder, store, lambda *counts: seen.append(counts))
    np.testing.assert_array_equal(again, voices[::-1])
    assert len(seen) == 4
    assert embed_voices([], tiny_corpus, encoder, store).shape == (0, encoder.dim)


def test_an_unvalidated_or_changed_clip_is_refused(tiny_corpus: Path, encoder: CampplusEncoder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"audio/c000\.wav: .*sha256"):
        embed_voices([Clip("audio/c000.wav")], tiny_corpus, encoder, FeatureStore(tmp_path))
    with pytest.raises(DataError, match=r"audio/c000\.wav: changed"):
        embed_voices([Clip("audio/c000.wav", sha256="0" * 64)], tiny_corpus, encoder, FeatureStore(tmp_path))


def test_the_encoder_is_loaded_on_the_first_call(tiny_corpus: Path, tiny_encoders: Path, tmp_path: Path) -> None:
    assert callable(voice_embedder(EncoderSection(source="/nowhere"), tiny_corpus, tmp_path))
    embed = voice_embedder(EncoderSection(source=str(tiny_encoders / "campplus-small")), tiny_corpus, tmp_path)
    assert embed(clips_of(tiny_corpus, 2)).shape[0] == 2
    assert list(tmp_path.glob("campplus-*/*/*.safetensors"))


def test_importing_needs_no_torch() -> None:
    code = "import sys, audioscore.data.split.sort, audioscore.encoders.extract; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
