"""Extract the features of a corpus into the feature store, whole or in shards, and describe the extraction.

Embeddings of voices, for grouping clips by singer, are extracted here too.
"""

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

from audioscore.data.audio import decode
from audioscore.data.clips import Clip
from audioscore.data.spelling import path_on_disk
from audioscore.data.split.groups import SPLITS
from audioscore.data.split.sort import read_split, read_unscored_groups
from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.compute import choose_device, one_torch_thread
from audioscore.encoders.features import EncoderReference, Encoders, Kind
from audioscore.encoders.inference import EncoderOutput, optimized_encoder
from audioscore.encoders.muq import load_muq
from audioscore.encoders.store import FeatureStore
from audioscore.errors import AudioError, DataError, ModelError, UsageError
from audioscore.files import read_json, sha256_of, write_json

if TYPE_CHECKING:
    from audioscore.config import EncoderSection, EncodersSection, TrainingSection
    from audioscore.encoders.speakers.targets import SpeakerTarget

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # clips done, clips to do
PROGRESS_SECONDS = 2.0
AHEAD = 2  # recordings queued for each thread: enough to keep it busy, few enough to bound memory
SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class Extraction:
    """The result of one pass over a corpus: its encoders, its counts, and the feature store."""

    store: str  # a folder, or s3://BUCKET/PREFIX
    encoders: dict[Kind, EncoderReference]
    clips: int
    reused: int
    computed: int
    seconds: float
    speaker: EncoderReference | None = None  # the target of an adversary, where it is not CAM++


def load_encoders(section: "EncodersSection", device: str = "cpu") -> Encoders:
    """Load both encoders of a configuration."""
    muq, campplus = (one.model_dump(exclude={"layer"}) for one in (section.muq, section.campplus))
    return {
        "muq": load_muq(**muq, layer=section.muq.layer or 6, device=device, precision=section.precision),
        "campplus": load_campplus(**campplus, device=device, precision=section.precision),
    }


def load_speaker(target: str, source: str, device: str = "cpu") -> "SpeakerTarget":
    """Load the speaker encoder that an adversary predicts: ge2e from Resemblyzer's file, samoye from its folder."""
    if target == "ge2e":
        from audioscore.encoders.speakers.ge2e import load_ge2e

        return load_ge2e(Path(source), device=device)
    from audioscore.encoders.speakers.samoye import load_samoye

    return load_samoye(Path(source), device=device)


def extract_features(
    clips: Sequence[Clip],
    folder: Path,
    encoders: Encoders,
    store: FeatureStore,
    progress: Progress | None = None,
    *,
    prefix_layer: int | None = None,
    speaker: "SpeakerTarget | None" = None,
) -> Extraction:
    """Extract the features of clips into the store; existing ones are not computed again.

    Args:
        clips: clips with their sha256, which validation adds.
        prefix_layer: also extract this hidden state of MuQ, the input of layers that are trained.
        speaker: also extract this encoder's embeddings, the target of an adversary.

    Raises: DataError where a recording changed since it was validated.
    """
    started, computed, logged = time.monotonic(), 0, 0.0
    inference = {kind: optimized_encoder(encoder) for kind, encoder in encoders.items()}
    outputs = [EncoderOutput(encoder, inference=inference[kind]) for kind, encoder in encoders.items()]
    if prefix_layer is not None:
        outputs.append(EncoderOutput(encoders["muq"], prefix_layer, inference["muq"]))
    if speaker is not None:
        outputs.append(EncoderOutput(speaker))
    distinct = {clip.sha256: clip for clip in clips}  # a recording may be in the list and in a relative group
    todo: list[tuple[Clip, list[EncoderOutput]]] = []
    for clip in distinct.values():
        if clip.sha256 is None:
            raise DataError(f"{clip.audio_file}: no sha256. Validate the data before extracting features.")
        if missing := [output for output in outputs if not store.has(output.reference, clip.sha256)]:
            todo.append((clip, missing))
    reused = len(distinct) - len(todo)
    log.info("features: %d of %d clips reused from the store, %d to extract", reused, len(distinct), len(todo))
    for _ in _extracted(todo, folder, store):
        computed += 1
        if progress is not None:
            progress(computed, len(todo))
        if time.monotonic() - logged > PROGRESS_SECONDS:
            logged = time.monotonic()
            log.info("extracted %d of %d clips", computed, len(todo))
    references: dict[Kind, EncoderReference] = {kind: encoder.reference for kind, encoder in encoders.items()}
    return Extraction(
        store.uri, references, len(distinct), reused, computed, time.monotonic() - started,
        None if speaker is None else speaker.reference,
    )  # fmt: skip


def _extracted(todo: Sequence[tuple[Clip, list[EncoderOutput]]], folder: Path, store: FeatureStore) -> Iterator[None]:
    """Decode, encode and store clips in order, in one thread per core, with at most AHEAD queued per thread."""

    def extract(clip: Clip, missing: list[EncoderOutput]) -> None:
        path = path_on_disk(folder, clip.audio_file)
        recording = decode(path)
        if sha256_of(path) != clip.sha256:
            raise DataError(f"{clip.audio_file}: changed since it was validated. Validate the data again.")
        try:
            encoded = [(output, output.encode(recording)) for output in missing]
        except (AudioError, ModelError) as error:
            raise type(error)(f"{clip.audio_file}: {error}") from error
        for output, (feature, windows) in encoded:  # in this thread: others encode while a bucket is slow
            store.put(output.reference, str(clip.sha256), feature, windows)

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
    """Write extraction.json for the later steps, and beside it the encoders that are on no hub (`embed`: all)."""
    for kind, encoder in encoders.items():
        if embed or encoder.reference.id is None:
            encoder.save(folder / "encoders" / kind)
        else:
            shutil.rmtree(folder / "encoders" / kind, ignore_errors=True)  # left by an earlier extraction
    described = {kind: reference.to_json() for kind, reference in extraction.encoders.items()}
    speaker = None if extraction.speaker is None else extraction.speaker.to_json()
    write_json(folder / "extraction.json", {**asdict(extraction), "encoders": described, "speaker": speaker})


def read_extraction(folder: Path) -> Extraction:
    """Read what `write_extraction` wrote. Raises: ModelError where it is missing."""
    source = folder / "extraction.json"
    if not source.is_file():
        raise ModelError(f"{folder}: no extraction.json, so feature extraction did not finish. Run it again.")
    value = read_json(source)
    value["encoders"] = {kind: EncoderReference(**reference) for kind, reference in value["encoders"].items()}
    if value.get("speaker") is not None:
        value["speaker"] = EncoderReference(**value["speaker"])
    return Extraction(**value)


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
    """Extract all clips of an index, those of relative groups included, with a configuration's encoders.

    Args:
        target: folder for extraction.json; None writes no description.
        training: also extract the features that these settings need.
        share: (i, n) extracts every n-th clip from clip i on, and only share 0 writes the description; n processes
            together extract the whole.
    """
    device = choose_device(device)
    clips = [clip for split in SPLITS for clip in read_split(index, split)]
    clips += [clip for split in SPLITS for group in read_unscored_groups(index, split) for clip in group]
    encoders = load_encoders(section, device)
    speaker, prefix = None, None
    if training is not None:
        prefix = training.prefix_layer
        if training.adversary.weight > 0 and training.adversary.target != "campplus":
            speaker = load_speaker(training.adversary.target, str(training.adversary.source), device)
    which, count = share
    distinct = {str(clip.sha256): clip for clip in clips}  # a recording that is twice in the index is in one share
    mine = [distinct[sha256] for sha256 in sorted(distinct)][which::count]
    extraction = extract_features(mine, data, encoders, FeatureStore(store), prefix_layer=prefix, speaker=speaker)
    if which == 0 and target is not None:
        embed = training is not None and training.save == "full"
        write_extraction(extraction, encoders, target, embed=embed)
    return extraction


def shards_of(count: int) -> list[str]:
    """Return the names of `count` shards, one for each pod.

    >>> shards_of(3), shards_of(1)
    (['0/3', '1/3', '2/3'], ['0/1'])
    """
    return [f"{index}/{count}" for index in range(count)]


def share_of(shard: str) -> tuple[int, int]:
    """Parse a shard's name into its index and the number of shards. Raises: UsageError for an invalid name.

    >>> share_of("1/4")
    (1, 4)
    """
    match = SHARD.fullmatch(shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"shard {shard!r}: invalid. Give WHICH/COUNT, from 0/4 to 3/4 for four.")
    return int(match[1]), int(match[2])


def extract_share(
    shard: str, data: Path, index: Path, store: "str | Path", section: "EncodersSection", training: "TrainingSection"
) -> None:
    """Extract one shard ("1/4"). The whole ("0/1") is left to `extract_folder`, which writes the description.

    Raises: UsageError for an invalid `shard`.
    """
    which, count = share_of(shard)
    if count > 1:
        extract_folder(data, index, None, store, section, training, share=(which, count))


def embed_voices(
    clips: Sequence[Clip], folder: Path, encoder: CampplusEncoder, store: FeatureStore, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Compute voice embeddings in the clips' order, unless the store has them.

    Clips need their sha256; `folder` is the data folder. Shape: -> [N, E].
    Raises: DataError where a recording changed since it was validated, AudioError where one cannot be decoded.
    """
    if not clips:
        return np.zeros((0, encoder.dim), dtype=np.float32)
    extract_features(clips, folder, {"campplus": encoder}, store, progress)
    store.fetch((encoder.reference, str(clip.sha256)) for clip in clips)
    return np.stack([store.get(encoder.reference, str(clip.sha256)).numpy() for clip in clips])


def voice_embedder(
    section: "EncoderSection", folder: Path, store: str | Path, progress: Progress | None = None
) -> Callable[[Sequence[Clip]], NDArray[np.float32]]:
    """Return a function from clips to voice embeddings, which loads the encoder at its first call.

    `section` is the configuration's CAM++, `folder` the data folder, `store` the feature store's folder or URI.
    """

    def embed(clips: Sequence[Clip]) -> NDArray[np.float32]:
        encoder = load_campplus(section.source, revision=section.revision, sha256=section.sha256)
        return embed_voices(clips, folder, encoder, FeatureStore(store), progress)

    return embed
