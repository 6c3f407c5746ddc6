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
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    wave = np.sin(np.cumsum(0.05 + 0.01 * rng.normal(size=30_000))) * 0.3
    path = tmp_path_factory.mktemp("audio") / "唱 recording.wav"
    encode(wave.astype(np.float32), 24_000, path, codec="pcm_s16le")
    return path


def model_of(legacy: Any, **options: Any) -> SongEvalGenerator_audio_lora:
    return SongEvalGenerator_audio_lora(**{"lora_r": 4, "lora_alpha": 6.0, "muq": legacy.muq, **options})


def samples(path: Path) -> Any:
    """The samples of a 16-bit wav, by the standard library."""
    import wave

    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768


def loaded(legacy: Any, folder: Path) -> SongEvalGenerator_audio_lora:
    model = model_of(legacy)
    model.load_model(folder)
    return model


@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_generate_tag_matches_the_reference_and_is_deterministic(legacy: Any, recording: Path, variant: str) -> None:
    model = model_of(legacy)
    model.load_model(str(getattr(legacy, variant)))
    tag = legacy.tag(samples(recording))
    assert model.generate_tag(str(recording), inverse=False) == pytest.approx(tag, abs=1e-5)
    assert model.generate_tag(recording) == pytest.approx(5 - tag, abs=1e-5)
    assert model.generate_tag(recording) == model.eval().generate_tag(recording)


@pytest.mark.parametrize(("variant", "full"), [("adapters", None), ("full", None), ("adapters", True), ("full", False)])
def test_saved_models_give_the_same_tags(
    legacy: Any, recording: Path, tmp_path: Path, variant: str, full: bool | None
) -> None:
    import torch

    model = loaded(legacy, getattr(legacy, variant))
    model.save_model(str(tmp_path / "saved"), **({} if full is None else {"full": full}))
    assert loaded(legacy, tmp_path / "saved").generate_tag(recording) == model.generate_tag(recording)
    keys = torch.load(tmp_path / "saved" / "muq_lora.pt", weights_only=True)
    whole = any(name.endswith(".base_layer.weight") for name in keys)
    assert whole is (variant == "full" if full is None else full)


def test_import_and_construction_do_not_import_torch() -> None:
    code = (
        "import sys, audioscore.model; audioscore.model.SongEvalGenerator_audio_lora(); "
        "assert not {'torch', 'numpy', 'muq', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_half_stays_in_float32_on_a_cpu_with_a_warning(legacy: Any, recording: Path) -> None:
    model = loaded(legacy, legacy.adapters)
    before = model.generate_tag(recording)
    with pytest.warns(UserWarning, match=r"half\(\).*float32"):
        assert model.half() is model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.generate_tag(recording) == before


def test_devices(legacy: Any, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = loaded(legacy, legacy.adapters)
    assert model.to("cpu") is model.to(torch.device("cpu"))
    with pytest.raises(UsageError, match="device 'gpu'"):
        model.to("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"device cuda: .*GPU"):
        model.cuda()
    assert 0 < model.generate_tag(recording) < 4  # still on the CPU


def test_a_model_without_weights_neither_scores_nor_saves(recording: Path, tmp_path: Path) -> None:
    model = SongEvalGenerator_audio_lora()
    with pytest.raises(ModelError, match="load_model"):
        model.generate_tag(recording)
    with pytest.raises(ModelError, match="load_model"):
        model.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_failed_load_keeps_the_old_weights(legacy: Any, recording: Path, tmp_path: Path) -> None:
    model = loaded(legacy, legacy.adapters)
    before = model.generate_tag(recording)
    with pytest.raises(ModelError, match=r"nothing: type\.txt and weights\.pt and muq_lora\.pt"):
        model.load_model(tmp_path / "nothing")
    with pytest.raises(AudioError, match=r"none\.wav"):
        model.generate_tag(tmp_path / "none.wav")
    assert model.generate_tag(recording) == before


@pytest.mark.parametrize("options", [{"lora_r": 0}, {"lora_alpha": 0}, {"lora_r": -1}])
def test_settings_of_zero_or_less_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"lora_r and lora_alpha: .* 0; .*{next(iter(options.values()))}"):
        SongEvalGenerator_audio_lora(**options)
