"""What a training on a cluster shares with the step that started it: files under a URI, and nothing else."""

import json
import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from audioscore.data.transfer.partial import partial_of
from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.data.transfer.s3 import (
    connect,
    download_object,
    explain,
    list_objects,
    remove_objects,
    split_uri,
    upload_object,
)
from audioscore.data.versions.storage import LARGEST_FILE
from audioscore.errors import DataError
from audioscore.files import atomic_path, sha256_of, write_json

TRANSFERS = 8  # at once
NOTE = ".json"  # beside a folder, written last: what the folder holds when it is whole


class Exchange:
    """Files by name under `s3://bucket/prefix`, or under a folder that every machine sees under the same path.

    S3 by the standard credential chain and AWS_ENDPOINT_URL. A file is there whole or not at all; a folder is there
    when its note is. Raises DataError, one sentence, for what cannot be read or written there.
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
        """Write those files under a folder that are not there yet; how many. For names that say what is in them.

        On the file system where they lie already, links take their place.
        """
        if self.folder is None:
            there = {item.name for item in list_objects(self._client, f"{self.uri}/{under}")}
        else:
            there = {name for name in files if (self.folder / under / name).is_file()}
        missing = {f"{under}/{name}": source for name, source in files.items() if name not in there}
        self.put({name: source for name, source in missing.items() if not self._link(name, source)})
        return len(missing)

    def get(self, under: str, names: Iterable[str], target: Path) -> Path:
        """Where the named files of a folder can be read: in place on a shared volume, else fetched below `target`."""
        if self.folder is not None:
            return self.folder / under
        run_all([partial(self._download, f"{under}/{name}", target / name) for name in names], workers=TRANSFERS)
        return target

    def put_folder(self, source: Path, name: str) -> None:
        """Write a folder's files, then its note. One that was there before is taken away first, note and all."""
        self.remove(name)
        files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
        self.put({f"{name}/{file}": path for file, path in files.items()})
        self._write(f"{name}{NOTE}", {file: sha256_of(path) for file, path in files.items()})

    def get_folder(self, name: str, target: Path) -> Path:
        """Where a whole folder can be read, as `get` says. Raises DataError where it is not whole."""
        note = self._note(name)
        if note is None:
            raise DataError(f"{self.uri}/{name} is not there whole. What writes it did not finish; run it again.")
        found = self.get(name, note, target)
        for file, digest in note.items():
            if not (found / file).is_file() or sha256_of(found / file) != digest:
                raise DataError(f"{self.uri}/{name}/{file} is not what was written there. Remove {name}; run again.")
        return found

    def has_folder(self, name: str) -> bool:
        """Whether a folder is there, whole."""
        return self._note(name) is not None

    def remove(self, name: str) -> None:
        """Take a folder away, its note first; nothing where there is none."""
        if self.folder is not None:
            (self.folder / f"{name}{NOTE}").unlink(missing_ok=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            return
        bucket, prefix = split_uri(self.uri)
        remove_objects(self._client, bucket, [str(PurePosixPath(prefix, f"{name}{NOTE}"))])
        remove_objects(self._client, bucket, [item.key for item in list_objects(self._client, f"{self.uri}/{name}")])

    def _link(self, name: str, source: Path) -> bool:
        """Whether a hard link could be made; it is there whole at once, as a copy is not."""
        if self.folder is None:
            return False
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            return False
        return True

    def _note(self, name: str) -> dict[str, str] | None:
        try:
            text = self._read(f"{name}{NOTE}")
            return None if text is None else dict(json.loads(text))
        except ValueError as fault:
            raise DataError(f"{self.uri}/{name}{NOTE} is damaged. Remove it and the folder; run again.") from fault

    def _write(self, name: str, value: Any) -> None:
        if self.folder is not None:
            write_json(self.folder / name, value)
            return
        bucket, prefix = split_uri(self.uri)
        upload_object(self._client, bucket, str(PurePosixPath(prefix, name)), json.dumps(value).encode())

    def _read(self, name: str) -> bytes | None:
        """A file's bytes; None where there is none."""
        if self.folder is not None:
            return (self.folder / name).read_bytes() if (self.folder / name).is_file() else None
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, prefix = split_uri(self.uri)
        try:
            answer = self._client.get_object(Bucket=bucket, Key=str(PurePosixPath(prefix, name)))
            return bytes(answer["Body"].read())
        except (BotoCoreError, ClientError) as fault:
            if getattr(fault, "response", {}).get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise explain(fault, f"{self.uri}/{name}") from fault

    def _upload(self, name: str, source: Path, hooks: Hooks) -> None:
        bucket, prefix = split_uri(self.uri)
        upload_object(self._client, bucket, str(PurePosixPath(prefix, name)), source, progress=hooks.received)

    def _download(self, name: str, target: Path, hooks: Hooks) -> None:
        bucket, prefix = split_uri(self.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        download_object(
            self._client, bucket, str(PurePosixPath(prefix, name)), target,
            partial=partial_of(target), sleep=hooks.sleep, progress=hooks.received,
            limit=LARGEST_FILE,
        )  # fmt: skip
