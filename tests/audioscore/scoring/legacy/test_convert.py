import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audioscore.data.audio import Wave, encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.data.versions.revision import folder_digest
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.files import sha256_of
from audioscore.model import SongEvalGenerator_audio_lora
from audioscore.scoring.calibration import fit_calibration
from audioscore.scoring.checkpoint import load_scorer, read_description
from audioscore.scoring.legacy import convert as module
from audioscore.scoring.legacy.convert import convert, is_calibrated, native_adapters, tag_calibration
from audioscore.scoring.legacy.folder import LegacyAdapter, LegacyWeights, write_folder
from audioscore.scoring.legacy.model import legacy_state
from audioscore.scoring.scorer import Tuning

RANK, ALPHA = 4, 6  # of the reference's adapters
RATES = (24_000, 32_000, 16_000, 48_000)


def sung(seed: int, seconds: float, rate: int) -> Wave:
    """A tone with pitch, level and noise drawn from the seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(110, 700) * 2 ** (np.interp(time, np.linspace(0, seconds, 7), rng.normal(0, 3, 7)) / 12)
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    return np.asarray(
        rng.uniform(0.1, 0.4) * tone + rng.uniform(0.01, 0.2) * rng.normal(size=len(time)) / 3, np.float32
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Fourteen recordings of 1.1 to 3.3 s at four rates; each has a whole number of samples at 24 kHz."""
    folder = tmp_path_factory.mktemp("recordings")
    for seed in range(14):
        wave = sung(seed, 1.1 + 0.17 * seed, RATES[seed % 4])
        encode(wave, RATES[seed % 4], folder / f"song{seed:02d}.wav", codec="pcm_s16le")
    return sorted(folder.iterdir())


def tags_of(folder: Path, legacy: Any, paths: list[Path], **options: Any) -> list[float]:
    model = SongEvalGenerator_audio_lora(**{"lora_r": RANK, "lora_alpha": ALPHA, "muq": legacy.muq, **options})
    model.load_model(folder)
    return [model.generate_tag(path) for path in paths]


def made(old: Path, new: Path, legacy: Any, **options: Any) -> Any:
    return convert(old, new, str(legacy.muq), **{"rank": RANK, "alpha": ALPHA, **options})


def ranks(values: Any) -> list[int]:
    return [int(index) for index in np.argsort(values)]


def check_same(folder: Path, tags: list[float], paths: list[Path]) -> None:
    """The raw outputs of a scorer rank as the tags, and 2 + 2 tanh(raw) equals the tags."""
    scorer = load_scorer(folder)
    raw = np.array([scorer.score(path).raw for path in paths])
    assert ranks(raw) == ranks(tags)
    assert np.abs(2 + 2 * np.tanh(raw) - np.array(tags)).max() <= 1e-4


@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_a_converted_scorer_ranks_like_tags(legacy: Any, recordings: list[Path], tmp_path: Path, variant: str) -> None:
    old, new = getattr(legacy, variant), tmp_path / "new"
    tags = tags_of(old, legacy, recordings)
    assert np.diff(np.sort(tags)).min() > 2e-5  # distinct tags
    description = made(old, new, legacy, code_revision="abc")
    assert read_description(new) == description
    check_same(new, tags, recordings)
    assert (description.tuning, description.plan) == (Tuning("lora", 0, RANK, ALPHA), "baseline")
    assert description.head == {"kind": "predecessor", "dim": 32, "hidden": 48}
    assert description.encoders["muq"].sha256 == sha256_of(legacy.muq / "config.json", legacy.muq / "model.safetensors")
    assert (description.encoders["muq"].window, description.encoders["muq"].layer) == (None, 6)
    assert (description.code_revision, description.data_digest) == ("abc", "unknown")
    written = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
    embedded = ["encoders/muq/config.json", "encoders/muq/model.safetensors"]
    assert written == [*embedded, "head.safetensors", "muq.safetensors", "scorer.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_number_of_samples_after_resampling_is_rounded_up_too(legacy: Any, tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    encode(sung(3, 2.0, 44_100)[:-3], 44_100, path, codec="pcm_s16le")  # 47 998.4 samples at 24 kHz
    made(legacy.adapters, tmp_path / "new", legacy)
    raw = load_scorer(tmp_path / "new").score(path).raw
    assert abs(2 + 2 * np.tanh(raw) - tags_of(legacy.adapters, legacy, [path])[0]) < 1e-4


def test_without_clips_scores_are_the_stretched_tags(legacy: Any, recordings: list[Path], tmp_path: Path) -> None:
    description = made(legacy.adapters, tmp_path / "new", legacy)
    assert not is_calibrated(description)
    scorer = load_scorer(tmp_path / "new")
    for path, tag in zip(recordings[:3], tags_of(legacy.adapters, legacy, recordings[:3]), strict=True):
        scored = scorer.score(path)
        assert (scored.score, scored.interval) == (pytest.approx(25 * tag, abs=0.03), (0.0, 100.0))


def test_the_uncalibrated_scale_is_monotone_and_nearly_linear() -> None:
    raw = np.linspace(-12, 12, 100_001)
    scores = tag_calibration().apply(raw)
    assert np.abs(scores - 25 * (2 + 2 * np.tanh(raw))).max() < 0.02
    assert (np.diff(scores[np.abs(raw) <= 10]) > 0).all()
    assert (np.diff(tag_calibration().score) > 0).all()
    assert (scores[0], scores[-1]) == (0, 100)


@pytest.fixture(scope="module")
def sorted_data(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with ten clips in val, four in train, none in test."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(tiny_corpus / "audio", folder / "audio")
    names = [f"audio/c{index:03d}.wav" for index in range(14)]
    clips = [
        Clip(name, 90.0 - 2 * index, f"s{index // 2}", sha256=sha256_of(folder / name))
        for index, name in enumerate(names)
    ]
    for split, part in (("val", clips[:10]), ("train", clips[10:]), ("test", [])):
        write_index(folder / "index" / f"{split}.json", [part])
    return folder


def test_calibration_uses_val_clips_which_are_seen(legacy: Any, sorted_data: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    description = made(
        legacy.full,
        tmp_path / "new",
        legacy,
        data=sorted_data,
        progress=lambda *counts: done.append(counts),
    )
    names = [sorted_data / f"audio/c{index:03d}.wav" for index in range(10)]
    assert is_calibrated(description)
    assert description.seen_clips == tuple(sorted(map(sha256_of, names)))
    assert description.data_digest == folder_digest(sorted_data)
    scorer = load_scorer(tmp_path / "new")
    scored = [scorer.score(name) for name in names]
    scores, singers = [90.0 - 2 * index for index in range(10)], [f"s{index // 2}" for index in range(10)]
    wanted = fit_calibration([one.raw for one in scored], scores, singers)
    assert description.calibration.raw == pytest.approx(wanted.raw, abs=1e-5)
    assert description.calibration.half_width == pytest.approx(wanted.half_width, abs=1e-3)
    assert ranks([one.score for one in scored]) == ranks([one.raw for one in scored])
    assert done == [(index, 10) for index in range(1, 11)]


def test_with_too_few_val_clips_all_splits_are_used(legacy: Any, sorted_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(sorted_data, tmp_path / "data"))
    shutil.copyfile(data / "index/val.json", data / "index/scratch.json")
    shutil.copyfile(data / "index/train.json", data / "index/val.json")
    (data / "index/scratch.json").rename(data / "index/train.json")
    assert len(made(legacy.adapters, tmp_path / "new", legacy, data=data).seen_clips) == 14
    encode(sung(1, 2.0, 24_000), 24_000, data / "audio/c013.wav", codec="pcm_s16le")
    with pytest.raises(DataError, match=r"audio/c013\.wav: "):
        made(legacy.adapters, tmp_path / "other", legacy, data=data)
    assert not (tmp_path / "other").exists()


def changed(folder: Path, target: Path, **states: Any) -> Path:
    """A copy of a model folder with other contents."""
    shutil.copytree(folder, target)
    for name, state in states.items():
        torch.save(state, target / f"{name}.pt")
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_muq_is_embedded(legacy: Any, recordings: list[Path], tmp_path: Path, dtype: torch.dtype) -> None:
    state = torch.load(legacy.full / "muq_lora.pt", weights_only=True)
    for name, value in state.items():
        if value.is_floating_point() and name.startswith("model.conformer.layers"):
            state[name] = (value * 1.1).to(dtype)
    old = changed(legacy.full, tmp_path / "old", muq_lora=state)
    tags = tags_of(old, legacy, recordings)
    description = made(old, tmp_path / "new", legacy)
    check_same(tmp_path / "new", tags, recordings)
    files = [tmp_path / "new/encoders/muq" / name for name in ("config.json", "model.safetensors")]
    reference = description.encoders["muq"]
    assert (reference.id, reference.sha256, reference.licence) == (None, sha256_of(*files), "unknown")
    assert reference.sha256 != sha256_of(legacy.muq / "config.json", legacy.muq / "model.safetensors")
    assert files[0].read_bytes() == (legacy.muq / "config.json").read_bytes()


def test_scales_without_an_integer_alpha_are_kept(legacy: Any, recordings: list[Path], tmp_path: Path) -> None:
    state = torch.load(legacy.adapters / "muq_lora.pt", weights_only=True)
    for index, name in enumerate(name for name in state if name.endswith("scaling")):
        state[name] = torch.tensor(0.3 + 0.05 * (index % 5))
    old = changed(legacy.adapters, tmp_path / "old", muq_lora=state)
    assert made(old, tmp_path / "new", legacy).tuning == Tuning("lora", 0, RANK, 1)
    check_same(tmp_path / "new", tags_of(old, legacy, recordings[:6]), recordings[:6])


def test_adapters_stay_bit_identical_if_the_scale_is_alpha_over_rank() -> None:
    path = "model.conformer.layers.{}.self_attn.linear_q"
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 8, generator=generator), torch.randn(8, 3, generator=generator)
    third = float(torch.tensor(1 / 3))  # as stored in a folder
    found = {path.format(layer): LegacyAdapter(a, b, third) for layer in (0, 5, 6, 11)}
    tuning, state = native_adapters(found)
    assert tuning == Tuning("lora", 0, 3, 1)
    assert sorted(state) == [f"{path.format(layer)}.lora_{name}.weight" for layer in (0, 5) for name in "AB"]
    assert torch.equal(state[f"{path.format(5)}.lora_A.weight"], a)
    assert torch.equal(state[f"{path.format(5)}.lora_B.weight"], b)


def test_a_hub_id_is_pinned(
    legacy: Any, recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = Path(shutil.copytree(legacy.muq, tmp_path / "hf" / "snapshots" / commit))
    asked: list[str | None] = []

    def fetch(source: str, *, revision: str | None, **how: Any) -> str:
        asked.append(revision)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    description = convert(legacy.full, tmp_path / "new", "OpenMuQ/MuQ-large-msd-iter", rank=RANK, alpha=ALPHA)
    reference = description.encoders["muq"]
    assert (reference.id, reference.revision) == ("OpenMuQ/MuQ-large-msd-iter", commit)
    assert asked == [None, commit]  # for the conversion and for the check
    assert description.licence == "CC BY-NC 4.0"
    assert not (tmp_path / "new" / "encoders").exists()
    check_same(tmp_path / "new", tags_of(legacy.full, legacy, recordings[:3]), recordings[:3])


def test_a_discriminator_is_detected_and_not_converted(legacy: Any, tmp_path: Path) -> None:
    shapes = {"0.weight": (20, 64), "0.bias": (20,), "3.weight": (10, 20), "3.bias": (10,)}
    speaker = {f"speaker_discriminator.{name}": torch.ones(shape) for name, shape in shapes.items()}
    old = changed(legacy.adapters, tmp_path / "old", weights={**legacy.head, **speaker})
    assert made(old, tmp_path / "new", legacy).training["adversary"] is True
    assert made(legacy.adapters, tmp_path / "other", legacy).training["adversary"] is False


def test_a_converted_model_can_be_written_back(legacy: Any, recordings: list[Path], tmp_path: Path) -> None:
    made(legacy.adapters, tmp_path / "new", legacy)
    head = legacy_state(load_scorer(tmp_path / "new").network.head)
    stored = torch.load(legacy.adapters / "muq_lora.pt", weights_only=True)
    paths = {name.removesuffix(".audio_lora.lora_A") for name in stored if name.endswith("lora_A")}
    adapters = {
        path: LegacyAdapter(stored[f"{path}.audio_lora.lora_A"], stored[f"{path}.audio_lora.lora_B"], ALPHA / RANK)
        for path in paths
    }
    write_folder(LegacyWeights(head, adapters, None), tmp_path / "back", base=None)
    assert tags_of(tmp_path / "back", legacy, recordings[:2]) == tags_of(legacy.adapters, legacy, recordings[:2])


def test_a_folder_in_use_is_an_error(legacy: Any, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("used", "file"):
        with pytest.raises(UsageError, match=rf"{name}: "):
            made(tmp_path / "nothing", tmp_path / name, legacy)
    with pytest.raises(UsageError, match=r"lora_r and lora_alpha: .*\b0 and 6"):
        made(legacy.full, tmp_path / "new", legacy, rank=0)
    (tmp_path / "empty").mkdir()
    made(legacy.adapters, tmp_path / "empty", legacy)
    assert (tmp_path / "empty" / "scorer.json").is_file()
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"


def test_an_unreadable_model_leaves_nothing_behind(legacy: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing: type\.txt .*weights\.pt .*muq_lora\.pt"):
        made(tmp_path / "nothing", tmp_path / "new", legacy)
    with pytest.raises(ModelError, match=r"rank 4\b.* 128\b.*lora_r=4"):
        made(legacy.full, tmp_path / "new", legacy, rank=128, alpha=48)
    with pytest.raises(ModelError, match=r"away: "):
        convert(legacy.full, tmp_path / "new", str(tmp_path / "away"), rank=RANK, alpha=ALPHA)
    broken = {**legacy.head, "fc.bias": torch.full((5,), float("nan"))}
    old = changed(legacy.adapters, tmp_path / "old", weights=broken)
    with pytest.raises(ModelError, match=r"\b1\.3 s: .*\bnan\b"):
        made(old, tmp_path / "new", legacy)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_conversion_that_differs_is_removed(legacy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeroed(adapters: Any) -> Any:
        tuning, state = native_adapters(adapters)
        return tuning, {name: value * (".lora_A." in name) for name, value in state.items()}

    monkeypatch.setattr(module, "native_adapters", zeroed)
    with pytest.raises(ModelError, match=r"new: .*generate_tag .*\b\d\.\d+"):
        made(legacy.adapters, tmp_path / "new", legacy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.services
@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_long_recordings_are_encoded_in_one_window(legacy: Any, tmp_path: Path, variant: str) -> None:
    paths = [tmp_path / f"long{index}.wav" for index in range(3)]
    for index, path in enumerate(paths):
        encode(sung(index, 31.0 + 17 * index, 24_000), 24_000, path, codec="pcm_s16le")
    made(getattr(legacy, variant), tmp_path / "new", legacy)
    check_same(tmp_path / "new", tags_of(getattr(legacy, variant), legacy, paths), paths)


@pytest.mark.services
def test_conversion_at_the_published_width(published_width_reference: Any, tmp_path: Path) -> None:
    legacy = published_width_reference
    description = made(legacy.full, tmp_path / "new", legacy, rank=128, alpha=48)
    assert description.tuning == Tuning("lora", 0, 128, 48)
    paths = [tmp_path / f"song{index}.wav" for index in range(3)]
    for index, path in enumerate(paths):
        encode(sung(index, 2.0 + 0.5 * index, 24_000), 24_000, path, codec="pcm_s16le")
    tags = tags_of(legacy.full, legacy, paths, lora_r=128, lora_alpha=48)
    check_same(tmp_path / "new", tags, paths)
