import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audioscore.data.audio import Wave, encode
from audioscore.encoders.compute import quiet_imports
from audioscore.errors import AudioError, ModelError
from audioscore.scoring.legacy import model as module
from audioscore.scoring.legacy.model import LegacyHead, LegacyModel, decode_legacy, load_legacy_model

RANK, ALPHA = 4, 6.0  # of the reference's adapters


def sung(seconds: float, seed: int = 0, rate: int = 24_000) -> Wave:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 30 * seed) * time + 3 * np.sin(2 * np.pi * 5 * time))
    return np.asarray(0.2 * tone + 0.02 * rng.normal(size=len(time)), dtype=np.float32)


def load(folder: Path, legacy: Any, **options: Any) -> LegacyModel:
    return load_legacy_model(folder, str(legacy.muq), **{"use_grl": False, "rank": RANK, "alpha": ALPHA, **options})


@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_tags_equal_the_whole_model_wrapped_by_peft(legacy: Any, variant: str) -> None:
    model = load(getattr(legacy, variant), legacy)
    tags = [model.tag(sung(seconds, seed)) for seed, seconds in enumerate((0.6, 1.7, 3.1))]
    wanted = [legacy.tag(sung(seconds, seed)) for seed, seconds in enumerate((0.6, 1.7, 3.1))]
    assert tags == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 1e-3  # a constant output must not pass
    assert all(1.2 < tag < 4.8 for tag in wanted)  # outside of the saturation of the tanh


def test_hidden_state_has_no_final_norm_and_six_layers_run(legacy: Any) -> None:
    model = load(legacy.adapters, legacy)
    wave = sung(1.3)
    with torch.inference_mode():
        state = model.module(torch.from_numpy(wave)[None]).hidden_states[6][0]
    torch.testing.assert_close(state, legacy.hidden(wave), atol=1e-5, rtol=1e-5)
    assert len(model.module.get_submodule("model.conformer").layers) == 6


def test_a_long_recording_is_encoded_in_one_window(legacy: Any) -> None:
    wave = sung(32.0)
    # The reference computes in float64; over 800 frames the float32 of the legacy code differs by up to 1e-5.
    assert load(legacy.full, legacy).tag(wave) == pytest.approx(legacy.tag(wave), abs=3e-5)


def test_threads_and_repetition_change_nothing(legacy: Any) -> None:
    model = load(legacy.adapters, legacy)
    waves = [sung(0.5 + 0.2 * index, index) for index in range(6)]
    alone = [model.tag(wave) for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model.tag, waves * 2)) == alone * 2


@pytest.mark.parametrize("depth", [6, 7])
def test_depth_of_muq_decides_about_the_final_norm(legacy: Any, tmp_path: Path, depth: int) -> None:
    from safetensors.torch import load_file, save_file

    from audioscore.demo.pretrain import muq_config

    keep = {
        name: value for name, value in load_file(legacy.muq / "model.safetensors").items()
        if not any(f"layers.{layer}." in name for layer in range(depth, 8))
    }  # fmt: skip
    config = muq_config(dim=32, depth=depth, conv_dim=8, codebook=64)
    (tmp_path / "muq").mkdir()
    save_file(keep, tmp_path / "muq" / "model.safetensors")
    (tmp_path / "muq" / "config.json").write_text(json.dumps(config))
    state = torch.load(legacy.adapters / "muq_lora.pt", weights_only=True)
    state = {name: value for name, value in state.items() if int(name.split(".")[3]) < depth}
    folder = changed(legacy.adapters, tmp_path, muq=state)
    tag = load_legacy_model(folder, str(tmp_path / "muq"), use_grl=False, rank=RANK, alpha=ALPHA).tag(sung(1.0))
    assert (abs(tag - legacy.tag(sung(1.0))) < 1e-5) is (depth == 7)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_both_variants_are_written_from_both(legacy: Any, tmp_path: Path, variant: str, full: bool) -> None:
    model = load(getattr(legacy, variant), legacy)
    model.save(tmp_path / "saved", rank=RANK, alpha=ALPHA, full=full)
    for name in ("weights.pt", "muq_lora.pt"):
        saved = torch.load(tmp_path / "saved" / name, weights_only=True)
        wanted = torch.load((legacy.full if full else legacy.adapters) / name, weights_only=True)
        assert saved.keys() == wanted.keys()
        assert all(torch.equal(saved[key], wanted[key]) and saved[key].dtype == wanted[key].dtype for key in wanted)
    assert (tmp_path / "saved" / "type.txt").read_text() == "SongEvalGenerator_audio_lora"
    assert load(tmp_path / "saved", legacy).tag(sung(1.0)) == model.tag(sung(1.0))


def test_half_precision_tensors_are_read_and_written_back_as_they_are(legacy: Any, tmp_path: Path) -> None:
    head = {name: value.half() for name, value in legacy.head.items()}
    state = torch.load(legacy.full / "muq_lora.pt", weights_only=True)
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    model = load(changed(legacy.full, tmp_path, muq=state, head=head), legacy)
    assert model.tag(sung(1.0)) == pytest.approx(legacy.tag(sung(1.0)), abs=0.05)
    model.save(tmp_path / "saved", rank=RANK, alpha=ALPHA)
    saved = torch.load(tmp_path / "saved" / "muq_lora.pt", weights_only=True)
    assert all(saved[key].dtype == state[key].dtype and torch.equal(saved[key], state[key]) for key in state)


def changed(folder: Path, tmp_path: Path, muq: Any = None, head: Any = None) -> Path:
    """A copy of a model folder with other contents."""
    target = tmp_path / "changed"
    target.mkdir()
    for name, state in (("muq_lora.pt", muq), ("weights.pt", head)):
        torch.save(torch.load(folder / name, weights_only=True) if state is None else state, target / name)
    (target / "type.txt").write_text("SongEvalGenerator_audio_lora\n")
    return target


LAYER = "model.conformer.layers.7.self_attn.linear_out"


@pytest.mark.parametrize(("variant", "without", "extra"), [
    ("adapters", f"{LAYER}.audio_lora.lora_B", None),
    ("adapters", None, f"{LAYER}.other.lora_B"), ("adapters", f"{LAYER}.audio_lora.scaling", "x"),
    ("full", f"{LAYER}.base_layer.bias", "x"), ("full", f"{LAYER}.lora_A.audio_lora.weight", None),
    ("full", "model.conformer.layer_norm.bias", None),
    ("full", "model.conformer.layers.7.ffn1.output_dense.bias", None),
])  # fmt: skip
def test_keys_of_unread_layers_count(legacy: Any, tmp_path: Path, variant: str, without: str, extra: str) -> None:
    state = torch.load(getattr(legacy, variant) / "muq_lora.pt", weights_only=True)
    state.pop(without, None)
    if extra is not None:
        state[extra] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"muq_lora\.pt: ") as error:
        load(changed(getattr(legacy, variant), tmp_path, muq=state), legacy)
    for name, text in ((without, "1 key missing"), (extra, "1 key too many")):
        assert (f"{text} ({name})" in str(error.value)) is (name is not None)


def test_a_bare_muq_and_shapes_that_do_not_fit_are_refused(legacy: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with pytest.raises(ModelError, match=r"\b96 keys missing .*linear_k\.audio_lora\.lora_A.* 91 more"):
        load(
            changed(legacy.adapters, tmp_path, muq=load_file(legacy.muq / "model.safetensors")),
            legacy,
        )
    state = torch.load(legacy.full / "muq_lora.pt", weights_only=True)
    state[f"{LAYER}.base_layer.weight"] = torch.zeros(32, 31)
    torch.save(state, tmp_path / "changed" / "muq_lora.pt")
    with pytest.raises(
        ModelError, match=rf"\b1 .*shape .*{re.escape(LAYER)}\.base_layer\.weight \[32, 31\].*\[32, 32\]"
    ):
        load(tmp_path / "changed", legacy)


def test_a_head_with_another_width_is_refused(legacy: Any, tmp_path: Path) -> None:
    wide = LegacyHead(40, 8).state_dict()
    with pytest.raises(ModelError, match=r"weights\.pt: .*\b40 channels.*\b32\b"):
        load(changed(legacy.adapters, tmp_path, head=wide), legacy)
    odd = {**legacy.head, "ffd.2.weight": torch.zeros(30, 48)}
    torch.save(odd, tmp_path / "changed" / "weights.pt")
    with pytest.raises(ModelError, match=r"\b30 channels.*\b8 heads"):
        load(tmp_path / "changed", legacy)


def test_a_discriminator_is_kept_and_needs_use_grl(legacy: Any, tmp_path: Path) -> None:
    shapes = {"0.weight": (20, 64), "0.bias": (20,), "3.weight": (10, 20), "3.bias": (10,)}
    speaker = {f"speaker_discriminator.{name}": torch.full(shape, 0.5) for name, shape in shapes.items()}
    folder = changed(legacy.adapters, tmp_path, head={**legacy.head, **speaker})
    model = load(folder, legacy, use_grl=True)
    assert model.tag(sung(1.0)) == load(legacy.adapters, legacy).tag(sung(1.0))
    model.save(tmp_path / "saved", rank=RANK, alpha=ALPHA)
    saved = torch.load(tmp_path / "saved" / "weights.pt", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in speaker.items())
    with pytest.raises(ModelError, match=r"\b4 keys too many .*speaker_discriminator.*use_grl=True"):
        load(folder, legacy)
    with pytest.raises(ModelError, match=r"\b4 keys missing .*speaker_discriminator.*use_grl=False"):
        load(legacy.adapters, legacy, use_grl=True)


def test_a_full_muq_needs_the_scale_of_its_adapters(legacy: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"rank 4\b.* 128\b.*lora_r=4"):
        load(legacy.full, legacy, rank=128, alpha=48)
    model = load(legacy.adapters, legacy, rank=128, alpha=48)  # adapter-only folders store the scale
    assert model.tag(sung(1.0)) == load(legacy.full, legacy).tag(sung(1.0))
    with pytest.raises(ModelError, match=r"\b1\.5\b.*\b0\.375\b"):
        model.save(tmp_path / "saved", rank=128, alpha=48, full=True)
    assert not (tmp_path / "saved").exists()
    model.save(tmp_path / "saved", rank=128, alpha=48)
    assert load(tmp_path / "saved", legacy).tag(sung(1.0)) == model.tag(sung(1.0))


def test_nan_is_an_error(legacy: Any, tmp_path: Path) -> None:
    head = {**legacy.head, "fc.bias": torch.full((5,), math.nan)}
    with pytest.raises(ModelError, match=r"\b1\.0 s: .*\bnan\b"):
        load(changed(legacy.adapters, tmp_path, head=head), legacy).tag(sung(1.0))


FORMATS = [(24_000, 1), (44_100, 1), (16_000, 2), (48_000, 2), (22_050, 1)]


def write_wav(path: Path, rate: int, channels: int) -> None:
    import soundfile

    samples = np.stack([sung(1.0137, seed, rate) for seed in range(channels)], axis=1)
    soundfile.write(path, samples, rate, subtype="PCM_16")


@pytest.mark.parametrize(("rate", "channels"), FORMATS)
def test_wav_is_averaged_and_resampled(tmp_path: Path, rate: int, channels: int) -> None:
    import soundfile
    import soxr

    write_wav(tmp_path / "clip.wav", rate, channels)
    samples, _ = soundfile.read(tmp_path / "clip.wav", dtype="float32", always_2d=True)
    wanted = soxr.resample(samples.mean(axis=1), rate, 24_000, quality="soxr_hq")
    samples_24k = decode_legacy(str(tmp_path / "clip.wav"))
    assert len(samples_24k) == math.ceil(len(samples) * 24_000 / rate)
    assert np.array_equal(samples_24k[: len(wanted)], wanted)
    assert not samples_24k[len(wanted) :].any()


@pytest.mark.services
@pytest.mark.parametrize(("rate", "channels"), FORMATS)
def test_wav_equals_librosa(tmp_path: Path, rate: int, channels: int) -> None:
    write_wav(tmp_path / "clip.wav", rate, channels)
    with quiet_imports():  # librosa imports what it needs on first use, which takes many seconds
        import librosa

        wanted, _ = librosa.load(tmp_path / "clip.wav", sr=24_000, mono=True)
    assert np.array_equal(decode_legacy(str(tmp_path / "clip.wav")), wanted)


def test_notes_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, seconds in (("whole", 0), ("silence", 9)):
        wave = np.pad(sung(3.0), (0, seconds * 24_000))
        encode(wave, 24_000, tmp_path / f"{name}.wav", codec="pcm_s16le")
        decode_legacy(str(tmp_path / f"{name}.wav"))
    assert [name in caplog.text for name in ("whole.wav", "silence.wav", "75%")] == [False, True, True]


def test_unusable_recordings_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(sung(0.2), 24_000, tmp_path / "short.wav", codec="pcm_s16le")
    encode(np.zeros(24_000, dtype=np.float32), 24_000, tmp_path / "silent.wav", codec="pcm_s16le")
    encode(sung(3.0), 24_000, tmp_path / "long.wav", codec="pcm_s16le")
    (tmp_path / "empty.wav").write_bytes(b"")
    monkeypatch.setattr(module, "MAX_SECONDS", 2.0)
    for name, match in (
        ("short", r"0\.20 s.* 0\.25 s"), ("silent", r"-\d+\.\d dBFS"), ("long", r"\b2 s\b"),
        ("empty", "0 bytes"), ("none", "no such file"),
    ):  # fmt: skip
        with pytest.raises(AudioError, match=rf"{name}\.wav: .*{match}"):
            decode_legacy(str(tmp_path / f"{name}.wav"))
