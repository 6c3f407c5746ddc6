"""The feature store: one file per recording and encoder, so that the output of a frozen encoder is computed once.

The key contains everything a feature depends on (the recording's content, the encoder's weights and layer), so a
changed file, encoder or layer never gets old features.
"""

import contextlib
import json
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

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
    """Features by name in a folder or under `s3://BUCKET/PREFIX`; threads may share a store.

    A name is <encoder key>/<first two digits of the hash>/<sha256>.safetensors. `root` is the local folder that
    features are read from: the store itself, or the bucket's local copies.

    Raises: UsageError for another kind of address, DataError for a URI without a bucket.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        if "://" in self.uri and not self.uri.startswith("s3://"):
            raise UsageError(f"{self.uri}: is not a feature store. Give a folder, or s3://BUCKET/PREFIX.")
        self._bucket = FeatureBucket(self.uri) if self.uri.startswith("s3://") else None
        self.root = Path(uri) if self._bucket is None else self._bucket.folder
        self._writing = threading.Lock()

    @property
    def is_bucket(self) -> bool:
        """Whether other machines can reach this store by its URI."""
        return self._bucket is not None

    def path(self, encoder: EncoderReference, sha256: str) -> Path:
        """Return the local path of a feature; in a bucket's store, the file exists only after a cached download."""
        return self.root / _name(encoder, sha256)

    def has(self, encoder: EncoderReference, sha256: str) -> bool:
        """Whether a feature exists. A bucket is listed once per encoder: later additions by others are not seen."""
        if self._bucket is not None:
            return self._bucket.has(_name(encoder, sha256))
        return self.path(encoder, sha256).is_file()

    def put(self, encoder: EncoderReference, sha256: str, feature: "Tensor", windows: int = 1) -> None:
        """Write one feature in float32, atomically: an interrupted run leaves no partial file or object.

        `windows` is the number of windows that MuQ ran on, for `muq_layers.split_windows`.
        """
        from safetensors.torch import save_file

        state = {NAME: feature.detach().float().cpu().contiguous()}
        about = {
            "encoder": json.dumps(encoder.to_json(), sort_keys=True),
            WINDOWS: str(windows),
            CHECKSUM: _checksum(state[NAME]),
        }
        if self._bucket is None:
            # One at a time: reading the umask, for the permissions of new files, changes it for the whole process.
            with self._writing, atomic_path(self.path(encoder, sha256)) as temporary:
                save_file(state, temporary, metadata=about)
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".put-", dir=self.root) as folder:
            source = Path(folder) / "feature.safetensors"
            save_file(state, source, metadata=about)
            self._bucket.put(_name(encoder, sha256), source)

    def get(self, encoder: EncoderReference, sha256: str) -> "Tensor":
        """Read one feature: MuQ frames [F, D] or a CAM++ embedding [E], float32.

        Raises: ModelError where it was not extracted, its file is damaged, or the bucket cannot be read.
        """
        return self.load(encoder, sha256)[0]

    def windows(self, encoder: EncoderReference, sha256: str) -> int:
        """Read the number of windows from the file's header alone; 1 for older files without it.

        Raises: ModelError as `get` does.
        """
        return self._read(encoder, sha256, _read_windows)

    def load(self, encoder: EncoderReference, sha256: str) -> "tuple[Tensor, int]":
        """Read the results of `get` and `windows` in one pass."""
        return self._read(encoder, sha256, _read_feature)

    def fetch(self, wanted: Iterable[tuple[EncoderReference, str]]) -> None:
        """Download features from a bucket, several at once, before they are read; missing ones are skipped.

        For a folder this does nothing. Raises: ModelError where the bucket cannot be read.
        """
        if self._bucket is not None:
            self._bucket.fetch(_name(encoder, sha256) for encoder, sha256 in wanted)

    def _read(self, encoder: EncoderReference, sha256: str, read: Callable[[Path, str], T]) -> T:
        """Apply `read` to a feature's file and its name for messages."""
        name = _name(encoder, sha256)
        if self._bucket is not None and (found := self._bucket.read(name, read)) is not None:
            return found
        source = self.root / name
        if self._bucket is not None or not source.is_file():
            raise ModelError(
                f"feature {encoder.key} of recording {sha256[:12]}: is not in {self.uri}. Extract features first."
            )
        return read(source, str(source))


def _name(encoder: EncoderReference, sha256: str) -> str:
    return f"{encoder.key}/{sha256[:2]}/{sha256}.safetensors"


def _checksum(feature: "Tensor") -> str:
    """CRC-32 of a feature's values, which detects changed bytes in a complete file."""
    return f"{zlib.crc32(feature.numpy().data):08x}"


@contextlib.contextmanager
def _opened(source: Path, shown: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a feature's file and its metadata. Raises: ModelError for a damaged file, also from within the block."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt") as handle:
            yield handle, handle.metadata() or {}
    except (SafetensorError, ValueError, OSError) as error:
        raise ModelError(f"{shown}: is damaged ({error}). Delete it; the next run extracts it again.") from error


def _read_feature(source: Path, shown: str) -> "tuple[Tensor, int]":
    with _opened(source, shown) as (handle, about):
        feature: Tensor = handle.get_tensor(NAME)
        if about.get(CHECKSUM) not in (None, found := _checksum(feature)):  # older files have none
            raise ValueError(f"the values' CRC-32 is {found}, not {about[CHECKSUM]}")
        return feature, _windows(about)


def _read_windows(source: Path, shown: str) -> int:
    with _opened(source, shown) as (_, about):
        return _windows(about)


def _windows(about: dict[str, str]) -> int:
    count = int(about.get(WINDOWS, "1"))
    if count < 1:
        raise ValueError(f"{count} windows")
    return count


@dataclass(frozen=True)
class DeletedFeatures:
    """The number of deleted features, and of those that a versioned bucket still holds in old versions."""

    features: int
    still_versions: int = 0


def delete_features(uri: str, recordings: Collection[str]) -> DeletedFeatures:
    """Delete all encoders' features of recordings, by their SHA-256, in a folder or under `s3://BUCKET/PREFIX`.

    It can be repeated. Raises: DataError where the store cannot be reached or a feature cannot be deleted.
    """
    if uri.startswith("s3://"):
        return _delete_in_bucket(uri, recordings)
    if not Path(uri).is_dir():
        raise DataError(f"{uri}: no such folder on this machine. Purge on a machine that has it, or delete by name.")
    found = [path for path in Path(uri).rglob("*.safetensors") if path.stem in recordings]
    try:
        for path in found:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be deleted ({error.strerror}). Get write permission there."
        ) from error
    return DeletedFeatures(len(found))


def _delete_in_bucket(uri: str, recordings: Collection[str]) -> DeletedFeatures:
    client = connect()
    try:
        keys = [item.key for item in list_objects(client, uri) if PurePosixPath(item.name).stem in recordings]
        return DeletedFeatures(len(keys), remove_objects(client, split_uri(uri)[0], keys))
    finally:
        client.close()
