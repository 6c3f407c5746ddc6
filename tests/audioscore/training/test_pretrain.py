import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.data.audio import Wave
from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.muq import load_muq
from audioscore.training import pretrain
from audioscore.training.pretrain import build_campplus, build_muq, muq_config, train_campplus, train_muq

SINGERS = 3


@pytest.fixture(autouse=True)
def _own_chance() -> Iterator[None]:
    """Pretraining is a program of its own and seeds the global generators."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="module")
def voices() -> tuple[list[Wave], list[int]]:
    """Twelve clips of 1.2 s by three voices far apart in pitch. Shape: [28 800] at 24 kHz."""
    rng = np.random.default_rng(0)
    time = np.arange(28_800) / 24_000
    waves, singers = [], []
    for index in range(12):
        singer = index % SINGERS
        tone = sum(np.sin(2 * np.pi * k * (150 + 120 * singer) * time) / k**singer for k in range(1, 8))
        waves.append((0.1 * tone + 0.01 * rng.normal(size=len(time))).astype(np.float32))
        singers.append(singer)
    return waves, singers


def losses(text: str, name: str) -> list[float]:
    return [float(found) for found in re.findall(rf"{re.escape(name)} step \d+ of \d+: loss (\d+\.\d+)", text)]


def test_campplus_learns_to_tell_voices_apart(
    voices: tuple[list[Wave], list[int]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    model = build_campplus(dim=16, growth=4, channels=16, seed=1)
    with caplog.at_level(logging.INFO):
        train_campplus(model, *voices, steps=8, batch=6, seed=1)
    curve = losses(caplog.text, "CAM++")
    assert len(curve) == 8
    assert np.mean(curve[-3:]) < 0.7 * np.mean(curve[:3])
    assert not any(part.training for part in model.modules())


def test_muq_learns_its_masked_tokens(
    voices: tuple[list[Wave], list[int]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    model = build_muq(muq_config(dim=32, depth=1, conv_dim=8, codebook=64), seed=1)
    with caplog.at_level(logging.INFO):
        train_muq(model, voices[0], steps=12, batch=6, rate=5e-3, seed=1)
    curve = losses(caplog.text, "MuQ")
    assert len(curve) == 12
    assert np.mean(curve[-3:]) < 0.9 * np.mean(curve[:3])
    assert not any(part.training for part in model.modules())


def test_building_is_deterministic_and_leaves_pythons_chance_alone() -> None:
    random.seed(3)
    wanted = random.random()
    random.seed(3)
    config = muq_config(dim=32, depth=1, conv_dim=8, codebook=64)
    one, other = (build_muq(config, seed=4).state_dict() for _ in range(2))
    assert random.random() == wanted
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("muq_steps", [0, 2])
def test_the_program_writes_both_encoders_in_the_layouts_that_load(
    voices: tuple[list[Wave], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muq_steps: int
) -> None:
    def small_config() -> dict[str, object]:
        return muq_config(dim=32, depth=2, conv_dim=8, codebook=64)

    def small_campplus(seed: int) -> torch.nn.Module:
        return build_campplus(growth=4, channels=16, seed=seed)

    def clips(*_: object) -> list[tuple[int, Wave]]:
        return list(zip(voices[1], voices[0], strict=True))

    monkeypatch.setattr(pretrain, "muq_config", small_config)
    monkeypatch.setattr(pretrain, "build_campplus", small_campplus)
    monkeypatch.setattr(pretrain, "speaker_clips", clips)
    out = tmp_path / "encoders"
    pretrain.main(["--out", str(out), "--muq-steps", str(muq_steps), "--campplus-steps", "2", "--seed", "1"])
    assert sorted(path.name for path in out.iterdir()) == ["campplus-small", "muq-small"]
    muq, campplus = load_muq(str(out / "muq-small"), layer=2), load_campplus(str(out / "campplus-small"))
    assert (muq.dim, campplus.dim) == (32, 192)
    assert torch.isfinite(muq.frames(torch.from_numpy(voices[0][0]))).all()
    assert torch.isfinite(campplus.embedding(torch.from_numpy(voices[0][0]))).all()


def test_the_program_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        pretrain.main([])
    assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err
