import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.config import EncodersSection
from audioscore.data.audio import Recording, decode, encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.encoders import extract
from audioscore.encoders.campplus import CampplusEncoder
from audioscore.encoders.extract import (
    Encoders,
    encode_recording,
    extract_features,
    extract_folder,
    features_of,
    load_encoders,
    read_extraction,
    write_extraction,
)
from audioscore.encoders.muq import MuQEncoder
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.encoders.store import FeatureStore
from audioscore.errors import AudioError, DataError, ModelError
from audioscore.files import sha256_of

COUNT = 12  # more than are decoded ahead


@pytest.fixture(scope="module")
def section(tiny_encoders: Path) -> EncodersSection:
    return EncodersSection.model_validate(
        {
            "muq": {"source": str(tiny_encoders / "muq-small"), "layer": 2},
            "campplus": {"source": str(tiny_encoders / "campplus-small")},
        }
    )


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
    return [Clip(name, 99.0 - place, sha256=sha256_of(folder / name)) for place, name in enumerate(names)]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def silent_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders that must not be asked."""

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("an encoder was called")

    monkeypatch.setattr(MuQEncoder, "frames", refuse)
    monkeypatch.setattr(CampplusEncoder, "embedding", refuse)


def equal(ours: Sequence[extract.Features], wanted: Sequence[extract.Features]) -> bool:
    return len(ours) == len(wanted) and all(
        set(one) == set(other) and all(torch.equal(one[kind], other[kind]) for kind in one)
        for one, other in zip(ours, wanted, strict=True)
    )


def test_features_are_those_of_the_decoded_file_in_the_clips_order(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore
) -> None:
    seen: list[tuple[int, int]] = []
    extraction = extract_features(clips, folder, encoders, store, lambda done, of: seen.append((done, of)))
    assert (extraction.clips, extraction.reused, extraction.computed) == (COUNT, 0, COUNT)
    assert seen == [(done, COUNT) for done in range(1, COUNT + 1)]
    wanted = [encode_recording(decode(folder / clip.audio_file), encoders) for clip in clips]
    references = extraction.encoders
    assert equal(features_of(clips, references, ["muq", "campplus"], store), wanted)
    assert equal(features_of(clips[::-1], references, ["muq", "campplus"], store), wanted[::-1])
    assert [set(one) for one in features_of(clips, references, ["campplus"], store)] == [{"campplus"}] * COUNT
    assert [len(one["muq"]) for one in wanted] == [-(-25 * (5 + index) // 10) for index in range(COUNT)]


@pytest.mark.usefixtures("silent_encoders")
def test_a_second_pass_computes_nothing(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore
) -> None:
    for clip in clips:
        for encoder in encoders.values():
            store.put(encoder.reference, str(clip.sha256), torch.zeros(2))
    extraction = extract_features(clips, folder, encoders, store)
    assert (extraction.clips, extraction.reused, extraction.computed) == (COUNT, COUNT, 0)


def test_only_what_is_missing_is_computed_and_the_reuse_is_reported(
    folder: Path,
    clips: list[Clip],
    encoders: Encoders,
    store: FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    extract_features(clips[:5], folder, encoders, store)
    store.path(encoders["muq"].reference, str(clips[0].sha256)).unlink()
    calls = {"muq": 0, "campplus": 0}
    hear = extract._hear

    def counted(recording: Recording, encoder: MuQEncoder | CampplusEncoder) -> torch.Tensor:
        calls[encoder.reference.kind] += 1
        return hear(recording, encoder)

    monkeypatch.setattr(extract, "_hear", counted)
    with caplog.at_level(logging.INFO):
        extraction = extract_features(clips[:7], folder, encoders, store)
    assert calls == {"muq": 3, "campplus": 2}
    assert (extraction.clips, extraction.reused, extraction.computed) == (7, 4, 3)
    assert "features: 4 of 7 clips reused from the store, 3 to extract" in caplog.text


def test_a_recording_changed_since_validation_is_an_error_naming_it(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore
) -> None:
    encode(np.full(24_000, 0.1, np.float32), 24_000, folder / clips[3].audio_file, codec="flac")
    with pytest.raises(
        DataError, match=r"^audio/03\.flac: changed since it was validated\. Validate the data again\.$"
    ):
        extract_features(clips, folder, encoders, store)
    assert not store.has(encoders["muq"].reference, str(clips[3].sha256))
    assert not store.has(encoders["muq"].reference, sha256_of(folder / clips[3].audio_file))


def test_a_recording_gone_since_validation_is_an_error_naming_it(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore
) -> None:
    (folder / clips[0].audio_file).unlink()
    with pytest.raises(AudioError, match=r"audio/00\.flac: no such file"):
        extract_features(clips, folder, encoders, store)


def test_a_clip_that_was_never_validated_is_refused(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore
) -> None:
    with pytest.raises(DataError, match=r"^audio/00\.flac: has no sha256\. Validate the data"):
        extract_features([replace(clips[0], sha256=None)], folder, encoders, store)


def test_an_extraction_is_described_with_its_encoders_beside_it(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, tmp_path: Path
) -> None:
    extraction = extract_features(clips[:2], folder, encoders, store)
    write_extraction(extraction, encoders, tmp_path / "out")
    assert read_extraction(tmp_path / "out") == extraction
    embedded = {
        kind: sorted(path.name for path in (tmp_path / "out" / "encoders" / kind).iterdir())
        for kind in ("muq", "campplus")
    }
    assert embedded == {
        "muq": ["config.json", "model.safetensors"],
        "campplus": ["campplus_small.bin", "configuration.json"],
    }


def test_an_encoder_of_the_hub_is_referred_to_and_not_copied(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, tmp_path: Path
) -> None:
    known = MuQEncoder.__new__(MuQEncoder)
    known.__dict__.update(encoders["muq"].__dict__)
    known.reference = replace(encoders["muq"].reference, id="OpenMuQ/MuQ-large-msd-iter", revision="b83ebda")
    hub: Encoders = {"muq": known}
    write_extraction(extract_features(clips[:1], folder, hub, store), hub, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["extraction.json"]
    assert read_extraction(tmp_path / "out").encoders["muq"] == known.reference


def test_an_extraction_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no extraction\.json; feature extraction did not finish\. Run it"):
        read_extraction(tmp_path)


def test_features_that_no_encoder_made_are_refused(store: FeatureStore, clips: list[Clip]) -> None:
    only: dict[Kind, EncoderReference] = {"muq": EncoderReference("muq", None, None, "ab" * 32, 2)}
    with pytest.raises(ModelError, match=r"^no campplus features were extracted; there are \['muq'\]\.$"):
        features_of(clips, only, ["muq", "campplus"], store)


def test_a_folder_is_extracted_for_all_three_splits(
    folder: Path, clips: list[Clip], section: EncodersSection, tmp_path: Path
) -> None:
    for split, part in (("train", clips[:3]), ("val", clips[3:5]), ("test", clips[5:6])):
        write_index(tmp_path / "sorted" / "index" / f"{split}.json", [part])
    extraction = extract_folder(folder, tmp_path / "sorted", tmp_path / "out", tmp_path / "features", section)
    assert (extraction.clips, extraction.computed) == (6, 6)
    assert read_extraction(tmp_path / "out") == extraction
    described = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert described["encoders"]["muq"]["layer"] == 2
