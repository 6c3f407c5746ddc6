"""Add a delivery to a data folder: fetch and check everything first, then write recordings, then tables.

A process that is killed at any moment leaves complete recordings that no table names yet, or tables that name existing
files. Adding the same delivery again gives the same result as an undisturbed run.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audioscore.data.agreement import Agreement, rater_agreement
from audioscore.data.delivery.folder_state import (
    LABELS,
    WITHDRAWN,
    read_folder_state,
    read_labels_file,
    write_labels_file,
    write_order,
)
from audioscore.data.delivery.gather import Delivery, Gathering, Stage, gather, read_delivery
from audioscore.data.delivery.plan import AddPlan, StoredRecording, plan_add
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.index import ORDER
from audioscore.data.labels import RowError, row_label
from audioscore.data.spelling import path_on_disk
from audioscore.data.transfer.download import DISK_FULL
from audioscore.errors import DataError, GateRefused, UsageError, shorten
from audioscore.files import link_or_copy, sha256_of

WRITTEN = (LABELS, ORDER, WITHDRAWN, "splits.json", "split_report.json", "train.json", "val.json", "test.json")
COPY = "copy"  # name of the recording that is being copied, in the incoming folder
IGNORED = ".gitignore"  # keeps partial files out of git
LEFTOVER = re.compile(rf"\.({'|'.join(map(re.escape, WRITTEN))})\.[a-z0-9_]{{8}}(\.\w+)?")


@dataclass(frozen=True)
class DeliveryRequest:
    """A delivery to add, and how its table is read.

    `audio` is where relative names are looked up: a folder or s3://. `own_columns` and `own_singers` are the
    `column_map` and `singer_from` of the data folder's own table.
    """

    labels: Path
    audio: str | None = None
    source: str | None = None
    column_map: Mapping[str, str] = field(default_factory=dict)
    singer_from: str | None = None
    own_columns: Mapping[str, str] = field(default_factory=dict)
    own_singers: str | None = None
    on_conflict: str = "error"
    resort: bool = False
    refetch: bool = False
    include_hidden: bool = False


@dataclass(frozen=True)
class AddResult:
    """What a delivery changed, or would change with `dry_run`."""

    delivery: Delivery
    gathering: Gathering
    plan: AddPlan
    agreement: Agreement | None
    dry_run: bool

    @property
    def refused(self) -> list[RowError]:
        """Rows that were not added, and the reasons; links without secrets."""
        return sorted(self.gathering.refused + self.plan.refused)

    @property
    def notes(self) -> list[str]:
        """Sentences about the delivered file, and about recordings that are merged or left out."""
        return [*self.delivery.notes, *self.plan.notes]

    def to_json(self) -> dict[str, Any]:
        """Return the `delivery` part of `data add --json`."""
        plan = self.plan
        return {
            "labels": str(self.delivery.path),
            "columns": self.delivery.columns,
            "left_out": list(self.delivery.unknown_columns),
            "downloaded": self.gathering.downloaded,
            "added": [one.clip.audio_file for one in plan.added],
            "updated": [{"audio_file": one.clip.audio_file, "changes": one.cells} for one in plan.updated],
            "restored": [one.clip.audio_file for one in plan.restored],
            "ordered": [one.clip.audio_file for one in plan.ordered],
            "unchanged": plan.unchanged,
            "repeats": plan.repeats,
            "refused": [row._asdict() for row in self.refused],
            "warned": [row._asdict() for row in self.gathering.warned],
            "notes": self.notes,
            "agreement": self.agreement.to_json() if self.agreement else None,
            "dry_run": self.dry_run,
        }


class DeliveryRefused(GateRefused):
    """Too many rows of a delivery are unusable; `result` holds the refused rows and what would have changed."""

    def __init__(self, result: AddResult, message: str) -> None:
        super().__init__(message)
        self.result = result


def add_delivery(
    request: DeliveryRequest,
    folder: Path,
    settings: ValidationSettings,
    *,
    cache: Path | None = None,
    stage: Stage = lambda name: None,
    dry_run: bool = False,
) -> AddResult:
    """Add the recordings and scores of a delivery to `folder`, which is created if necessary.

    Unusable rows are listed in the result.

    Raises:
        DeliveryRefused: More than `max_rejected_share` of the rows are unusable; nothing is changed.
        DataError: The table or the folder cannot be used, or rows are in conflict.
    """
    delivery = read_delivery(
        request.labels,
        column_map=request.column_map,
        singer_from=request.singer_from,
        source=request.source,
        resort=request.resort,
        include_hidden=request.include_hidden,
    )
    root = _root(request)
    with incoming_folder(folder) as incoming:
        remove_leftovers(folder)
        if request.refetch:
            clear_incoming(incoming)
        table = read_labels_file(folder, request.own_columns)
        state = read_folder_state(folder, table, request.own_singers)
        gathering = gather(
            delivery,
            root,
            state,
            incoming,
            settings,
            absolute_allowed=request.audio is None,
            refetch=request.refetch,
            cache=cache,
            stage=stage,
        )
        plan = plan_add(
            gathering.scored,
            gathering.groups,
            state,
            folder,
            on_conflict=request.on_conflict,
            locations=delivery.locations,
        )
        agreement = rater_agreement([clip.raters for clip in delivery.clips])
        result = AddResult(delivery, gathering, plan, agreement, dry_run)
        _check_share(result, settings.max_rejected_share)
        if not dry_run:
            for one in plan.added:
                table.append(one.clip)
            for update in plan.updated:
                table.update(update.clip.row or 0, update.cells)
            with _undone_on_error(folder, incoming) as created:
                for one in [*plan.added, *plan.restored, *plan.ordered]:
                    created += _copy_into(one, folder, incoming)
                write_labels_file(folder, table)
                write_order(folder, plan.groups)
            clear_incoming(incoming)
    return result


def _root(request: DeliveryRequest) -> Path | str:
    """Folder or S3 prefix of relative names. Raises UsageError for anything else."""
    if request.audio is None:
        return request.labels.absolute().parent
    if request.audio.lower().startswith("s3://"):
        return request.audio
    if "://" in request.audio:
        raise UsageError(f"--audio {request.audio}: only folders and s3:// are supported. Put links into the table.")
    if not Path(request.audio).is_dir():
        raise UsageError(f"--audio {request.audio}: no such folder. Name the folder, or s3://, of the recordings.")
    return Path(request.audio).absolute()


def _check_share(result: AddResult, limit: float) -> None:
    refused = result.gathering.refused  # without recordings that were removed earlier, which are not data errors
    rows = len(result.delivery.row_errors) + len(result.delivery.all_clips)
    if refused and len(refused) > limit * rows:
        reasons = [
            f"{row_label(row.row, row.reason)} ({row.audio_file}): {row.reason.rstrip('.')}".lstrip() for row in refused
        ]
        raise DeliveryRefused(
            result,
            f"delivery: {len(refused)} of {rows} rows are unusable ({len(refused) / rows:.0%}), above {limit:.0%}, "
            f"so nothing was added: {shorten(reasons, 3)}. Correct them or raise validation.max_rejected_share.",
        )


@contextlib.contextmanager
def _undone_on_error(folder: Path, incoming: Path) -> Iterator[list[Path]]:
    """Delete the listed new files and folders and restore the tables after an error, such as a full disk.

    Downloads stay in `incoming`. Raises DataError for a full disk.
    """
    created: list[Path] = []
    before = {folder / name: incoming / f"{name}.before" for name in (LABELS, ORDER)}
    started = False
    try:
        for table, kept in before.items():
            kept.unlink(missing_ok=True)
            if table.is_file():
                link_or_copy(table, kept)  # a link needs no space, so a full disk cannot prevent the restoration
        started = True
        yield created
    except BaseException as error:
        for table, kept in before.items() if started else ():
            if kept.exists():
                os.replace(kept, table)
            else:
                table.unlink(missing_ok=True)
        recordings = _delete_created(created)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise DataError(
                f"{folder}: the disk is full ({error.strerror}) after {recordings} new recordings, so nothing was "
                f"added. Free space and add the delivery again."
            ) from error
        raise
    finally:
        for path in (*before.values(), incoming / COPY):
            path.unlink(missing_ok=True)


def _delete_created(created: list[Path]) -> int:
    """Delete files and folders, the last created first; return the number of files."""
    files = [path for path in created if not path.is_dir()]
    for path in reversed(created):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    return len(files)


def _copy_into(one: StoredRecording, folder: Path, incoming: Path) -> list[Path]:
    """Copy a recording into the folder and return the folders and files that this created.

    A copy and not a link, so that later changes in the folder do not change the delivered file.
    """
    target = path_on_disk(folder, one.clip.audio_file)
    if one.path is None or (target.is_file() and sha256_of(target) == one.clip.sha256):
        return []
    complete = incoming / COPY
    complete.unlink(missing_ok=True)
    if one.path.is_relative_to(incoming):
        link_or_copy(one.path, complete)
    else:
        shutil.copyfile(one.path, complete)
    if sha256_of(complete) != one.clip.sha256:
        raise DataError(f"{one.path}: changed while it was being added. Add the delivery again.")
    missing = [path for path in (target.parent, *target.parent.parents) if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    new = [*reversed(missing), *([] if target.exists() else [target])]
    os.replace(complete, target)
    return new


# --- the incoming folder beside the data folder ---


@contextlib.contextmanager
def incoming_folder(folder: Path) -> Iterator[Path]:
    """Lock a data folder and create its incoming folder, beside it on the same file system.

    It keeps partial downloads for the next attempt and is deleted when empty. Raises DataError while another process
    holds the lock.
    """
    incoming = folder.absolute().parent / f".{folder.absolute().name}.incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    lock = incoming / "lock"
    with lock.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(folder, lock) from error
        if not lock.exists() or lock.stat().st_ino != os.fstat(handle.fileno()).st_ino:
            raise _busy(folder, lock)  # its owner deleted the file between our open and our lock
        try:
            handle.truncate(0)
            with contextlib.suppress(OSError):  # on a full disk, only the message of waiting processes lacks the number
                os.write(handle.fileno(), str(os.getpid()).encode())
                (incoming / IGNORED).write_text("*\n", encoding="utf-8")
            yield incoming
        finally:
            lock.unlink(missing_ok=True)
            if os.listdir(incoming) in ([], [IGNORED]):  # otherwise the next attempt needs the content
                shutil.rmtree(incoming)


def _busy(folder: Path, lock: Path) -> DataError:
    owner = ""
    with contextlib.suppress(OSError):
        owner = lock.read_text(encoding="utf-8").strip()
    process = f" ({owner})" if owner else ""
    return DataError(f"{folder}: is being changed by another process{process}. Wait until it ends.")


def clear_incoming(incoming: Path) -> None:
    """Delete the content of an incoming folder, except the lock."""
    for path in incoming.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed process left beside our tables. Call it only with the lock held."""
    for inner in (folder, folder / "index"):
        if inner.is_dir():
            for path in inner.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    path.unlink()
