"""From a recording to what the scorer hears: the same few lines in training, evaluation, service and registry."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.data.audio import Recording, decode
from audioscore.data.clips import Clip
from audioscore.data.sort import read_split
from audioscore.data.split import SPLITS
from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.threads import one_torch_thread
from audioscore.errors import DataError, ModelError
from audioscore.files import read_json, sha256_of, write_json
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE

if TYPE_CHECKING:
    from torch import Tensor

    from audioscore.config import EncodersSection

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0
AHEAD = 2  # recordings in hand for each thread: enough to keep it fed, few enough to bound memory

Encoders = Mapping[Kind, MuQEncoder | CampplusEncoder]
Features = Mapping[Kind, "Tensor"]


@dataclass(frozen=True)
class Extraction:
    """What one pass over the corpus did, which encoders it used, and where the features lie."""

    store: Path
    encoders: dict[Kind, EncoderReference]
    clips: int
    reused: int
    computed: int
    seconds: float


def load_encoders(section: "EncodersSection", device: str = "cpu") -> Encoders:
    """Both encoders of a configuration."""
    muq, campplus = section.muq, section.campplus
    return {
        "muq": load_muq(muq.source, layer=muq.layer or 6, revision=muq.revision, device=device),
        "campplus": load_campplus(campplus.source, revision=campplus.revision, device=device),
    }


def encode_recording(recording: Recording, encoders: Encoders) -> Features:
    """Hear a recording with the given encoders.

    Shape: "muq" -> frames [F, D], "campplus" -> embedding [E].
    """
    return {kind: _hear(recording, encoder) for kind, encoder in encoders.items()}


def _hear(recording: Recording, encoder: MuQEncoder | CampplusEncoder) -> "Tensor":
    import torch

    if isinstance(encoder, MuQEncoder):
        return encoder.frames(torch.from_numpy(recording.at(MUQ_RATE)))
    return encoder.embedding(torch.from_numpy(recording.at(CAMPPLUS_RATE)))


def extract_features(
    clips: Sequence[Clip],
    folder: Path,
    encoders: Encoders,
    store: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Put every clip's features into the store; what is already there is not computed again.

    Clips need their sha256 (validation fills it). Raises DataError where a recording changed since it was validated.
    """
    started, computed, shown = time.monotonic(), 0, 0.0
    todo: list[tuple[Clip, list[Kind]]] = []
    for clip in clips:
        if clip.sha256 is None:
            raise DataError(f"{clip.audio_file}: has no sha256. Validate the data before extracting features.")
        missing = [kind for kind, encoder in encoders.items() if not store.has(encoder.reference, clip.sha256)]
        if missing:
            todo.append((clip, missing))
    reused = len(clips) - len(todo)
    log.info("features: %d of %d clips reused from the store, %d to extract", reused, len(clips), len(todo))
    for clip, heard in _extracted(todo, folder, encoders):
        for kind, feature in heard.items():
            store.put(encoders[kind].reference, str(clip.sha256), feature)
        computed += 1
        if progress is not None:
            progress(computed, len(todo))
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            log.info("extracted %d of %d clips", computed, len(todo))
    references: dict[Kind, EncoderReference] = {kind: encoder.reference for kind, encoder in encoders.items()}
    return Extraction(store.root, references, len(clips), reused, computed, time.monotonic() - started)


def _extracted(
    todo: Sequence[tuple[Clip, list[Kind]]], folder: Path, encoders: Encoders
) -> Iterator[tuple[Clip, Features]]:
    """Decode and hear clips side by side, one thread a core, in order, at most AHEAD a thread in memory."""

    def extract(clip: Clip, missing: list[Kind]) -> Features:
        path = folder / clip.audio_file
        recording = decode(path)
        if sha256_of(path) != clip.sha256:
            raise DataError(f"{clip.audio_file}: changed since it was validated. Validate the data again.")
        return {kind: _hear(recording, encoders[kind]) for kind in missing}

    workers = os.cpu_count() or 1
    with one_torch_thread(), ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = iter(todo)
        queue: deque[tuple[Clip, Future[Features]]] = deque(
            (clip, pool.submit(extract, clip, missing)) for clip, missing in islice(waiting, AHEAD * workers)
        )
        while queue:
            clip, future = queue.popleft()
            heard = future.result()
            queue.extend((clip, pool.submit(extract, clip, missing)) for clip, missing in islice(waiting, 1))
            yield clip, heard


def write_extraction(extraction: Extraction, encoders: Encoders, folder: Path) -> None:
    """Describe an extraction for the steps that follow, with the encoders that no hub holds beside it."""
    for kind, encoder in encoders.items():
        if encoder.reference.id is None:
            encoder.save(folder / "encoders" / kind)
    described = {kind: reference.to_json() for kind, reference in extraction.encoders.items()}
    write_json(
        folder / "extraction.json", {**asdict(extraction), "store": str(extraction.store), "encoders": described}
    )


def read_extraction(folder: Path) -> Extraction:
    """What `write_extraction` wrote."""
    source = folder / "extraction.json"
    if not source.is_file():
        raise ModelError(f"{folder}: holds no extraction.json; feature extraction did not finish. Run it again.")
    value = read_json(source)
    encoders = {kind: EncoderReference(**reference) for kind, reference in value.pop("encoders").items()}
    return Extraction(**{**value, "store": Path(value["store"]), "encoders": encoders})


def features_of(
    clips: Sequence[Clip], references: Mapping[Kind, EncoderReference], kinds: Sequence[Kind], store: FeatureStore
) -> list[Features]:
    """Features of many clips from the store, in the clips' order."""
    for kind in kinds:
        if kind not in references:
            raise ModelError(f"no {kind} features were extracted; there are {sorted(references)}.")
    return [{kind: store.get(references[kind], str(clip.sha256)) for kind in kinds} for clip in clips]


def extract_folder(
    data: Path, index: Path, target: Path, store: Path, section: "EncodersSection", device: str = "cpu"
) -> Extraction:
    """Extract every clip of an index with a configuration's encoders, and describe the result under `target`."""
    clips = [clip for split in SPLITS for clip in read_split(index, split)]
    encoders = load_encoders(section, device)
    extraction = extract_features(clips, data, encoders, FeatureStore(store))
    write_extraction(extraction, encoders, target)
    return extraction
