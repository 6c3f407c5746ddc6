"""Taking the features of withdrawn recordings out of a store that other machines share."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from audioscore.data.transfer.s3 import connect, list_objects, split_uri
from audioscore.data.transfer.s3_write import remove_objects
from audioscore.errors import DataError


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
