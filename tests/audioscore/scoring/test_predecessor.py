import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audioscore.data.audio import Wave, encode
from audioscore.encoders.quiet import quiet_imports
from audioscore.errors import AudioError, ModelError
from audioscore.scoring import predecessor
from audioscore.scoring.predecessor import Predecessor, PredecessorHead, hear, load_predecessor

RANK, ALPHA = 4, 6.0  # what the judge's adapters were made with


def take(seconds: float, seed: int = 0, rate: int = 24_000) -> Wave:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 30 * seed) * time + 3 * np.sin(2 * np.pi * 5 * time))
    return np.asarray(0.2 * tone + 0.02 * rng.normal(size=len(time)), dtype=np.float32)


def load(folder: Path, judge: Any, **options: Any) -> Predecessor:
    return load_predecessor(folder, str(judge.muq), **{"use_grl": False, "rank": RANK, "alpha": ALPHA, **options})


@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_tags_are_those_of_the_whole_model_wrapped_by_peft(judge: Any, variant: str) -> None:
    model = load(getattr(judge, variant), judge)
    tags = [model.tag(take(seconds, seed)) for seed, seconds in enumerate((0.6, 1.7, 3.1))]
    wanted = [judge.tag(take(seconds, seed)) for seed, seconds in enumerate((0.6, 1.7, 3.1))]
    assert tags == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 1e-3  # else anything constant would pass
    assert all(1.2 < tag < 4.8 for tag in wanted)  # nor does the tanh hide a difference


def test_adapters_are_heard(judge: Any, tmp_path: Path) -> None:
    model = load(judge.adapters, judge)
    state = torch.load(judge.adapters / "muq_lora.pt", weights_only=True)
    silent = {name: torch.zeros_like(value) if name.endswith("lora_B") else value for name, value in state.items()}
    assert abs(load(changed(judge.adapters, tmp_path, muq=silent), judge).tag(take(1.0)) - model.tag(take(1.0))) > 1e-3


def test_hidden_state_has_no_final_norm_and_six_layers_run(judge: Any) -> None:
    model = load(judge.adapters, judge)
    wave = take(1.3)
    with torch.inference_mode():
        state = model.module(torch.from_numpy(wave)[None]).hidden_states[6][0]
    torch.testing.assert_close(state, judge.hidden(wave), atol=1e-5, rtol=1e-5)
    assert len(model.module.get_submodule("model.conformer").layers) == 6


def test_without_adapters_the_hidden_state_is_muqs_bit_for_bit(judge: Any, tmp_path: Path) -> None:
    from muq import MuQ

    state = torch.load(judge.adapters / "muq_lora.pt", weights_only=True)
    for name in state:
        if name.endswith("lora_B"):
            state[name].zero_()
    model = load(changed(judge.adapters, tmp_path, muq=state), judge)
    wave = torch.from_numpy(take(1.3))[None]
    with torch.inference_mode():
        wanted = MuQ.from_pretrained(str(judge.muq)).eval()(wave).hidden_states[6]
        assert torch.equal(model.module(wave).hidden_states[6], wanted)


def test_a_recording_longer_than_muqs_window_is_heard_in_one_pass(judge: Any) -> None:
    wave = take(32.0)
    # The judge's head counts in float64; over 800 frames the predecessor's own float32 is up to 1e-5 from that.
    assert load(judge.full, judge).tag(wave) == pytest.approx(judge.tag(wave), abs=3e-5)


def test_threads_and_repetition_change_nothing(judge: Any) -> None:
    model = load(judge.adapters, judge)
    waves = [take(0.5 + 0.2 * index, index) for index in range(6)]
    alone = [model.tag(wave) for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model.tag, waves * 2)) == alone * 2


@pytest.mark.parametrize("depth", [6, 7])
def test_depth_of_muq_decides_about_the_final_norm(judge: Any, tmp_path: Path, depth: int) -> None:
    """With six layers the sixth is the last, which MuQ norms."""
    from safetensors.torch import load_file, save_file

    from audioscore.training.pretrain import muq_config

    keep = {
        name: value
        for name, value in load_file(judge.muq / "model.safetensors").items()
        if not any(f"layers.{layer}." in name for layer in range(depth, 8))
    }
    config = muq_config(dim=32, depth=depth, conv_dim=8, codebook=64)
    (tmp_path / "muq").mkdir()
    save_file(keep, tmp_path / "muq" / "model.safetensors")
    (tmp_path / "muq" / "config.json").write_text(json.dumps(config))
    state = torch.load(judge.adapters / "muq_lora.pt", weights_only=True)
    state = {name: value for name, value in state.items() if int(name.split(".")[3]) < depth}
    folder = changed(judge.adapters, tmp_path, muq=state)
    tag = load_predecessor(folder, str(tmp_path / "muq"), use_grl=False, rank=RANK, alpha=ALPHA).tag(take(1.0))
    assert (abs(tag - judge.tag(take(1.0))) < 1e-5) is (depth == 7)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_both_variants_are_written_from_both(judge: Any, tmp_path: Path, variant: str, full: bool) -> None:
    model = load(getattr(judge, variant), judge)
    model.save(tmp_path / "saved", rank=RANK, alpha=ALPHA, full=full)
    for name in ("weights.pt", "muq_lora.pt"):
        saved = torch.load(tmp_path / "saved" / name, weights_only=True)
        wanted = torch.load((judge.full if full else judge.adapters) / name, weights_only=True)
        assert saved.keys() == wanted.keys()
        assert all(torch.equal(saved[key], wanted[key]) and saved[key].dtype == wanted[key].dtype for key in wanted)
    assert (tmp_path / "saved" / "type.txt").read_text() == "SongEvalGenerator_audio_lora"
    assert load(tmp_path / "saved", judge).tag(take(1.0)) == model.tag(take(1.0))


def test_half_precision_tensors_are_read_and_written_back_as_they_are(judge: Any, tmp_path: Path) -> None:
    head = {name: value.half() for name, value in judge.head.items()}
    state = torch.load(judge.full / "muq_lora.pt", weights_only=True)
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    model = load(changed(judge.full, tmp_path, muq=state, head=head), judge)
    assert model.tag(take(1.0)) == pytest.approx(judge.tag(take(1.0)), abs=0.05)
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


def test_keys_missing_and_too_many_are_named(judge: Any, tmp_path: Path) -> None:
    head = {**judge.head, "fc2.weight": torch.zeros(2), "extra": torch.zeros(1)}
    del head["attn.2.in_proj_bias"]
    with pytest.raises(ModelError) as fault:
        load(changed(judge.adapters, tmp_path, head=head), judge)
    assert str(fault.value).endswith(
        "weights.pt: 1 key missing (attn.2.in_proj_bias), 2 keys too many (extra, fc2.weight). Save the model again."
    )


LAYER = "model.conformer.layers.7.self_attn.linear_out"


@pytest.mark.parametrize(
    ("variant", "without", "extra", "said"),
    [
        ("adapters", f"{LAYER}.audio_lora.lora_B", None, f"1 key missing ({LAYER}.audio_lora.lora_B). Save the folder"),
        ("adapters", None, f"{LAYER}.other.lora_B", f"1 key too many ({LAYER}.other.lora_B)."),
        ("adapters", f"{LAYER}.audio_lora.scaling", "x", "1 key missing (" + LAYER + ".audio_lora.scaling), 1 key too"),
        ("full", f"{LAYER}.base_layer.bias", "x", f"1 key missing ({LAYER}.base_layer.bias), 1 key too many (x)."),
        ("full", f"{LAYER}.lora_A.audio_lora.weight", None, f"1 key missing ({LAYER}.lora_A.audio_lora.weight)."),
        ("full", "model.conformer.layer_norm.bias", None, "1 key missing (model.conformer.layer_norm.bias)."),
        ("full", "model.conformer.layers.7.ffn1.output_dense.bias", None, "1 key missing (model.conformer.layers.7."),
    ],
)
def test_keys_of_layers_that_are_not_read_count_too(
    judge: Any, tmp_path: Path, variant: str, without: str | None, extra: str | None, said: str
) -> None:
    state = torch.load(getattr(judge, variant) / "muq_lora.pt", weights_only=True)
    state.pop(without, None)
    if extra is not None:
        state[extra] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"muq_lora\.pt: ") as fault:
        load(changed(getattr(judge, variant), tmp_path, muq=state), judge)
    assert said in str(fault.value)


def test_a_bare_muq_and_shapes_that_do_not_fit_are_refused(judge: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with pytest.raises(ModelError, match=r"96 keys missing \(.*linear_k\.audio_lora\.lora_A.* and 91 more\), \d+ keys"):
        load(changed(judge.adapters, tmp_path, muq=load_file(judge.muq / "model.safetensors")), judge)
    state = torch.load(judge.full / "muq_lora.pt", weights_only=True)
    state[f"{LAYER}.base_layer.weight"] = torch.zeros(32, 31)
    torch.save(state, tmp_path / "changed" / "muq_lora.pt")
    with pytest.raises(ModelError) as fault:
        load(tmp_path / "changed", judge)
    assert f"1 of another shape ({LAYER}.base_layer.weight [32, 31] and not [32, 32])." in str(fault.value)


def test_a_head_for_other_frames_is_refused(judge: Any, tmp_path: Path) -> None:
    wide = PredecessorHead(40, 8).state_dict()
    with pytest.raises(ModelError, match=r"weights\.pt: reads frames of 40 channels; .*muq gives 32\. Name the MuQ"):
        load(changed(judge.adapters, tmp_path, head=wide), judge)
    odd = {**judge.head, "ffd.2.weight": torch.zeros(30, 48)}
    torch.save(odd, tmp_path / "changed" / "weights.pt")
    with pytest.raises(ModelError, match="is 30 channels wide, which its 8 heads cannot share"):
        load(tmp_path / "changed", judge)


def test_discriminator_is_kept_and_must_be_announced(judge: Any, tmp_path: Path) -> None:
    speaker = {
        "speaker_discriminator.0.weight": torch.randn(20, 64), "speaker_discriminator.0.bias": torch.randn(20),
        "speaker_discriminator.3.weight": torch.randn(10, 20), "speaker_discriminator.3.bias": torch.randn(10),
    }  # fmt: skip
    folder = changed(judge.adapters, tmp_path, head={**judge.head, **speaker})
    model = load(folder, judge, use_grl=True)
    assert model.tag(take(1.0)) == load(judge.adapters, judge).tag(take(1.0))
    model.save(tmp_path / "saved", rank=RANK, alpha=ALPHA)
    saved = torch.load(tmp_path / "saved" / "weights.pt", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in speaker.items())
    with pytest.raises(ModelError, match=r"4 keys too many \(speaker_discriminator.*\)\. Pass use_grl=True\."):
        load(folder, judge)
    with pytest.raises(ModelError, match=r"4 keys missing \(speaker_discriminator.*\)\. Pass use_grl=False\."):
        load(judge.adapters, judge, use_grl=True)


def test_the_factor_of_a_whole_muq_is_never_guessed(judge: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its adapters have rank 4, and lora_r is 128; .* Pass lora_r=4 and"):
        load(judge.full, judge, rank=128, alpha=48)
    model = load(judge.adapters, judge, rank=128, alpha=48)  # adapter-only folders say it themselves
    assert model.tag(take(1.0)) == load(judge.full, judge).tag(take(1.0))
    with pytest.raises(ModelError, match=r"the adapters count by 1\.5, and lora_alpha / lora_r is 0\.375, which"):
        model.save(tmp_path / "saved", rank=128, alpha=48, full=True)
    assert not (tmp_path / "saved").exists()
    model.save(tmp_path / "saved", rank=128, alpha=48)
    assert load(tmp_path / "saved", judge).tag(take(1.0)) == model.tag(take(1.0))


def test_weights_that_give_no_number_give_no_tag(judge: Any, tmp_path: Path) -> None:
    head = {**judge.head, "fc.bias": torch.full((5,), math.nan)}
    with pytest.raises(ModelError, match=r"the model gives nan for a recording of 1\.0 s\."):
        load(changed(judge.adapters, tmp_path, head=head), judge).tag(take(1.0))


FORMATS = [(24_000, 1), (44_100, 1), (16_000, 2), (48_000, 2), (22_050, 1)]


def write_wav(path: Path, rate: int, channels: int) -> None:
    import soundfile

    samples = np.stack([take(1.0137, seed, rate) for seed in range(channels)], axis=1)
    soundfile.write(path, samples, rate, subtype="PCM_16")


@pytest.mark.parametrize(("rate", "channels"), FORMATS)
def test_wav_is_heard_as_16_bit_samples_averaged_and_resampled(tmp_path: Path, rate: int, channels: int) -> None:
    import soundfile
    import soxr

    write_wav(tmp_path / "take.wav", rate, channels)
    samples, _ = soundfile.read(tmp_path / "take.wav", dtype="float32", always_2d=True)
    wanted = soxr.resample(samples.mean(axis=1), rate, 24_000, quality="soxr_hq")
    heard = hear(str(tmp_path / "take.wav"))
    assert len(heard) == math.ceil(len(samples) * 24_000 / rate)
    assert np.array_equal(heard[: len(wanted)], wanted)
    assert not heard[len(wanted) :].any()


@pytest.mark.services
@pytest.mark.parametrize(("rate", "channels"), FORMATS)
def test_wav_is_heard_as_librosa_loads_it(tmp_path: Path, rate: int, channels: int) -> None:
    write_wav(tmp_path / "take.wav", rate, channels)
    with quiet_imports():  # librosa imports what it needs on first use, which takes many seconds
        import librosa

        wanted, _ = librosa.load(tmp_path / "take.wav", sr=24_000, mono=True)
    assert np.array_equal(hear(str(tmp_path / "take.wav")), wanted)


@pytest.mark.services
def test_tags_at_the_published_width(judge_of_published_width: Any) -> None:
    judge, wave = judge_of_published_width, take(2.0)
    wanted = judge.tag(wave)
    assert 1.2 < wanted < 4.8
    for folder in (judge.adapters, judge.full):
        assert load(folder, judge, rank=128, alpha=48).tag(wave) == pytest.approx(wanted, abs=1e-5)


def test_recordings_that_cannot_be_judged_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(take(0.2), 24_000, tmp_path / "short.wav", codec="pcm_s16le")
    encode(np.zeros(24_000, dtype=np.float32), 24_000, tmp_path / "silent.wav", codec="pcm_s16le")
    encode(take(3.0), 24_000, tmp_path / "long.wav", codec="pcm_s16le")
    (tmp_path / "empty.wav").write_bytes(b"")
    monkeypatch.setattr(predecessor, "MAX_SECONDS", 2.0)
    for name, said in (
        ("short", r"short\.wav: too short: 0\.20 s, and at least 0\.25 s are needed"),
        ("silent", r"silent\.wav: silent: its level is -\d+\.\d dBFS"),
        ("long", r"long\.wav: is 3 s long; at most 2 s are taken\. Cut it\."),
        ("empty", r"empty\.wav: the file is empty \(0 bytes\)"),
        ("none", r"none\.wav: no such file"),
    ):
        with pytest.raises(AudioError, match=said):
            hear(str(tmp_path / f"{name}.wav"))
