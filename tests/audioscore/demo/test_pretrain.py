import logging
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.demo import pretrain
from audioscore.demo.pretrain import Samples, build_campplus, build_muq, muq_config, train_campplus, train_muq
from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.muq import load_muq

VOICES, KINDS = 3, 2


@dataclass(frozen=True)
class Lessons:
    """Twelve clips of 1.2 s by three voices far apart in pitch, every other one noisy. Shapes: [28 800], [12, D]."""

    clips: list[Samples]
    voices: torch.Tensor
    sounds: torch.Tensor


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    rng = np.random.default_rng(0)
    time = np.arange(28_800) / 24_000
    clips, voices, sounds = [], [], []
    for index in range(12):
        voice, noisy = index % VOICES, index % KINDS
        tone = sum(np.sin(2 * np.pi * k * (150 + 120 * voice) * time) / k**voice for k in range(1, 8))
        wave = 0.1 * tone + (0.002 + 0.05 * noisy) * rng.normal(size=len(time))
        clips.append((np.clip(wave, -1, 1) * 32767).astype(np.int16))
        voices.append([float(voice), float(-voice)])
        sounds.append([float(noisy)])
    return Lessons(clips, torch.tensor(voices), torch.tensor(sounds))


def errors(text: str, name: str, which: int = -1) -> list[float]:
    """One of the figures at the end of each progress line of an encoder."""
    lines = [line for line in text.splitlines() if f"{name} step " in line]
    return [float(re.findall(r"\d+\.\d+", line)[which]) for line in lines]


def test_campplus_learns(lessons: Lessons, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    model = build_campplus(dim=16, growth=4, channels=16, seed=1)
    with caplog.at_level(logging.INFO):
        train_campplus(model, lessons.clips, lessons.voices, steps=10, batch=6, rate=1e-2, seed=1)
    curve = errors(caplog.text, "CAM++")
    assert len(curve) == 10
    assert np.mean(curve[-3:]) < 0.7 * np.mean(curve[:3])
    assert not any(part.training for part in model.modules())


def test_muq_learns_sounds(lessons: Lessons, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    model = build_muq(muq_config(dim=32, depth=2, conv_dim=8, codebook=64), seed=1)
    with caplog.at_level(logging.INFO):
        train_muq(model, lessons.clips, lessons.sounds, lessons.voices, steps=16, batch=6, rate=5e-3, seed=1)
    sounds, voice = (errors(caplog.text, "MuQ", which) for which in (-2, -1))
    assert len(sounds) == len(voice) == 16
    assert np.mean(sounds[-3:]) < 0.7 * np.mean(sounds[:3])
    assert max(voice) <= pretrain.BLIND
    assert not any(part.training for part in model.modules())


def test_building_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    before = random.getstate()
    config = muq_config(dim=32, depth=1, conv_dim=8, codebook=64)
    one, other = (build_muq(config, seed=4).state_dict() for _ in range(2))
    assert random.getstate() == before
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_program_writes_both_encoders(lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small_config() -> dict[str, object]:
        return muq_config(dim=32, depth=2, conv_dim=8, codebook=64)

    def small_campplus(seed: int) -> torch.nn.Module:
        return build_campplus(growth=4, channels=16, seed=seed)

    monkeypatch.setattr(pretrain, "muq_config", small_config)
    monkeypatch.setattr(pretrain, "build_campplus", small_campplus)
    out = tmp_path / "encoders"
    sizes = ["--voices", "4", "--clips-per-voice", "3", "--muq-steps", "2", "--campplus-steps", "2", "--workers", "1"]
    pretrain.main(["--out", str(out), "--seed", "1", *sizes])
    assert sorted(path.name for path in out.iterdir()) == ["campplus-small", "muq-small"]
    muq, campplus = load_muq(str(out / "muq-small"), layer=2), load_campplus(str(out / "campplus-small"))
    assert (muq.dim, campplus.dim) == (32, 192)
    wave = torch.from_numpy(lessons.clips[0].astype(np.float32) / 32767)
    assert torch.isfinite(muq.frames(wave)).all()
    assert torch.isfinite(campplus.embedding(wave)).all()


def test_the_program_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        pretrain.main([])
    assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err
