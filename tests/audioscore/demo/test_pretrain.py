import logging
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.demo import pretrain
from audioscore.demo.pretrain import (
    Samples,
    build_campplus,
    build_muq,
    muq_config,
    pretraining_clips,
    train_campplus,
    train_muq,
)
from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.muq import load_muq
from audioscore.errors import UsageError

VOICES, KINDS = 3, 2


@dataclass(frozen=True)
class ToyClips:
    """Twelve clips of 1.2 s by three voices far apart in pitch, every other one noisy. Shapes: [28 800], [12, D]."""

    clips: list[Samples]
    voices: torch.Tensor
    sounds: torch.Tensor


@pytest.fixture(scope="module")
def toys() -> ToyClips:
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
    return ToyClips(clips, torch.tensor(voices), torch.tensor(sounds))


def errors(text: str, name: str, which: int = -1) -> list[float]:
    """One of the figures at the end of each progress line of an encoder."""
    lines = [line for line in text.splitlines() if f"{name} step " in line]
    return [float(re.findall(r"\d+\.\d+", line)[which]) for line in lines]


def test_campplus_learns(toys: ToyClips, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    model = build_campplus(dim=16, growth=4, channels=16, seed=1)
    with caplog.at_level(logging.INFO):
        train_campplus(model, toys.clips, toys.voices, steps=10, batch=6, rate=1e-2, seed=1)
    curve = errors(caplog.text, "CAM++")
    assert len(curve) == 10
    assert np.mean(curve[-3:]) < 0.7 * np.mean(curve[:3])
    assert not any(part.training for part in model.modules())


def test_muq_learns_sounds(toys: ToyClips, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    model = build_muq(muq_config(dim=32, depth=2, conv_dim=8, codebook=64), seed=1)
    with caplog.at_level(logging.INFO):
        train_muq(model, toys.clips, toys.sounds, toys.voices, steps=16, batch=6, rate=5e-3, seed=1)
    sounds, voice = (errors(caplog.text, "MuQ", which) for which in (-2, -1))
    assert len(sounds) == len(voice) == 16
    assert np.mean(sounds[-3:]) < 0.7 * np.mean(sounds[:3])
    assert max(voice) <= pretrain.MAX_ADVERSARY_LOSS
    assert not any(part.training for part in model.modules())


def test_building_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    before = random.getstate()
    config = muq_config(dim=32, depth=1, conv_dim=8, codebook=64)
    one, other = (build_muq(config, seed=4).state_dict() for _ in range(2))
    assert random.getstate() == before
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_program_writes_both_encoders(toys: ToyClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    wave = torch.from_numpy(toys.clips[0].astype(np.float32) / 32767)
    assert torch.isfinite(muq.frames(wave)).all()
    assert torch.isfinite(campplus.embedding(wave)).all()


def test_the_program_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        pretrain.main([])
    assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_clips_come_voice_by_voice_and_are_reproducible() -> None:
    found = list(pretraining_clips(3, 2, 1.5, seed=0))
    assert [clip.singer.singer_id for clip in found] == [f"voice000{n}" for n in (1, 1, 2, 2, 3, 3)]
    assert {clip.wave.shape for clip in found} == {(36_000,)}
    assert found[0].singer == found[1].singer
    assert found[0].faults != found[1].faults
    assert {clip.source for clip in pretraining_clips(4, 2, 1.0, seed=1)} == {"ktv", "acapella"}
    first = next(pretraining_clips(1, 1, 1.5, seed=0))
    assert np.array_equal(found[0].wave, first.wave)
    assert first.faults == found[0].faults
    assert not np.array_equal(first.wave, next(pretraining_clips(1, 1, 1.5, seed=1)).wave)


def test_two_processes_make_the_same_clips() -> None:
    alone, together = (list(pretraining_clips(2, 2, 1.0, seed=3, workers=workers)) for workers in (1, 2))
    assert all(np.array_equal(one.wave, other.wave) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("arguments", [(0, 1, 3.0), (1, 0, 3.0), (1, 1, 0.2)])
def test_impossible_counts_are_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(UsageError, match=r"\b{}, {}, {}\b".format(*arguments)):
        next(pretraining_clips(*arguments, seed=0))
