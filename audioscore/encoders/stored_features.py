"""Features of many clips, read from the store when their turn comes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import overload

import torch

from audioscore.data.clips import Clip
from audioscore.encoders.features import WINDOWS, EncoderReference, Features, Kind
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.errors import ModelError

KEPT_BYTES = 512 << 20  # of features that stay in memory; a large corpus is read again each epoch


class _Clips(Sequence[Features], ABC):
    """Clips whose features are read one at a time: a slice is a list of them."""

    @abstractmethod
    def _one(self, place: int) -> Features:
        """The features of a clip, counted from the start."""

    @overload
    def __getitem__(self, place: int) -> Features: ...

    @overload
    def __getitem__(self, place: slice) -> list[Features]: ...

    def __getitem__(self, place: int | slice) -> Features | list[Features]:
        if isinstance(place, slice):
            return [self._one(one) for one in range(len(self))[place]]
        return self._one(range(len(self))[place])


class Chosen(_Clips):
    """Some of many clips' features, each read when its turn comes."""

    def __init__(self, features: Sequence[Features], places: Sequence[int]) -> None:
        self._features, self._places = features, places

    def __len__(self) -> int:
        return len(self._places)

    def _one(self, place: int) -> Features:
        return self._features[self._places[place]]


class StoredFeatures(_Clips):
    """The features of clips, in their order; memory does not grow with their number.

    With `prefix_layer`, "muq" is that hidden state, and WINDOWS comes with it. Of a bucket, all are fetched when the
    first is read. Raises ModelError where a kind was not extracted, and, when it is read, where a clip's was not.
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
                raise ModelError(f"no {kind} features were extracted; there are {sorted(references)}.")
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

    def _one(self, place: int) -> Features:
        if place in self._kept:
            return self._kept[place]
        if not self._fetched:
            wanted = [(reference, sha256) for reference in self._references.values() for sha256 in self._clips]
            self._store.fetch(wanted)
            self._fetched = True
        feature = self._read(self._clips[place])
        size = sum(value.nbytes for value in feature.values())
        if size <= self._free:  # what came first stays: going round in turns, a cache of what came last never hits
            self._kept[place] = feature
            self._free -= size
        return feature

    def _read(self, sha256: str) -> Features:
        found: dict[str, torch.Tensor] = {}
        for kind, reference in self._references.items():
            found[kind], windows = self._store.load(reference, sha256)
            if kind == "muq" and self._windowed:
                found[WINDOWS] = torch.tensor(windows)
        return found
