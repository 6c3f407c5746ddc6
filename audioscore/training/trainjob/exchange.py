"""The files under a URI by which a training on a cluster and the step that started it exchange data."""

import json
import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from audioscore.data.transfer.partial import partial_path
from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.data.transfer.s3 import (
    connect,
    download_object,
    list_objects,
    remove_objects,
    s3_error,
    split_uri,
    upload_object,
)
from audioscore.data.versions.storage import LARGEST_FILE
from audioscore.errors import DataError
from audioscore.files import atomic_path, sha256_of, write_json

TRANSFERS = 8  # at the same time
MANIFEST = ".json"  # suffix of the file beside a folder, written last, that lists the files of the complete folder


class Exchange:
    """Files by name under `s3://bucket/prefix`, or under a folder that every machine mounts at the same path.

    S3 uses the standard credential chain and AWS_ENDPOINT_URL. Files are written atomically; a folder is complete when
    its manifest exists.

    Raises: DataError for files that cannot be read or written.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.folder = None if uri.startswith("s3://") else Path(uri)
        self._client: Any = None
        if self.folder is None:
            self._client = connect(2 * TRANSFERS)
            weakref.finalize(self, self._client.close)

    def put(self, files: Mapping[str, Path]) -> None:
        """Write files under their names."""
        if self.folder is None:
            run_all([partial(self._upload, name, source) for name, source in files.items()], workers=TRANSFERS)
            return
        for name, source in files.items():
            with atomic_path(self.folder / name) as temporary:
                shutil.copyfile(source, temporary)

    def put_missing(self, under: str, files: Mapping[str, Path]) -> int:
        """Write the files of a folder that are not there yet, and return their number.

        The names must identify the content. On the same file system, hard links are made instead of copies.
        """
        if self.folder is None:
            existing = {item.name for item in list_objects(self._client, f"{self.uri}/{under}")}
        else:
            existing = {name for name in files if (self.folder / under / name).is_file()}
        missing = {f"{under}/{name}": source for name, source in files.items() if name not in existing}
        self.put({name: source for name, source in missing.items() if not self._link(name, source)})
        return len(missing)

    def get(self, under: str, names: Iterable[str], target: Path) -> Path:
        """Return where the files can be read: on a shared volume where they are, else downloaded below `target`."""
        if self.folder is not None:
            return self.folder / under
        run_all([partial(self._download, f"{under}/{name}", target / name) for name in names], workers=TRANSFERS)
        return target

    def put_folder(self, source: Path, name: str) -> None:
        """Write a folder's files, then its manifest. An earlier folder of that name is deleted first."""
        self.remove(name)
        files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
        self.put({f"{name}/{file}": path for file, path in files.items()})
        self._write(f"{name}{MANIFEST}", {file: sha256_of(path) for file, path in files.items()})

    def get_folder(self, name: str, target: Path) -> Path:
        """Return where a folder can be read, as `get` does. Raises DataError if it is not complete."""
        manifest = self._manifest(name)
        if manifest is None:
            raise DataError(f"{self.uri}/{name}: is not complete, because writing it did not finish. Write it again.")
        found = self.get(name, manifest, target)
        for file, digest in manifest.items():
            if not (found / file).is_file() or sha256_of(found / file) != digest:
                raise DataError(f"{self.uri}/{name}/{file}: changed since it was written. Remove {name}; run again.")
        return found

    def has_folder(self, name: str) -> bool:
        """Whether a folder is complete."""
        return self._manifest(name) is not None

    def remove(self, name: str) -> None:
        """Delete a folder, its manifest first, if it exists."""
        if self.folder is not None:
            (self.folder / f"{name}{MANIFEST}").unlink(missing_ok=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            return
        bucket, prefix = split_uri(self.uri)
        remove_objects(self._client, bucket, [str(PurePosixPath(prefix, f"{name}{MANIFEST}"))])
        remove_objects(self._client, bucket, [item.key for item in list_objects(self._client, f"{self.uri}/{name}")])

    def _link(self, name: str, source: Path) -> bool:
        """Try to make a hard link, which is complete at once; return whether that worked."""
        if self.folder is None:
            return False
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            return False
        return True

    def _manifest(self, name: str) -> dict[str, str] | None:
        try:
            text = self._read(f"{name}{MANIFEST}")
            return None if text is None else dict(json.loads(text))
        except ValueError as error:
            raise DataError(f"{self.uri}/{name}{MANIFEST}: is damaged. Remove it and the folder; run again.") from error

    def _write(self, name: str, value: Any) -> None:
        if self.folder is not None:
            write_json(self.folder / name, value)
            return
        bucket, prefix = split_uri(self.uri)
        upload_object(self._client, bucket, str(PurePosixPath(prefix, name)), json.dumps(value).encode())

    def _read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if it does not exist."""
        if self.folder is not None:
            return (self.folder / name).read_bytes() if (self.folder / name).is_file() else None
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, prefix = split_uri(self.uri)
        try:
            response = self._client.get_object(Bucket=bucket, Key=str(PurePosixPath(prefix, name)))
            return bytes(response["Body"].read())
        except (BotoCoreError, ClientError) as error:
            if getattr(error, "response", {}).get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise s3_error(error, f"{self.uri}/{name}") from error

    def _upload(self, name: str, source: Path, hooks: Hooks) -> None:
        bucket, prefix = split_uri(self.uri)
        upload_object(self._client, bucket, str(PurePosixPath(prefix, name)), source, progress=hooks.received)

    def _download(self, name: str, target: Path, hooks: Hooks) -> None:
        bucket, prefix = split_uri(self.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        download_object(
            self._client, bucket, str(PurePosixPath(prefix, name)), target,
            partial=partial_path(target), sleep=hooks.sleep, progress=hooks.received,
            limit=LARGEST_FILE,
        )  # fmt: skip
