"""Adding a delivery to a data folder: everything is fetched and heard first, then recordings, then tables change.

A process that is killed at any moment leaves whole recordings that no table names yet, or a table that names what is
there: adding the same delivery again ends where an undisturbed one would have.
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
    read_known,
    read_labels_file,
    write_labels_file,
    write_order,
)
from audioscore.data.delivery.gather import Delivery, Gathering, Stage, every_clip, gather, read_delivery
from audioscore.data.delivery.plan import Placed, Plan, plan_add
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.index import ORDER
from audioscore.data.labels import Fault
from audioscore.data.transfer.download import DISK_FULL
from audioscore.errors import DataError, GateRefused, UsageError, shorten
from audioscore.files import place, sha256_of

OURS = (LABELS, ORDER, WITHDRAWN, "splits.json", "split_report.json", "train.json", "val.json", "test.json")
COPY = "copy"  # in the folder of arrivals: the recording that is being brought in
IGNORED = ".gitignore"  # what has half arrived is nobody's to commit
LEFTOVER = re.compile(rf"\.({'|'.join(map(re.escape, OURS))})\.[a-z0-9_]{{8}}(\.\w+)?")


@dataclass(frozen=True)
class Request:
    """What is to be added, and how its table is read. `audio` is where relative names are looked up: a folder or s3://.

    `own_columns` and `own_singers` are the `column_map` and `singer_from` of the data folder's own table.
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


@dataclass(frozen=True)
class Added:
    """What adding did, or with `dry_run` would do."""

    delivery: Delivery
    gathering: Gathering
    plan: Plan
    agreement: Agreement | None
    dry_run: bool

    @property
    def refused(self) -> list[Fault]:
        """Rows that were not added, and why; links without the secrets in them."""
        return sorted(self.gathering.refused + self.plan.refused)

    def to_json(self) -> dict[str, Any]:
        """The `delivery` part of `data add --json`."""
        plan = self.plan
        return {
            "labels": str(self.delivery.path),
            "columns": self.delivery.columns,
            "left_out": list(self.delivery.left_out),
            "downloaded": self.gathering.downloaded,
            "added": [one.clip.audio_file for one in plan.added],
            "updated": [{"audio_file": one.clip.audio_file, "changes": one.cells} for one in plan.updated],
            "restored": [one.clip.audio_file for one in plan.restored],
            "ordered": [one.clip.audio_file for one in plan.ordered],
            "unchanged": plan.unchanged,
            "repeats": plan.repeats,
            "refused": [fault._asdict() for fault in self.refused],
            "warned": [fault._asdict() for fault in self.gathering.warned],
            "notes": plan.notes,
            "agreement": self.agreement.to_json() if self.agreement else None,
            "dry_run": self.dry_run,
        }


def add_delivery(
    request: Request,
    folder: Path,
    settings: ValidationSettings,
    *,
    memory: Path | None = None,
    stage: Stage = lambda name: None,
    dry_run: bool = False,
) -> Added:
    """Add a delivery's recordings and scores to `folder`, which is made where it does not exist.

    Rows that cannot be used are listed in the result. Nothing in the folder changes, and GateRefused is raised, where
    they are more than `max_rejected_share` of the delivery. Raises DataError where the table, the folder or a conflict
    stands in the way.
    """
    delivery = read_delivery(
        request.labels,
        column_map=request.column_map,
        singer_from=request.singer_from,
        source=request.source,
        resort=request.resort,
    )
    root = _root(request)
    with incoming_of(folder) as incoming:
        sweep(folder)
        if request.refetch:
            empty(incoming)
        table = read_labels_file(folder, request.own_columns)
        known = read_known(folder, table, request.own_singers)
        gathering = gather(
            delivery,
            root,
            known,
            incoming,
            settings,
            absolute_allowed=request.audio is None,
            refetch=request.refetch,
            memory=memory,
            stage=stage,
        )
        plan = plan_add(gathering.scored, gathering.groups, known, folder, on_conflict=request.on_conflict)
        added = Added(delivery, gathering, plan, rater_agreement([clip.raters for clip in delivery.clips]), dry_run)
        _check_share(added, settings.max_rejected_share)
        if not dry_run:
            for one in plan.added:
                table.append(one.clip)
            for update in plan.updated:
                table.update(update.clip.row or 0, update.cells)
            with _all_or_nothing(folder, incoming) as made:
                for one in [*plan.added, *plan.restored, *plan.ordered]:
                    made += _put(one, folder, incoming)
                write_labels_file(folder, table)
                write_order(folder, plan.groups)
            empty(incoming)
    return added


def _root(request: Request) -> Path | str:
    """Where relative names are looked up. Raises UsageError where that is no folder."""
    if request.audio is None:
        return request.labels.absolute().parent
    if request.audio.lower().startswith("s3://"):
        return request.audio
    if "://" in request.audio:
        raise UsageError(f"--audio {request.audio}: only folders and s3:// are looked through. Put links in the table.")
    if not Path(request.audio).is_dir():
        raise UsageError(
            f"--audio {request.audio}: no such folder. Name the folder, or s3://, that holds the recordings."
        )
    return Path(request.audio).absolute()


def _check_share(added: Added, most: float) -> None:
    refused = added.gathering.refused  # what was removed earlier is no fault of this delivery
    rows = len(added.delivery.faults) + len(every_clip(added.delivery))
    if refused and len(refused) > most * rows:
        told = [f"row {fault.row} ({fault.audio_file}): {fault.reason.rstrip('.')}" for fault in refused]
        raise DeliveryRefused(
            added,
            f"{len(refused)} of {rows} rows cannot be used ({len(refused) / rows:.0%}), and at most {most:.0%} may be, "
            f"so nothing was added: {shorten(told, 3)}. Mend them, or raise validation.max_rejected_share.",
        )


class DeliveryRefused(GateRefused):
    """Too much of a delivery cannot be used; `added` says what would have been done, and every refused row."""

    def __init__(self, added: Added, message: str) -> None:
        super().__init__(message)
        self.added = added


@contextlib.contextmanager
def _all_or_nothing(folder: Path, incoming: Path) -> Iterator[list[Path]]:
    """Take back the listed files and folders, and what became of the tables, where something fails: a full disk.

    What was downloaded stays in `incoming`. Raises DataError for a full disk.
    """
    made: list[Path] = []
    before = {folder / name: incoming / f"{name}.before" for name in (LABELS, ORDER)}
    begun = False
    try:
        for table, kept in before.items():
            kept.unlink(missing_ok=True)
            if table.is_file():
                place(table, kept)  # a link takes no space, so that a full disk cannot prevent the way back
        begun = True
        yield made
    except BaseException as fault:
        for table, kept in before.items() if begun else ():
            if kept.exists():
                os.replace(kept, table)
            else:
                table.unlink(missing_ok=True)
        recordings = _take_back(made)
        if isinstance(fault, OSError) and fault.errno in DISK_FULL:
            raise DataError(
                f"{folder}: the disk is full ({fault.strerror}) after {recordings} new recordings, so nothing was "
                f"added. Free space and add the delivery again."
            ) from fault
        raise
    finally:
        for path in (*before.values(), incoming / COPY):
            path.unlink(missing_ok=True)


def _take_back(made: list[Path]) -> int:
    """Delete files and folders, those made last first; how many were files."""
    files = [path for path in made if not path.is_dir()]
    for path in reversed(made):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    return len(files)


def _put(one: Placed, folder: Path, incoming: Path) -> list[Path]:
    """Bring a recording under its name: a copy, so that nothing done to the folder reaches the delivered file.

    Returns the folders and the file that were not there before.
    """
    target = folder / one.clip.audio_file
    if one.path is None or (target.is_file() and sha256_of(target) == one.clip.sha256):
        return []
    whole = incoming / COPY
    whole.unlink(missing_ok=True)
    if one.path.is_relative_to(incoming):
        place(one.path, whole)
    else:
        shutil.copyfile(one.path, whole)
    if sha256_of(whole) != one.clip.sha256:
        raise DataError(f"{one.path}: changed while it was being added. Add the delivery again.")
    missing = [path for path in (target.parent, *target.parent.parents) if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    new = [*reversed(missing), *([] if target.exists() else [target])]
    os.replace(whole, target)
    return new


# --- the folder beside the data folder, where deliveries arrive ---


@contextlib.contextmanager
def incoming_of(folder: Path) -> Iterator[Path]:
    """A folder beside the data folder, on the same file system, for one process at a time.

    It keeps half-fetched recordings for the next attempt, and vanishes where nothing is left in it. Raises DataError
    while another process changes the data folder.
    """
    incoming = folder.absolute().parent / f".{folder.absolute().name}.incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    lock = incoming / "lock"
    with lock.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise _busy(folder, lock) from fault
        if not lock.exists() or lock.stat().st_ino != os.fstat(handle.fileno()).st_ino:
            raise _busy(folder, lock)  # its owner deleted it between our opening and our locking it
        try:
            handle.truncate(0)
            with contextlib.suppress(OSError):  # a full disk: the number is only told to those who must wait
                os.write(handle.fileno(), str(os.getpid()).encode())
                (incoming / IGNORED).write_text("*\n", encoding="utf-8")
            yield incoming
        finally:
            lock.unlink(missing_ok=True)
            if os.listdir(incoming) in ([], [IGNORED]):  # else what it holds is wanted by the next attempt
                shutil.rmtree(incoming)


def _busy(folder: Path, lock: Path) -> DataError:
    with contextlib.suppress(OSError):
        owner = lock.read_text(encoding="utf-8").strip()
        if owner:
            return DataError(f"{folder} is being changed by another process ({owner}). Wait for it to end.")
    return DataError(f"{folder} is being changed by another process. Wait for it to end.")


def empty(incoming: Path) -> None:
    """Delete what has arrived, but for the lock."""
    for path in incoming.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def sweep(folder: Path) -> None:
    """Delete the temporary files that a killed process left of the tables that we write; only with the lock held."""
    for inner in (folder, folder / "index"):
        if inner.is_dir():
            for path in inner.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    path.unlink()
