import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioscore.data.audio import encode
from audioscore.errors import AudioError, ModelError, UsageError
from audioscore.model import SongEvalGenerator_audio_lora


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    wave = np.sin(np.cumsum(0.05 + 0.01 * rng.normal(size=30_000))) * 0.3
    path = tmp_path_factory.mktemp("audio") / "唱 take.wav"
    encode(wave.astype(np.float32), 24_000, path, codec="pcm_s16le")
    return path


def model_of(judge: Any, **options: Any) -> SongEvalGenerator_audio_lora:
    return SongEvalGenerator_audio_lora(**{"lora_r": 4, "lora_alpha": 6.0, "muq": judge.muq, **options})


def heard(path: Path) -> Any:
    """Judge: the samples of a 16-bit wav, by the standard library."""
    import wave

    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768


@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_generate_tag_is_the_judges_and_the_same_twice(judge: Any, take: Path, variant: str) -> None:
    model = model_of(judge)
    model.load_model(str(getattr(judge, variant)))
    tag = judge.tag(heard(take))
    assert model.generate_tag(str(take), inverse=False) == pytest.approx(tag, abs=1e-5)
    assert model.generate_tag(take) == pytest.approx(5 - tag, abs=1e-5)
    assert model.generate_tag(take) == model.eval().generate_tag(take)


@pytest.mark.parametrize(("variant", "full"), [("adapters", None), ("full", None), ("adapters", True), ("full", False)])
def test_saved_models_give_the_same_tags(
    judge: Any, take: Path, tmp_path: Path, variant: str, full: bool | None
) -> None:
    import torch

    model = model_of(judge)
    model.load_model(getattr(judge, variant))
    model.save_model(str(tmp_path / "saved"), **({} if full is None else {"full": full}))
    again = model_of(judge)
    again.load_model(str(tmp_path / "saved"))
    assert again.generate_tag(take) == model.generate_tag(take)
    keys = torch.load(tmp_path / "saved" / "muq_lora.pt", weights_only=True)
    whole = any(name.endswith(".base_layer.weight") for name in keys)
    assert whole is (variant == "full" if full is None else full)


def test_import_and_construction_are_quick() -> None:
    """Neither loads torch, so that a program that only may score does not wait for it."""
    code = (
        "import sys, audioscore.model; audioscore.model.SongEvalGenerator_audio_lora(); "
        "assert not {'torch', 'numpy', 'muq', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_half_stays_in_single_precision_on_a_cpu_and_says_so(judge: Any, take: Path) -> None:
    model = model_of(judge)
    model.load_model(judge.adapters)
    before = model.generate_tag(take)
    with pytest.warns(UserWarning, match=r"half\(\): on a CPU the model stays in float32"):
        assert model.half() is model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.generate_tag(take) == before


def test_devices(judge: Any, take: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = model_of(judge)
    model.load_model(judge.adapters)
    assert model.to("cpu") is model.to(torch.device("cpu"))
    with pytest.raises(UsageError, match="device 'gpu': torch does not know it"):
        model.to("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="device cuda: torch finds no GPU here"):
        model.cuda()
    assert 0 < model.generate_tag(take) < 4  # it stayed where it was


def test_a_model_without_weights_neither_scores_nor_saves(take: Path, tmp_path: Path) -> None:
    model = SongEvalGenerator_audio_lora()
    with pytest.raises(ModelError, match=r"the model has no weights yet\. Call load_model"):
        model.generate_tag(take)
    with pytest.raises(ModelError, match="no weights yet"):
        model.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_that_cannot_be_read_leaves_the_old_one(judge: Any, take: Path, tmp_path: Path) -> None:
    model = model_of(judge)
    model.load_model(judge.adapters)
    before = model.generate_tag(take)
    with pytest.raises(ModelError, match=r"nothing: type\.txt and weights\.pt and muq_lora\.pt missing"):
        model.load_model(tmp_path / "nothing")
    with pytest.raises(AudioError, match="no such file"):
        model.generate_tag(tmp_path / "none.wav")
    assert model.generate_tag(take) == before


@pytest.mark.parametrize("options", [{"lora_r": 0}, {"lora_alpha": 0}, {"lora_r": -1}])
def test_settings_without_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="lora_r and lora_alpha must be above 0; got"):
        SongEvalGenerator_audio_lora(**options)
