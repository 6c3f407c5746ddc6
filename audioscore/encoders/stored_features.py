"""Features of many clips as sequences that read from the feature store on access."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import overload

import torch

from audioscore.data.clips import Clip
from audioscore.encoders.features import WINDOWS, EncoderReference, Features, Kind
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.errors import ModelError

KEPT_BYTES = 512 << 20  # features that stay in memory; those of a larger corpus are read again in each epoch


class _LazyFeatures(Sequence[Features], ABC):
    """A sequence that reads one clip's features at a time; a slice is a list."""

    @abstractmethod
    def _one(self, index: int) -> Features:
        """The features of the clip at an index from 0."""

    @overload
    def __getitem__(self, index: int) -> Features: ...

    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...

    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self._one(one) for one in range(len(self))[index]]
        return self._one(range(len(self))[index])


class FeatureSubset(_LazyFeatures):
    """The features at some indices of another sequence, read on access."""

    def __init__(self, features: Sequence[Features], indices: Sequence[int]) -> None:
        self._features, self._indices = features, indices

    def __len__(self) -> int:
        return len(self._indices)

    def _one(self, index: int) -> Features:
        return self._features[self._indices[index]]


class JoinedFeatures(_LazyFeatures):
    """The features of several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence[Features]]) -> None:
        self._positions = [(part, index) for part in parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self._positions)

    def _one(self, index: int) -> Features:
        part, row = self._positions[index]
        return part[row]


class StoredFeatures(_LazyFeatures):
    """The features of clips, in the clips' order, in bounded memory.

    With `prefix_layer`, "muq" is that hidden state, and WINDOWS is added. From a bucket, the features of all clips are
    downloaded at the first access.

    Raises: ModelError where a kind was not extracted and, on access, where a clip's features are missing.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        references: Mapping[Kind, EncoderReference],
        kinds: Sequence[Kind],
        store: FeatureStore,
        *,
        prefix_layer: int | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        for kind in kinds:
            if kind not in references:
                raise ModelError(f"{kind} features: not extracted; there are {sorted(references)}. Extract them.")
        self._clips = [str(clip.sha256) for clip in clips]
        self._references = {kind: references[kind] for kind in kinds}
        self._windowed = prefix_layer is not None and "muq" in kinds
        if self._windowed and prefix_layer is not None:
            self._references["muq"] = prefix_reference(references["muq"], prefix_layer)
        self._store = store
        self._fetched = False
        self._kept: dict[int, Features] = {}
        self._free = kept_bytes

    def __len__(self) -> int:
        return len(self._clips)

    def _one(self, index: int) -> Features:
        if index in self._kept:
            return self._kept[index]
        if not self._fetched:
            wanted = [(reference, sha256) for reference in self._references.values() for sha256 in self._clips]
            self._store.fetch(wanted)
            self._fetched = True
        feature = self._read(self._clips[index])
        size = sum(value.nbytes for value in feature.values())
        # The first clips stay: training reads all clips in turn, so a cache of the latest ones would never hit.
        if size <= self._free:
            self._kept[index] = feature
            self._free -= size
        return feature

    def _read(self, sha256: str) -> Features:
        found: dict[str, torch.Tensor] = {}
        for kind, reference in self._references.items():
            found[kind], windows = self._store.load(reference, sha256)
            if kind == "muq" and self._windowed:
                found[WINDOWS] = torch.tensor(windows)
        return found
