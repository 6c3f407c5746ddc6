"""From a recording to what the scorer hears: the same few lines in training, evaluation, service and registry."""

import logging
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording, decode
from audioscore.data.clips import Clip
from audioscore.data.split.assign import SPLITS
from audioscore.data.split.sort import read_relative, read_split
from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.compute import one_torch_thread
from audioscore.encoders.features import WINDOWS, Encoder, EncoderReference, Encoders, Features, Kind
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.store import FeatureStore
from audioscore.errors import AudioError, DataError, ModelError, UsageError
from audioscore.files import read_json, sha256_of, write_json
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE

if TYPE_CHECKING:
    from torch import Tensor

    from audioscore.config import EncoderSection, EncodersSection, TrainingSection
    from audioscore.encoders.speakers.targets import SpeakerTarget
    from audioscore.muq_cpu.inference import MuQInference


SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


def shards_of(count: int) -> list[str]:
    """The shares that so many pods do.

    >>> shards_of(3), shards_of(1)
    (['0/3', '1/3', '2/3'], ['0/1'])
    """
    return [f"{which}/{count}" for which in range(count)]


def share_of(shard: str) -> tuple[int, int]:
    """Which share, of how many. Raises UsageError where that is none.

    >>> share_of("1/4")
    (1, 4)
    """
    match = SHARD.fullmatch(shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"{shard!r} is no share. Give WHICH/COUNT, from 0/4 to 3/4 for four.")
    return int(match[1]), int(match[2])


log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0
AHEAD = 2  # recordings in hand for each thread: enough to keep it fed, few enough to bound memory


@dataclass(frozen=True)
class Extraction:
    """What one pass over the corpus did, which encoders it used, and where the features lie."""

    store: str  # a folder, or s3://BUCKET/PREFIX
    encoders: dict[Kind, EncoderReference]
    clips: int
    reused: int
    computed: int
    seconds: float
    speaker: EncoderReference | None = None  # what an adversary is to guess, where it is none of the encoders


def load_encoders(section: "EncodersSection", device: str = "cpu") -> Encoders:
    """Both encoders of a configuration."""
    muq, campplus = section.muq, section.campplus
    return {
        "muq": load_muq(
            muq.source,
            layer=muq.layer or 6,
            revision=muq.revision,
            sha256=muq.sha256,
            device=device,
            precision=section.precision,
        ),
        "campplus": load_campplus(
            campplus.source,
            revision=campplus.revision,
            sha256=campplus.sha256,
            device=device,
            precision=section.precision,
        ),
    }


def load_speaker(target: str, source: str, device: str = "cpu") -> "SpeakerTarget":
    """The speaker encoder that an adversary is to guess: ge2e from Resemblyzer's file, samoye from its folder."""
    if target == "ge2e":
        from audioscore.encoders.speakers.ge2e import load_ge2e

        return load_ge2e(Path(source), device=device)
    from audioscore.encoders.speakers.samoye import load_samoye

    return load_samoye(Path(source), device=device)


def encode_recording(recording: Recording, encoders: Encoders, prefix_layer: int | None = None) -> Features:
    """Hear a recording with the given encoders; with `prefix_layer`, MuQ gives that hidden state in place of its own.

    Shape: "muq" -> frames [F, D], "campplus" -> embedding [E].
    """
    import torch

    heard: dict[str, Tensor] = {}
    for kind, encoder in encoders.items():
        part = Part(encoder, prefix_layer if kind == "muq" else None)
        heard[kind], windows = part.hear(recording)
        if part.from_layer is not None:
            heard[WINDOWS] = torch.tensor(windows)
    return heard


@dataclass(frozen=True)
class Part:
    """One thing to hear of a recording: what an encoder gives, or a hidden state of MuQ below it.

    With `quick`, MuQ is heard in that form, whose frames are its own but for rounding.
    """

    encoder: "Encoder | SpeakerTarget"
    from_layer: int | None = None
    quick: "MuQInference | None" = None

    @property
    def reference(self) -> EncoderReference:
        """What the store keeps it under."""
        if self.from_layer is None:
            return self.encoder.reference
        from audioscore.encoders.muq_layers import prefix_reference

        return prefix_reference(self.encoder.reference, self.from_layer)

    def hear(self, recording: Recording) -> "tuple[Tensor, int]":
        """The feature, and in how many windows MuQ heard it (1 for others)."""
        import torch

        if not isinstance(self.encoder, MuQEncoder):
            return self.encoder.embedding(torch.from_numpy(recording.at(CAMPPLUS_RATE))), 1
        # Whole recordings are heard for models that came before, which took librosa's word for their length.
        heard = recording.at(MUQ_RATE) if self.encoder.window is not None else recording.rounded_up(MUQ_RATE)
        wave = torch.from_numpy(heard)
        if self.quick is not None:
            return self.quick.hear([wave], self.from_layer)[0], self.encoder.windows(len(wave))
        if self.from_layer is None:
            return self.encoder.frames(wave), self.encoder.windows(len(wave))
        from audioscore.encoders.muq_layers import prefix_frames

        return prefix_frames(self.encoder, wave, self.from_layer), self.encoder.windows(len(wave))


def quick_form(encoder: "Encoder | SpeakerTarget") -> "MuQInference | None":
    """MuQ as scoring runs it, where that is quicker than the encoder itself, for threads that hear recordings side by
    side. Only for many of them: preparing its weights takes a second, and 300 MB, at the published size.
    """
    if not isinstance(encoder, MuQEncoder):
        return None
    from audioscore.muq_cpu.inference import MuQInference

    return MuQInference(encoder, threads=False) if MuQInference.suits(encoder) else None


def extract_features(
    clips: Sequence[Clip],
    folder: Path,
    encoders: Encoders,
    store: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
    *,
    prefix_layer: int | None = None,
    speaker: "SpeakerTarget | None" = None,
) -> Extraction:
    """Put every clip's features into the store; what is already there is not computed again.

    With `prefix_layer`, also that hidden state of MuQ, which training goes on from; with `speaker`, also what an
    adversary is to guess. Clips need their sha256 (validation fills it). Raises DataError where a recording changed
    since it was validated.
    """
    started, computed, shown = time.monotonic(), 0, 0.0
    quick = {kind: quick_form(encoder) for kind, encoder in encoders.items()}
    parts = [Part(encoder, quick=quick[kind]) for kind, encoder in encoders.items()]
    if prefix_layer is not None:
        parts.append(Part(encoders["muq"], prefix_layer, quick["muq"]))
    if speaker is not None:
        parts.append(Part(speaker))
    distinct = {clip.sha256: clip for clip in clips}  # a recording may be in the list and in an order
    todo: list[tuple[Clip, list[Part]]] = []
    for clip in distinct.values():
        if clip.sha256 is None:
            raise DataError(f"{clip.audio_file}: has no sha256. Validate the data before extracting features.")
        if missing := [part for part in parts if not store.has(part.reference, clip.sha256)]:
            todo.append((clip, missing))
    reused = len(distinct) - len(todo)
    log.info("features: %d of %d clips reused from the store, %d to extract", reused, len(distinct), len(todo))
    for _ in _extracted(todo, folder, store):
        computed += 1
        if progress is not None:
            progress(computed, len(todo))
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            log.info("extracted %d of %d clips", computed, len(todo))
    references: dict[Kind, EncoderReference] = {kind: encoder.reference for kind, encoder in encoders.items()}
    return Extraction(
        store.uri, references, len(distinct), reused, computed, time.monotonic() - started,
        None if speaker is None else speaker.reference,
    )  # fmt: skip


def _extracted(todo: Sequence[tuple[Clip, list[Part]]], folder: Path, store: FeatureStore) -> Iterator[None]:
    """Decode, hear and store clips side by side, one thread a core, in order, at most AHEAD a thread in memory."""

    def extract(clip: Clip, missing: list[Part]) -> None:
        path = folder / clip.audio_file
        recording = decode(path)
        if sha256_of(path) != clip.sha256:
            raise DataError(f"{clip.audio_file}: changed since it was validated. Validate the data again.")
        try:
            heard = [(part, part.hear(recording)) for part in missing]
        except (AudioError, ModelError) as fault:
            raise type(fault)(f"{clip.audio_file}: {fault}") from fault
        for part, (feature, windows) in heard:  # here, where other clips are heard while a bucket takes its time
            store.put(part.reference, str(clip.sha256), feature, windows)

    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with one_torch_thread(), ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = iter(todo)
        queue: deque[Future[None]] = deque(
            pool.submit(extract, clip, missing) for clip, missing in islice(waiting, AHEAD * workers)
        )
        while queue:
            queue.popleft().result()
            queue.extend(pool.submit(extract, clip, missing) for clip, missing in islice(waiting, 1))
            yield


def write_extraction(extraction: Extraction, encoders: Encoders, folder: Path, *, embed: bool = False) -> None:
    """Describe an extraction for the steps that follow, with the encoders that no hub holds, or all, beside it."""
    for kind, encoder in encoders.items():
        if embed or encoder.reference.id is None:
            encoder.save(folder / "encoders" / kind)
        else:
            shutil.rmtree(folder / "encoders" / kind, ignore_errors=True)  # of an earlier extraction, with another one
    described = {kind: reference.to_json() for kind, reference in extraction.encoders.items()}
    speaker = None if extraction.speaker is None else extraction.speaker.to_json()
    write_json(
        folder / "extraction.json",
        {**asdict(extraction), "encoders": described, "speaker": speaker},
    )


def read_extraction(folder: Path) -> Extraction:
    """What `write_extraction` wrote."""
    source = folder / "extraction.json"
    if not source.is_file():
        raise ModelError(f"{folder}: holds no extraction.json; feature extraction did not finish. Run it again.")
    value = read_json(source)
    encoders = {kind: EncoderReference(**reference) for kind, reference in value.pop("encoders").items()}
    speaker = value.pop("speaker", None)
    return Extraction(
        **{**value, "encoders": encoders},
        speaker=None if speaker is None else EncoderReference(**speaker),
    )


def extract_folder(
    data: Path,
    index: Path,
    target: Path | None,
    store: str | Path,
    section: "EncodersSection",
    training: "TrainingSection | None" = None,
    device: str = "auto",
    share: tuple[int, int] = (0, 1),
) -> Extraction:
    """Extract every clip of an index, also those that only an order names, with a configuration's encoders.

    What `training` needs beside their outputs is extracted too. The result is described under `target`, if one is
    given. `share` (i, n) hears every n-th clip from the i-th on, and only the first describes: n processes together
    extract the whole.
    """
    device = choose_device(device)
    clips = [clip for split in SPLITS for clip in read_split(index, split)]
    clips += [clip for split in SPLITS for group in read_relative(index, split) for clip in group]
    encoders = load_encoders(section, device)
    speaker, prefix = None, None
    if training is not None:
        prefix = training.prefix_layer
        if training.adversary.weight > 0 and training.adversary.target != "campplus":
            speaker = load_speaker(training.adversary.target, str(training.adversary.source), device)
    which, count = share
    distinct = {str(clip.sha256): clip for clip in clips}  # a recording twice in the index is in one share only
    mine = [distinct[sha256] for sha256 in sorted(distinct)][which::count]
    extraction = extract_features(mine, data, encoders, FeatureStore(store), prefix_layer=prefix, speaker=speaker)
    if which == 0 and target is not None:
        embed = training is not None and training.save == "full"
        write_extraction(extraction, encoders, target, embed=embed)
    return extraction


def extract_share(
    shard: str, data: Path, index: Path, store: "str | Path", section: "EncodersSection", training: "TrainingSection"
) -> None:
    """What `shard` ("1/4") names of an extraction. The whole ("0/1") is left to `extract_folder`, which describes it.

    Raises UsageError where `shard` is no share.
    """
    which, count = share_of(shard)
    if count > 1:
        extract_folder(data, index, None, store, section, training, share=(which, count))


def choose_device(device: str) -> str:
    """The device a name stands for: "auto" is a GPU where there is one.

    Raises UsageError for a name that stands for none, and for a GPU that is not there.
    """
    if device == "cpu":
        return device
    name, _, number = device.partition(":")
    if device != "auto" and (name != "cuda" or not (number.isdecimal() or device == "cuda")):
        raise UsageError(f"device {device}: there are auto, cpu, cuda, and cuda:N for the GPU of that number.")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and count == 0:
        return "cpu"
    if count <= int(number or 0):
        raise UsageError(f"device {device}: this machine has {count} GPUs that torch can use. Take auto or cpu.")
    # By number: a thread that is started has a current one of its own.
    return device if number else f"cuda:{torch.cuda.current_device()}"


Progress = Callable[[int, int], None]


def embed_voices(
    clips: Sequence[Clip], folder: Path, encoder: CampplusEncoder, store: FeatureStore, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Voice embeddings in the clips' order; what the store has is not computed again.

    Shape: -> [N, E]. Clips need their sha256; files are found under `folder`. Raises DataError where a recording
    changed since it was validated, AudioError where one cannot be decoded.
    """
    if not clips:
        return np.zeros((0, encoder.dim), dtype=np.float32)
    extract_features(clips, folder, {"campplus": encoder}, store, progress)
    store.fetch((encoder.reference, str(clip.sha256)) for clip in clips)
    return np.stack([store.get(encoder.reference, str(clip.sha256)).numpy() for clip in clips])


def voice_embedder(
    section: "EncoderSection", folder: Path, store: str | Path, progress: Progress | None = None
) -> Callable[[Sequence[Clip]], NDArray[np.float32]]:
    """A function from clips to their voice embeddings; the encoder is loaded when it is first called, if ever.

    `section` is the configuration's CAM++, `folder` the data folder, `store` the feature store's folder or URI.
    """

    def embed(clips: Sequence[Clip]) -> NDArray[np.float32]:
        encoder = load_campplus(section.source, revision=section.revision, sha256=section.sha256)
        return embed_voices(clips, folder, encoder, FeatureStore(store), progress)

    return embed
