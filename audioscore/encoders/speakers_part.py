"""Voices of many clips as CAM++ hears them, kept in the feature store that training reads as well."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.extract import extract_features
from audioscore.encoders.store import FeatureStore

if TYPE_CHECKING:
    from audioscore.config import EncoderSection

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
