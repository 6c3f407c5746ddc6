"""Features, one file a recording and encoder, so that nothing frozen is computed twice.

The key holds everything a feature depends on: the recording's content, the encoder's weights and layer. A changed
file, encoder or layer can therefore never be answered with old features.
"""

import json
import threading
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from audioscore.data.transfer.s3 import connect, list_objects, remove_objects, split_uri
from audioscore.encoders.bucket_store import FeatureBucket
from audioscore.encoders.features import EncoderReference
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")
NAME, WINDOWS, CHECKSUM = "feature", "windows", "crc32"


class FeatureStore:
    """Features by name under a folder or `s3://BUCKET/PREFIX`.

    A name is <encoder key>/<first two digits of the hash>/<sha256>.safetensors. `root` is the folder of this machine
    where they are read: the store itself, or where copies from the bucket lie. Threads may share a store. Raises
    UsageError for another kind of address, DataError where it names no bucket.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        if "://" in self.uri and not self.uri.startswith("s3://"):
            raise UsageError(f"{self.uri} is no feature store. Give a folder, or s3://BUCKET/PREFIX.")
        self._bucket = FeatureBucket(self.uri) if self.uri.startswith("s3://") else None
        self.root = Path(uri) if self._bucket is None else self._bucket.folder
        self._writing = threading.Lock()

    @property
    def is_bucket(self) -> bool:
        """Whether other machines reach this store by its URI."""
        return self._bucket is not None

    def path(self, encoder: EncoderReference, sha256: str) -> Path:
        """Where a feature lies on this machine; of a bucket's, once it was fetched and if it is kept."""
        return self.root / _name(encoder, sha256)

    def has(self, encoder: EncoderReference, sha256: str) -> bool:
        """Whether a feature is there. A bucket is listed once an encoder: what others add later is not seen."""
        if self._bucket is not None:
            return self._bucket.has(_name(encoder, sha256))
        return self.path(encoder, sha256).is_file()

    def put(self, encoder: EncoderReference, sha256: str, feature: "Tensor", windows: int = 1) -> None:
        """Write one feature, float32, whole or not at all: a killed run leaves no half file or object behind.

        `windows`: how many the recording was heard in, for `muq_layers.split_windows` and for whoever asks later.
        """
        from safetensors.torch import save_file

        state = {NAME: feature.detach().float().cpu().contiguous()}
        about = {
            "encoder": json.dumps(encoder.to_json(), sort_keys=True),
            WINDOWS: str(windows),
            CHECKSUM: _checksum(state[NAME]),
        }
        if self._bucket is None:
            # One at a time: new files get their permissions from the process's umask, which cannot be read unchanged.
            with self._writing, atomic_path(self.path(encoder, sha256)) as temporary:
                save_file(state, temporary, metadata=about)
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".put-", dir=self.root) as folder:
            source = Path(folder) / "feature.safetensors"
            save_file(state, source, metadata=about)
            self._bucket.put(_name(encoder, sha256), source)

    def get(self, encoder: EncoderReference, sha256: str) -> "Tensor":
        """One feature: MuQ frames [F, D] or a CAM++ embedding [E], float32.

        Raises ModelError where it was never extracted, its file is damaged, or the bucket cannot be read.
        """
        return self.load(encoder, sha256)[0]

    def windows(self, encoder: EncoderReference, sha256: str) -> int:
        """How many windows a recording was heard in, from the file's header alone; 1 where an older file does not say.

        Raises ModelError as `get` does.
        """
        return self._read(encoder, sha256, _read_windows)

    def load(self, encoder: EncoderReference, sha256: str) -> "tuple[Tensor, int]":
        """What `get` and `windows` give, from one look at the file."""
        return self._read(encoder, sha256, _read_feature)

    def fetch(self, wanted: Iterable[tuple[EncoderReference, str]]) -> None:
        """Bring features that will be read from a bucket to this machine, several at once; what is not there stays so.

        Nothing is done for a folder. Raises ModelError where the bucket cannot be read.
        """
        if self._bucket is not None:
            self._bucket.fetch(_name(encoder, sha256) for encoder, sha256 in wanted)

    def _read(self, encoder: EncoderReference, sha256: str, read: Callable[[Path, str], T]) -> T:
        """`read` of a feature's file and the name that messages give it."""
        name = _name(encoder, sha256)
        if self._bucket is not None and (found := self._bucket.read(name, read)) is not None:
            return found
        source = self.root / name
        if self._bucket is not None or not source.is_file():
            raise ModelError(
                f"feature {encoder.key} of recording {sha256[:12]} is not in {self.uri}. Extract features first."
            )
        return read(source, str(source))


def _name(encoder: EncoderReference, sha256: str) -> str:
    return f"{encoder.key}/{sha256[:2]}/{sha256}.safetensors"


def _checksum(feature: "Tensor") -> str:
    """CRC-32 of a feature's values: a file may be whole and still not be what was written."""
    return f"{zlib.crc32(feature.numpy().data):08x}"


def _read_feature(source: Path, shown: str) -> "tuple[Tensor, int]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt") as handle:
            about = handle.metadata() or {}
            feature: Tensor = handle.get_tensor(NAME)
        if about.get(CHECKSUM) not in (None, found := _checksum(feature)):  # older files have none
            raise ValueError(f"its values' CRC-32 is {found}, not {about[CHECKSUM]}")
        return feature, _windows(about)
    except (SafetensorError, ValueError, OSError) as fault:
        raise _damaged(shown, fault) from fault


def _read_windows(source: Path, shown: str) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt") as handle:
            return _windows(handle.metadata() or {})
    except (SafetensorError, ValueError, OSError) as fault:
        raise _damaged(shown, fault) from fault


def _windows(about: dict[str, str]) -> int:
    count = int(about.get(WINDOWS, "1"))
    if count < 1:
        raise ValueError(f"{count} windows")
    return count


def _damaged(shown: str, fault: Exception) -> ModelError:
    return ModelError(f"{shown} is damaged ({fault}). Delete it; the next run extracts it again.")


@dataclass(frozen=True)
class Forgotten:
    """How many features are gone, and of how many a bucket with versioning still keeps the content."""

    features: int
    still_versions: int = 0


def forget_features(uri: str, recordings: Collection[str]) -> Forgotten:
    """Delete every encoder's features of recordings, by their SHA-256, under a folder or `s3://BUCKET/PREFIX`.

    Repeating it is safe. Raises DataError, one sentence, where the store cannot be reached or a feature stays.
    """
    if uri.startswith("s3://"):
        return _forget_in_bucket(uri, recordings)
    if not Path(uri).is_dir():
        raise DataError(f"{uri}: no such folder on this machine. Purge where it is seen, or delete by name there.")
    found = [path for path in Path(uri).rglob("*.safetensors") if path.stem in recordings]
    try:
        for path in found:
            path.unlink(missing_ok=True)
    except OSError as fault:
        raise DataError(
            f"{fault.filename} cannot be deleted ({fault.strerror}). Get the right to write there."
        ) from fault
    return Forgotten(len(found))


def _forget_in_bucket(uri: str, recordings: Collection[str]) -> Forgotten:
    client = connect()
    try:
        keys = [item.key for item in list_objects(client, uri) if PurePosixPath(item.name).stem in recordings]
        return Forgotten(len(keys), remove_objects(client, split_uri(uri)[0], keys))
    finally:
        client.close()
