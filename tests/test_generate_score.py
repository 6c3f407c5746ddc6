"""The documented example of the legacy models, on a folder of the same layout with small weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

import audioscore.model
from audioscore.data.audio import encode
from audioscore.demo.pretrain import build_muq, muq_config, save_muq
from audioscore.scoring.legacy.folder import LegacyAdapter, LegacyWeights, write_folder
from audioscore.scoring.legacy.model import LAYERS, LegacyHead

DIM, HIDDEN, DEPTH, RANK = 32, 64, 7, 8


@pytest.fixture
def root_dir(tmp_path: Path) -> Path:
    config = muq_config(dim=DIM, depth=DEPTH, conv_dim=8, codebook=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        save_muq(build_muq(config, seed=1), config, tmp_path / "muq")
        head = LegacyHead(DIM, HIDDEN).state_dict()
        paths = [f"{LAYERS}.{i}.self_attn.linear_{name}" for i in range(DEPTH) for name in ("q", "k", "v", "out")]
        adapters = {path: LegacyAdapter(torch.randn(RANK, DIM), torch.randn(DIM, RANK), 48 / 128) for path in paths}
    folder = tmp_path / "ckpts" / "SongEvalGenerator" / "step_2_al_audio" / "best_model_step_132000"
    write_folder(LegacyWeights(head, adapters, None), folder, base=None)
    time = np.arange(3 * 44_100) / 44_100
    wave = 0.3 * np.sin(2 * np.pi * 220 * time + 2 * np.sin(2 * np.pi * 5.5 * time))
    encode(wave.astype(np.float32), 44_100, tmp_path / "audio" / "203887_250822105518005501.m4a")
    return tmp_path


def test_generate_score(root_dir: Path) -> None:
    model = audioscore.model.SongEvalGenerator_audio_lora(muq=str(root_dir / "muq"))
    model.load_model(str(root_dir / "ckpts" / "SongEvalGenerator" / "step_2_al_audio" / "best_model_step_132000"))
    if torch.cuda.is_available():
        model = model.half()
        model = model.cuda()
    recording = str(root_dir / "audio" / "203887_250822105518005501.m4a")
    score = model.generate_tag(recording)
    assert isinstance(score, float)
    assert 0 < score < 4
    assert score == model.generate_tag(recording)
