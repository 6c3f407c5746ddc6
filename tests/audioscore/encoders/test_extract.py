import copy
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audioscore.config import EncodersSection, TrainingSection
from audioscore.data.audio import decode, encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.data.split.sort import read_unscored_groups
from audioscore.encoders import extract
from audioscore.encoders.extract import (
    Extraction,
    extract_features,
    extract_folder,
    load_encoders,
    read_extraction,
    write_extraction,
)
from audioscore.encoders.features import WINDOWS, Encoders, Features
from audioscore.encoders.inference import encode_recording
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import prefix_frames, prefix_reference
from audioscore.encoders.speakers.targets import SpeakerTarget
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import AudioError, DataError, ModelError
from audioscore.files import sha256_of
from audioscore.muq_cpu import conformer as muq_conformer
from audioscore.muq_cpu import front_end as muq_front

COUNT = 12  # more than are decoded ahead
Run = Callable[..., Extraction]


@pytest.fixture(scope="module")
def encoders(section: EncodersSection) -> Encoders:
    return load_encoders(section)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings of different lengths and rates."""
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        rate = (16_000, 24_000, 44_100)[index % 3]
        wave = rng.normal(0, 0.1, rate * (5 + index) // 10).astype(np.float32)
        encode(wave, rate, tmp_path / "data" / "audio" / f"{index:02d}.flac", codec="flac")
    return tmp_path / "data"


@pytest.fixture
def clips(folder: Path) -> list[Clip]:
    names = [f"audio/{index:02d}.flac" for index in range(COUNT)]
    return [Clip(name, 99.0 - number, sha256=sha256_of(folder / name)) for number, name in enumerate(names)]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def run(folder: Path, encoders: Encoders, store: FeatureStore) -> Run:
    return lambda clips, *more, **settings: extract_features(clips, folder, encoders, store, *more, **settings)


def write_splits(folder: Path, *splits: list[list[Clip]]) -> Path:
    for split, groups in zip(("train", "val", "test"), splits, strict=True):
        write_index(folder / "sorted" / "index" / f"{split}.json", groups)
    return folder / "sorted"


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> SpeakerTarget:
    """A speaker encoder that returns the mean and the maximum of the samples."""
    weights = tmp_path_factory.mktemp("speaker") / "weights.pt"
    weights.write_bytes(b"none")
    forward = lambda _, wave: torch.stack([wave.mean(), wave.max()])  # noqa: E731
    return SpeakerTarget(torch.nn.Identity(), 2, "ge2e", (weights,), forward)


def equal(ours: Sequence[Features], wanted: Sequence[Features]) -> bool:
    return len(ours) == len(wanted) and all(
        set(one) == set(other) and all(torch.equal(one[kind], other[kind]) for kind in one)
        for one, other in zip(ours, wanted, strict=True)
    )


def test_features_are_in_clip_order(folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore) -> None:
    seen: list[tuple[int, int]] = []
    extraction = extract_features(clips, folder, encoders, store, lambda done, of: seen.append((done, of)))
    assert (extraction.clips, extraction.reused, extraction.computed) == (COUNT, 0, COUNT)
    assert seen == [(done, COUNT) for done in range(1, COUNT + 1)]
    wanted = [encode_recording(decode(folder / clip.audio_file), encoders) for clip in clips]
    references = extraction.encoders
    assert equal(StoredFeatures(clips, references, ["muq", "campplus"], store), wanted)
    assert equal(StoredFeatures(clips[::-1], references, ["muq", "campplus"], store), wanted[::-1])
    assert [set(one) for one in StoredFeatures(clips, references, ["campplus"], store)] == [{"campplus"}] * COUNT
    assert [len(one["muq"]) for one in wanted] == [-(-25 * (5 + index) // 10) for index in range(COUNT)]


def test_only_missing_features_are_computed(
    clips: list[Clip], run: Run, encoders: Encoders, store: FeatureStore, calls: Counter[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run(clips[:5])
    store.path(encoders["muq"].reference, str(clips[0].sha256)).unlink()
    calls.clear()
    with caplog.at_level(logging.INFO, "audioscore"):
        extraction = run(clips[:7])
    assert calls == {"muq-l2": 3, "campplus": 2}
    assert (extraction.clips, extraction.reused, extraction.computed) == (7, 4, 3)
    assert re.search(r"\b4\b.*\b7\b.*\b3\b", caplog.text)
    calls.clear()
    extraction = run(clips[:7])
    assert (extraction.clips, extraction.reused, extraction.computed, calls) == (7, 7, 0, {})


def test_files_are_found_by_names_in_other_encodings(folder: Path, clips: list[Clip], run: Run) -> None:
    on_disk = [os.fsdecode("歌.flac".encode("gbk")), unicodedata.normalize("NFD", "Zo\u00eb.flac")]
    for clip, name in zip(clips, on_disk, strict=False):
        (folder / clip.audio_file).rename(folder / "audio" / name)
    named = [replace(clips[0], audio_file="audio/歌.flac"), replace(clips[1], audio_file="audio/Zo\u00eb.flac")]
    assert run(named).computed == 2


def test_an_invalid_recording_or_layer_is_refused(
    folder: Path, clips: list[Clip], run: Run, encoders: Encoders, store: FeatureStore
) -> None:
    (folder / clips[0].audio_file).unlink()
    with pytest.raises(AudioError, match=r"audio/00\.flac"):
        run(clips[:1])
    encode(np.full(24_000, 0.1, np.float32), 24_000, folder / clips[3].audio_file, codec="flac")
    with pytest.raises(DataError, match=r"^audio/03\.flac: changed"):
        run(clips[3:4])
    for sha256 in (str(clips[3].sha256), sha256_of(folder / clips[3].audio_file)):
        assert not store.has(encoders["muq"].reference, sha256)
    with pytest.raises(ModelError, match=r"^audio/04\.flac: .*layer 3: .*0 to 1\b"):
        run(clips[4:5], prefix_layer=3)
    with pytest.raises(DataError, match=r"^audio/00\.flac: .*sha256"):
        run([replace(clips[0], sha256=None)])


def test_an_extraction_is_written_with_its_own_encoders(
    folder: Path, clips: list[Clip], run: Run, encoders: Encoders, store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"extraction\.json"):
        read_extraction(tmp_path / "out")
    extraction, source = run(clips[:2]), tmp_path / "out" / "extraction.json"
    write_extraction(extraction, encoders, tmp_path / "out")
    assert extraction.speaker is None
    assert read_extraction(tmp_path / "out") == extraction
    names = {"muq": ["config.json", "model.safetensors"], "campplus": ["campplus_small.bin", "configuration.json"]}
    for kind, files in names.items():
        assert sorted(path.name for path in (tmp_path / "out" / "encoders" / kind).iterdir()) == files
    older = json.loads(source.read_text())
    del older["speaker"]
    for reference in older["encoders"].values():
        del reference["precision"], reference["window"]
    source.write_text(json.dumps(older))
    assert read_extraction(tmp_path / "out") == extraction
    published = copy.copy(encoders["muq"])
    published.reference = replace(encoders["muq"].reference, id="OpenMuQ/MuQ-large-msd-iter", revision="b83ebda")
    hub: Encoders = {"muq": published}
    write_extraction(extract_features(clips[:1], folder, hub, store), hub, tmp_path / "hub")
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["extraction.json"]
    assert read_extraction(tmp_path / "hub").encoders["muq"] == published.reference


def test_all_splits_and_relative_labels_are_extracted(
    folder: Path, clips: list[Clip], section: EncodersSection, tmp_path: Path
) -> None:
    relative = [replace(clip, score=None) for clip in clips[2:6]]
    index = write_splits(tmp_path, [clips[:3], relative], [clips[6:7]], [clips[7:8]])
    assert [len(group) for group in read_unscored_groups(index, "train")] == [4]
    extraction = extract_folder(folder, index, tmp_path / "out", tmp_path / "features", section)
    assert (extraction.clips, extraction.computed) == (8, 8)
    assert read_extraction(tmp_path / "out") == extraction
    described = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert described["encoders"]["muq"]["layer"] == 2
    features = StoredFeatures(clips[:8], extraction.encoders, ["muq"], FeatureStore(tmp_path / "features"))
    assert len(list(features)) == 8
    again = extract_folder(folder, index, tmp_path / "more", tmp_path / "features", section)
    assert (again.clips, again.reused, again.computed) == (8, 8, 0)


def test_a_repeated_clip_is_extracted_once(clips: list[Clip], run: Run, calls: Counter[str]) -> None:
    extraction = run([clips[0], clips[1], replace(clips[0], score=None), clips[0]])
    assert (extraction.clips, extraction.reused, extraction.computed) == (2, 0, 2)
    assert calls == {"muq-l2": 2, "campplus": 2}


@pytest.mark.parametrize("layer", [0, 1])
def test_a_hidden_state_is_stored_beside_the_outputs(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, layer: int
) -> None:
    extraction = extract_features(clips[:3], folder, encoders, store, prefix_layer=layer)
    assert extraction.encoders == {kind: encoder.reference for kind, encoder in encoders.items()}
    muq = encoders["muq"]
    assert isinstance(muq, MuQEncoder)
    kept = StoredFeatures(clips[:3], extraction.encoders, ["muq", "campplus"], store, prefix_layer=layer)
    plain = StoredFeatures(clips[:3], extraction.encoders, ["muq", "campplus"], store)
    for hidden, output, clip in zip(kept, plain, clips[:3], strict=True):
        recording = decode(folder / clip.audio_file)
        assert torch.equal(hidden["muq"], prefix_frames(muq, torch.from_numpy(recording.at(24_000)), layer))
        assert int(hidden[WINDOWS]) == 1
        assert store.has(prefix_reference(muq.reference, layer), str(clip.sha256))
        assert equal([hidden, output], [encode_recording(recording, encoders, at) for at in (layer, None)])
        assert WINDOWS not in output


@pytest.mark.parametrize("layer", [0, 1])
def test_optimized_kernels_are_shared_by_all_threads(
    folder: Path, clips: list[Clip], section: EncodersSection, store: FeatureStore, tmp_path: Path, layer: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    encoders: Encoders = {"muq": load_muq(section.muq.source, layer=2, window_seconds=0.6)}
    plain = extract_features(clips, folder, encoders, store, prefix_layer=layer)
    for module in (muq_front, muq_conformer):
        monkeypatch.setattr(module, "MIN_CHANNELS", 1)
    optimized = FeatureStore(tmp_path / "optimized")
    monkeypatch.setattr(MuQEncoder, "by_window", None)  # the encoder's own forward
    made: list[object] = []
    real = muq_front.FrontEnd.__init__
    monkeypatch.setattr(muq_front.FrontEnd, "__init__", lambda self, *given: (made.append(self), real(self, *given))[1])
    assert extract_features(clips, folder, encoders, optimized, prefix_layer=layer).computed == plain.computed == COUNT
    assert len(made) == 1
    features = StoredFeatures(clips, plain.encoders, ["muq"], store, prefix_layer=layer)
    assert [int(one[WINDOWS]) for one in features] == [1, 1, *[2] * 6, *[3] * 4]  # clips of 0.5 to 1.6 s
    assert [store.windows(encoders["muq"].reference, str(clip.sha256)) for clip in clips[1:3]] == [1, 2]
    for prefix in (None, layer):
        found, wanted = (
            StoredFeatures(clips, plain.encoders, ["muq"], one, prefix_layer=prefix) for one in (optimized, store)
        )
        for ours, theirs in zip(found, wanted, strict=True):
            assert set(ours) == set(theirs)
            for name, values in theirs.items():
                torch.testing.assert_close(ours[name], values, rtol=0, atol=1e-4)


def test_only_the_missing_hidden_state_is_computed(clips: list[Clip], run: Run, calls: Counter[str]) -> None:
    run(clips[:4])
    calls.clear()
    for counts in ((0, 4), (4, 0)):
        extraction = run(clips[:4], prefix_layer=1)
        assert (extraction.reused, extraction.computed, calls) == (*counts, {"muq-l1": 4})


def test_the_speaker_target_is_stored(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, speaker: SpeakerTarget, tmp_path: Path
) -> None:
    extraction = extract_features(clips[:3], folder, encoders, store, speaker=speaker)
    assert extraction.speaker == speaker.reference
    for clip in clips[:3]:
        wave = torch.from_numpy(decode(folder / clip.audio_file).at(16_000))
        wanted = torch.nn.functional.normalize(torch.stack([wave.mean(), wave.max()]), dim=0)
        assert torch.equal(store.get(speaker.reference, str(clip.sha256)), wanted)
    write_extraction(extraction, encoders, tmp_path / "out")
    assert read_extraction(tmp_path / "out") == extraction
    assert not (tmp_path / "out" / "encoders" / "ge2e").exists()
    extraction = extract_features(clips[:3], folder, encoders, store, speaker=speaker)
    assert (extraction.reused, extraction.computed, extraction.speaker) == (3, 0, speaker.reference)


@pytest.mark.parametrize(
    ("settings", "layer", "loads"),
    [
        ({}, None, False), ({"tuning": "lora", "tune_from": 1}, 1, False), ({"tuning": "full"}, 0, False),
        ({"layers": "mix", "tune_from": 1}, 1, False), ({"adversary": {"weight": 0.5, "target": "ge2e"}}, None, True),
        ({"adversary": {"weight": 0.0, "target": "ge2e"}}, None, False),
        ({"adversary": {"weight": 0.5, "target": "campplus"}}, None, False),
    ],
)  # fmt: skip
def test_features_for_training_are_extracted(
    folder: Path, clips: list[Clip], section: EncodersSection, speaker: SpeakerTarget, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], layer: int | None, loads: bool,
) -> None:  # fmt: skip
    loaded: list[tuple[str, ...]] = []
    monkeypatch.setattr(extract, "load_speaker", lambda *given: (loaded.append(given[:3]), speaker)[1])
    index, store = write_splits(tmp_path, [clips[:1]], [clips[1:2]], [clips[2:3]]), tmp_path / "features"
    if "adversary" in settings:
        settings = {"adversary": settings["adversary"] | {"source": "/srv/voices"}}
    training = TrainingSection.model_validate(settings)
    done = extract_folder(folder, index, tmp_path / "out", store, section, training)
    layers = {2} if layer is None else {2, layer}
    assert {path.name.split("-")[2] for path in store.glob("muq-*")} == {f"l{one}" for one in layers}
    assert loaded == ([("ge2e", "/srv/voices", "cpu")] if loads else [])
    assert (done.computed, done.speaker) == (3, speaker.reference if loads else None)
    features = StoredFeatures(clips[:3], done.encoders, ["muq"], FeatureStore(store), prefix_layer=layer)
    assert len(list(features)) == 3
