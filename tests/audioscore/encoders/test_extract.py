import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.config import EncodersSection, TrainingSection
from audioscore.data.audio import Recording, decode, encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.encoders import extract, muq_conformer, muq_front
from audioscore.encoders.campplus import CampplusEncoder
from audioscore.encoders.extract import (
    WINDOWS,
    Encoders,
    Part,
    choose_device,
    encode_recording,
    extract_features,
    extract_folder,
    load_encoders,
    read_extraction,
    write_extraction,
)
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_inference import MuQInference
from audioscore.encoders.muq_layers import prefix_frames, prefix_reference
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.encoders.speaker_targets import SpeakerTarget
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored import StoredFeatures
from audioscore.errors import AudioError, DataError, ModelError, UsageError
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


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thing is heard from now on."""
    calls: Counter[str] = Counter()
    hear = Part.hear

    def count(part: Part, recording: Recording) -> tuple[torch.Tensor, int]:
        layer = "" if part.reference.layer is None else f"-l{part.reference.layer}"
        calls[f"{part.reference.kind}{layer}"] += 1
        return hear(part, recording)

    monkeypatch.setattr(Part, "hear", count)
    return calls


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> SpeakerTarget:
    """A speaker encoder that knows voices by the mean and the largest of their samples."""
    weights = tmp_path_factory.mktemp("speaker") / "weights.pt"
    weights.write_bytes(b"none")

    def listen(module: torch.nn.Module, wave: torch.Tensor) -> torch.Tensor:
        return torch.stack([wave.mean(), wave.max()])

    return SpeakerTarget(torch.nn.Identity(), 2, "ge2e", (weights,), listen)


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
    assert equal(StoredFeatures(clips, references, ["muq", "campplus"], store), wanted)
    assert equal(StoredFeatures(clips[::-1], references, ["muq", "campplus"], store), wanted[::-1])
    assert [set(one) for one in StoredFeatures(clips, references, ["campplus"], store)] == [{"campplus"}] * COUNT
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
    calls = counted(monkeypatch)
    with caplog.at_level(logging.INFO):
        extraction = extract_features(clips[:7], folder, encoders, store)
    assert calls == {"muq-l2": 3, "campplus": 2}
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
        StoredFeatures(clips, only, ["muq", "campplus"], store)


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
    again = extract_folder(folder, tmp_path / "sorted", tmp_path / "more", tmp_path / "features", section)
    assert (again.clips, again.reused, again.computed) == (6, 6, 0)


def test_an_order_without_scores_is_extracted_with_the_rest_and_a_clip_of_both_once(
    folder: Path, clips: list[Clip], section: EncodersSection, tmp_path: Path
) -> None:
    from audioscore.data.sort import read_relative

    relative = [replace(clip, score=None) for clip in clips[2:6]]
    for split, groups in (("train", [clips[:3], relative]), ("val", [clips[6:7]]), ("test", [clips[7:8]])):
        write_index(tmp_path / "sorted" / "index" / f"{split}.json", groups)
    assert [len(group) for group in read_relative(tmp_path / "sorted", "train")] == [4]
    extraction = extract_folder(folder, tmp_path / "sorted", tmp_path / "out", tmp_path / "features", section)
    assert (extraction.clips, extraction.computed) == (8, 8)
    wanted = [clips[place] for place in (0, 1, 2, 3, 4, 5, 6, 7)]
    features = StoredFeatures(wanted, extraction.encoders, ["muq"], FeatureStore(tmp_path / "features"))
    assert len(list(features)) == 8


def test_a_clip_that_is_listed_twice_is_extracted_once(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    again = replace(clips[0], score=None)
    extraction = extract_features([clips[0], clips[1], again, clips[0]], folder, encoders, store)
    assert (extraction.clips, extraction.reused, extraction.computed) == (2, 0, 2)
    assert calls == {"muq-l2": 2, "campplus": 2}


@pytest.mark.parametrize("layer", [0, 1])
def test_a_hidden_state_is_kept_beside_the_outputs_and_under_a_name_of_its_own(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, layer: int
) -> None:
    extraction = extract_features(clips[:3], folder, encoders, store, prefix_layer=layer)
    assert extraction.encoders == {kind: encoder.reference for kind, encoder in encoders.items()}
    muq = encoders["muq"]
    assert isinstance(muq, MuQEncoder)
    kept = StoredFeatures(clips[:3], extraction.encoders, ["muq", "campplus"], store, prefix_layer=layer)
    plain = StoredFeatures(clips[:3], extraction.encoders, ["muq", "campplus"], store)
    for place, clip in enumerate(clips[:3]):
        recording = decode(folder / clip.audio_file)
        wanted = prefix_frames(muq, torch.from_numpy(recording.at(24_000)), layer)
        assert torch.equal(kept[place]["muq"], wanted)
        assert int(kept[place][WINDOWS]) == 1
        assert store.has(prefix_reference(muq.reference, layer), str(clip.sha256))
        assert equal([kept[place]], [encode_recording(recording, encoders, layer)])
        assert equal([plain[place]], [encode_recording(recording, encoders)])
        assert WINDOWS not in plain[place]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_wide_muq_is_heard_in_its_quick_form_by_all_threads_alike(
    folder: Path, clips: list[Clip], section: EncodersSection, store: FeatureStore, tmp_path: Path, layer: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    encoders: Encoders = {"muq": load_muq(section.muq.source, layer=2, window_seconds=0.6)}
    plain = extract_features(clips, folder, encoders, store, prefix_layer=layer)
    for module in (muq_front, muq_conformer):
        monkeypatch.setattr(module, "MIN_CHANNELS", 1)
    quick = FeatureStore(tmp_path / "quick")
    monkeypatch.setattr(MuQEncoder, "by_window", None)  # the encoder's own way
    made: list[object] = []
    real = muq_front.FrontEnd.__init__
    monkeypatch.setattr(muq_front.FrontEnd, "__init__", lambda self, *given: (made.append(self), real(self, *given))[1])
    assert extract_features(clips, folder, encoders, quick, prefix_layer=layer).computed == plain.computed == COUNT
    assert len(made) == 1
    for prefix in (None, layer):
        found, wanted = (
            StoredFeatures(clips, plain.encoders, ["muq"], one, prefix_layer=prefix) for one in (quick, store)
        )
        for ours, theirs in zip(found, wanted, strict=True):
            assert set(ours) == set(theirs)
            for name, values in theirs.items():
                torch.testing.assert_close(ours[name], values, rtol=0, atol=1e-4)


def test_the_quick_form_refuses_what_the_encoder_refuses(encoders: Encoders) -> None:
    muq = encoders["muq"]
    assert isinstance(muq, MuQEncoder)
    with pytest.raises(ModelError, match=r"MuQ needs a wave \[T\] of at least 6000 samples at 24 kHz; got \[5999\]"):
        MuQInference(muq).hear([torch.zeros(24_000), torch.zeros(5_999)])
    with pytest.raises(ModelError, match="MuQ cut at layer 2: the layers up to the one that is read are 0 to 1"):
        MuQInference(muq).hear([torch.zeros(24_000)], 2)


def test_only_the_hidden_state_is_computed_where_the_rest_is_known(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_features(clips[:4], folder, encoders, store)
    calls = counted(monkeypatch)
    extraction = extract_features(clips[:4], folder, encoders, store, prefix_layer=1)
    assert (extraction.reused, extraction.computed) == (0, 4)
    assert calls == {"muq-l1": 4}
    extraction = extract_features(clips[:4], folder, encoders, store, prefix_layer=1)
    assert (extraction.reused, extraction.computed, calls) == (4, 0, {"muq-l1": 4})


def test_the_number_of_windows_is_kept_with_the_feature(
    folder: Path, clips: list[Clip], section: EncodersSection, store: FeatureStore
) -> None:
    """The clips are of 0.5 to 1.6 s."""
    encoders: Encoders = {"muq": load_muq(section.muq.source, layer=2, window_seconds=0.6)}
    extraction = extract_features(clips, folder, encoders, store, prefix_layer=1)
    features = StoredFeatures(clips, extraction.encoders, ["muq"], store, prefix_layer=1)
    assert [int(one[WINDOWS]) for one in features] == [1, 1, *[2] * 6, *[3] * 4]
    assert [store.windows(encoders["muq"].reference, str(clip.sha256)) for clip in clips[1:3]] == [1, 2]


def test_a_layer_that_is_not_below_the_one_that_is_read_is_refused(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore
) -> None:
    with pytest.raises(
        ModelError, match=r"^audio/00\.flac: MuQ cut at layer 3: the layers up to the one that is read are 0 to 1\."
    ):
        extract_features(clips[:1], folder, encoders, store, prefix_layer=3)


def test_what_an_adversary_is_to_guess_is_kept_and_named(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, speaker: SpeakerTarget, tmp_path: Path
) -> None:
    extraction = extract_features(clips[:3], folder, encoders, store, speaker=speaker)
    assert extraction.speaker == speaker.reference
    for clip in clips[:3]:
        wave = torch.from_numpy(decode(folder / clip.audio_file).at(16_000))
        judge = torch.nn.functional.normalize(torch.stack([wave.mean(), wave.max()]), dim=0)
        assert torch.equal(store.get(speaker.reference, str(clip.sha256)), judge)
    write_extraction(extraction, encoders, tmp_path / "out")
    assert read_extraction(tmp_path / "out") == extraction
    assert not (tmp_path / "out" / "encoders" / "ge2e").exists(), "it is never part of a scorer"
    extraction = extract_features(clips[:3], folder, encoders, store, speaker=speaker)
    assert (extraction.reused, extraction.computed, extraction.speaker) == (3, 0, speaker.reference)


def test_without_an_adversary_nobody_is_named(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, tmp_path: Path
) -> None:
    extraction = extract_features(clips[:1], folder, encoders, store)
    write_extraction(extraction, encoders, tmp_path / "out")
    assert extraction.speaker is None
    assert read_extraction(tmp_path / "out") == extraction


def test_a_description_of_the_version_before_still_reads(
    folder: Path, clips: list[Clip], encoders: Encoders, store: FeatureStore, tmp_path: Path
) -> None:
    extraction = extract_features(clips[:1], folder, encoders, store)
    write_extraction(extraction, encoders, tmp_path / "out")
    source = tmp_path / "out" / "extraction.json"
    value = json.loads(source.read_text())
    del value["speaker"]
    for reference in value["encoders"].values():
        del reference["precision"], reference["window"]
    source.write_text(json.dumps(value))
    assert read_extraction(tmp_path / "out") == extraction


def training(**settings: object) -> TrainingSection:
    return TrainingSection.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "layer"),
    [
        ({}, None),
        ({"tuning": "lora", "tune_from": 1}, 1),
        ({"tuning": "full"}, 0),
        ({"layers": "mix", "tune_from": 1}, 1),
    ],
)
def test_a_folder_is_extracted_with_what_its_training_goes_on_from(
    folder: Path, clips: list[Clip], section: EncodersSection, tmp_path: Path, settings: dict[str, object], layer: int
) -> None:
    for split, part in (("train", clips[:1]), ("val", clips[1:2]), ("test", clips[2:3])):
        write_index(tmp_path / "sorted" / "index" / f"{split}.json", [part])
    store = tmp_path / "features"
    done = extract_folder(folder, tmp_path / "sorted", tmp_path / "out", store, section, training(**settings))
    layers = {2} if layer is None else {2, layer}
    assert {path.name.split("-")[2] for path in store.glob("muq-*")} == {f"l{one}" for one in layers}
    assert (done.computed, done.speaker) == (3, None)
    features = StoredFeatures(clips[:3], done.encoders, ["muq"], FeatureStore(store), prefix_layer=layer)
    assert len(list(features)) == 3


@pytest.mark.parametrize(
    ("target", "weight", "loads"), [("ge2e", 0.5, True), ("ge2e", 0.0, False), ("campplus", 0.5, False)]
)
def test_a_speaker_is_heard_where_an_adversary_guesses_one_that_is_no_encoder_of_ours(
    folder: Path,
    clips: list[Clip],
    section: EncodersSection,
    speaker: SpeakerTarget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    weight: float,
    loads: bool,
) -> None:
    asked: list[tuple[str, str, str]] = []

    def load(*what: str) -> SpeakerTarget:
        asked.append((what[0], what[1], what[2]))
        return speaker

    monkeypatch.setattr(extract, "load_speaker", load)
    for split, part in (("train", clips[:1]), ("val", clips[1:2]), ("test", clips[2:3])):
        write_index(tmp_path / "sorted" / "index" / f"{split}.json", [part])
    settings = training(adversary={"weight": weight, "target": target, "source": "/srv/voices"})
    index, store = tmp_path / "sorted", tmp_path / "features"
    extraction = extract_folder(folder, index, tmp_path / "out", store, section, settings)
    assert asked == ([("ge2e", "/srv/voices", "cpu")] if loads else [])
    assert extraction.speaker == (speaker.reference if loads else None)


@pytest.mark.parametrize(
    ("device", "gpus", "chosen"),
    [("cpu", 2, "cpu"), ("auto", 0, "cpu"), ("auto", 2, "cuda:1"), ("cuda", 2, "cuda:1"), ("cuda:0", 2, "cuda:0")],
)
def test_a_device_is_chosen(device: str, gpus: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device(device) == chosen


@pytest.mark.parametrize(
    ("device", "gpus", "sentence"),
    [
        ("tpu", 2, "device tpu: there are auto, cpu, cuda, and cuda:N for the GPU of that number."),
        ("cuda:x", 2, "device cuda:x: there are auto, cpu, cuda"),
        ("cuda:", 2, "device cuda:: there are auto, cpu, cuda"),
        ("cuda", 0, "device cuda: this machine has 0 GPUs that torch can use. Take auto or cpu."),
        ("cuda:2", 2, "device cuda:2: this machine has 2 GPUs that torch can use."),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    device: str, gpus: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UsageError) as refused:
        choose_device(device)
    assert str(refused.value).startswith(sentence)
