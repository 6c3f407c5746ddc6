"""From a changed data folder to a version that a run can name: checked, sorted, split, recorded."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.delivery.add import incoming_of, sweep
from audioscore.data.delivery.folder_state import LABELS, WITHDRAWN
from audioscore.data.delivery.gather import Stage
from audioscore.data.gate.output import settings_of, write_accepted
from audioscore.data.gate.validation import ValidationResult, validate_folder
from audioscore.data.index import ORDER
from audioscore.data.split.assign import SPLITS, Splits
from audioscore.data.split.sort import SPLITS_FILE, Embed, check_indexes, sort_folder
from audioscore.data.versions.dvc import open_repository
from audioscore.data.versions.history import recorded_files
from audioscore.data.versions.repository import Version, commit, pull_missing, record_of
from audioscore.errors import DataError, shorten

if TYPE_CHECKING:
    from audioscore.config import Config


SHOWN = 5  # lines of one kind, at most
TABLES = frozenset({LABELS, ORDER, WITHDRAWN, SPLITS_FILE, *(f"index/{split}.json" for split in SPLITS)})
UNREADABLE = "expect_table_to_be_readable"  # the gate's only line about a table that cannot be read


@dataclass(frozen=True)
class NewVersion:
    """What a data folder came to: the gate's answer, its splits (None: they cannot be made), and its DVC record."""

    folder: Path
    gate: ValidationResult
    splits: Splits | None
    version: Version | None
    unsorted: str = ""  # why there are no splits

    def describe(self) -> list[str]:
        """Lines for people; what the splits fall short of was logged when they were made."""
        gate = self.gate
        lines = [f"folder    {self.folder}: {len(gate.accepted)} clips accepted, {len(gate.rejected)} rejected"]
        for word, clips in (("rejected", gate.rejected), ("warning", gate.warned)):
            lines += [f"{word:<9} {one['audio_file']}: {one['reason']}" for one in clips[:SHOWN]]
            lines += [f"{word:<9} and {len(clips) - SHOWN} more: `audioscore data validate`"] * (len(clips) > SHOWN)
        lines += [f"warning   {warning}" for warning in gate.warnings]
        lines += [f"gate      a run on these data would be refused: {reason}" for reason in gate.reasons]
        if self.splits is None:
            lines.append(f"splits    none: {self.unsorted}")
        else:
            told = [f"{name} {count.clips} clips by {count.singers} singers" for name, count in self._counts()]
            lines.append(f"splits    {', '.join(told)}")
        if self.version:
            state = "recorded in" if self.version.changed else "unchanged in"
            size = f"{self.version.files} files, {self.version.bytes / 1e6:.1f} MB"
            record = record_of(self.folder).name
            lines.append(f"version   {self.version.md5} {state} {record}: {size}")
            if self.version.changed:
                lines.append(f"next      git add {record} .gitignore; git commit; audioscore data push {self.folder}")
        return lines

    def _counts(self) -> list[tuple[str, Any]]:
        return list(self.splits.report.splits.items()) if self.splits else []

    def to_json(self) -> dict[str, Any]:
        """The `gate`, `splits` and `version` parts of `data add --json`."""
        version = self.version
        return {
            "gate": {**self.gate.to_json(), "reasons": self.gate.reasons, "table_warnings": self.gate.warnings},
            "splits": self.splits.report.to_json() if self.splits else None,
            "version": vars(version) | {"record": str(record_of(self.folder))} if version else None,
        }


def prepare(folder: Path, *, record: bool, say: Callable[[str], object]) -> None:
    """What must hold before a data folder is changed; its recorded version is pulled where it is not there.

    Raises DataError where its indexes disagree with their scores; where tables of its recorded version are not there,
    since what they remember would be forgotten; or, with `record`, where no DVC repository is around it. It is better
    to say so before than after.
    """
    if record:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with open_repository(folder):
            pass
    if record_of(folder).is_file() and not folder.exists():
        pull_missing(folder.absolute(), say)
    if folder.is_dir():
        if lost := sorted(name for name in _unpulled(folder) if name in TABLES):
            raise DataError(
                f"{folder} lacks {len(lost)} files of its recorded version ({shorten(lost)}), without which splits and "
                f"scores would be forgotten. `audioscore data pull` brings them back."
            )
        check_indexes(folder)


def new_version(
    folder: Path,
    config: "Config",
    *,
    record: bool = True,
    removing: bool = False,
    memory: Path | None = None,
    embed: Embed | None = None,
    stage: Stage = lambda name: None,
) -> NewVersion:
    """Check a data folder, write its indexes, and record it with DVC unless told otherwise.

    Nothing is written, and no version recorded, that is there already. A folder that the gate would refuse, or that is
    too small to be split, gets its version all the same: it may be on its way to something better. Raises DataError
    where recordings of the recorded version are named by a table and not there, and where the folder was split before
    and cannot be now, unless it is because of `removing`: consent does not wait for new singers.
    """
    with incoming_of(folder), tempfile.TemporaryDirectory() as scratch:
        sweep(folder)
        gate = validate_folder(folder, settings=settings_of(config), progress=stage("checking"), memory=memory)
        if any(line["expectation"] == UNREADABLE for line in gate.expectations):
            raise DataError(shorten(gate.reasons))
        _refuse_holes(folder, gate)
        write_accepted(gate, Path(scratch))
        splits, unsorted = None, ""
        try:
            splits = sort_folder(folder, Path(scratch), folder, config.split, embed=embed)
        except DataError as fault:
            if (folder / "index").is_dir() and not removing:
                raise
            unsorted = str(fault)
        version = commit(folder) if record else None
    return NewVersion(folder, gate, splits, version, unsorted)


def _unpulled(folder: Path) -> set[str]:
    """Files of the recorded version that are not in the folder."""
    if not record_of(folder).is_file():
        return set()
    return {name for name in recorded_files(folder) if not (folder / name).is_file()}


def _refuse_holes(folder: Path, gate: ValidationResult) -> None:
    named = {one["audio_file"] for one in gate.rejected}
    if holes := sorted(named & _unpulled(folder)):
        raise DataError(
            f"{folder}: {len(holes)} recordings of its recorded version are named by its tables and not there "
            f"({shorten(holes)}), so no version was recorded. Bring them back by `audioscore data pull`, or by adding "
            f"a delivery that holds them, or take them out by `audioscore data remove`."
        )
