"""Make a new version of a changed data folder: check, sort, split and record it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.data.delivery.add import incoming_folder, remove_leftovers
from audioscore.data.delivery.folder_state import LABELS, WITHDRAWN
from audioscore.data.delivery.gather import Stage
from audioscore.data.gate.output import validation_settings, write_accepted
from audioscore.data.gate.validation import ValidationResult, validate_folder
from audioscore.data.index import ORDER
from audioscore.data.split.assign import Splits
from audioscore.data.split.groups import SPLITS
from audioscore.data.split.sort import SPLITS_FILE, Embed, check_indexes, sort_folder
from audioscore.data.versions.dvc import open_repository
from audioscore.data.versions.repository import Version, commit, pull_missing, record_of, recorded_files
from audioscore.errors import DataError, shorten

if TYPE_CHECKING:
    from audioscore.config import Config

SHOWN = 5  # largest number of lines of one kind
TABLES = frozenset({LABELS, ORDER, WITHDRAWN, SPLITS_FILE, *(f"index/{split}.json" for split in SPLITS)})
UNREADABLE = "expect_table_to_be_readable"  # the only expectation of the gate for a table that cannot be read


@dataclass(frozen=True)
class NewVersion:
    """The result of `new_version`: the gate's result, the splits, and the DVC record.

    `splits` is None if no splits can be made; `split_error` is the reason.
    """

    folder: Path
    gate: ValidationResult
    splits: Splits | None
    version: Version | None
    split_error: str = ""

    def describe(self) -> list[str]:
        """Describe the version in lines of text. Warnings about the splits are logged when they are made."""
        gate = self.gate
        lines = [f"folder    {self.folder}: {len(gate.accepted)} clips accepted, {len(gate.rejected)} rejected"]
        for word, clips in (("rejected", gate.rejected), ("warning", gate.warned)):
            lines += [f"{word:<9} {one['audio_file']}: {one['reason']}" for one in clips[:SHOWN]]
            lines += [f"{word:<9} and {len(clips) - SHOWN} more: `audioscore data validate`"] * (len(clips) > SHOWN)
        lines += [f"warning   {warning}" for warning in gate.warnings]
        lines += [f"gate      a run on these data would be refused: {reason}" for reason in gate.reasons]
        if self.splits is None:
            lines.append(f"splits    not made: {self.split_error}")
        else:
            counts = self.splits.report.splits.items()
            splits = [f"{name} {count.clips} clips by {count.singers} singers" for name, count in counts]
            lines.append(f"splits    {', '.join(splits)}")
        if self.version:
            state = "recorded in" if self.version.changed else "unchanged in"
            size = f"{self.version.files} files, {self.version.bytes / 1e6:.1f} MB"
            record = record_of(self.folder).name
            lines.append(f"version   {self.version.md5} {state} {record}: {size}")
            if self.version.changed:
                lines.append(f"next      git add {record} .gitignore; git commit; audioscore data push {self.folder}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the `gate`, `splits` and `version` parts of `data add --json`."""
        version = self.version
        return {
            "gate": {**self.gate.to_json(), "reasons": self.gate.reasons, "table_warnings": self.gate.warnings},
            "splits": self.splits.report.to_json() if self.splits else None,
            "version": vars(version) | {"record": str(record_of(self.folder))} if version else None,
        }


def prepare(folder: Path, *, record: bool, report: Callable[[str], object]) -> None:
    """Check that a data folder may be changed, and pull its recorded version if the folder is missing.

    These checks come before any change. `report` gets a line about the pull.

    Raises DataError when the scores contradict the order of an index, when tables of the recorded version are missing
    (their splits and scores would be lost), or, with `record`, when there is no DVC repository around the folder.
    """
    if record:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with open_repository(folder):
            pass
    if record_of(folder).is_file() and not folder.exists():
        pull_missing(folder.absolute(), report)
    if folder.is_dir():
        if missing := sorted(name for name in _missing_files(folder) if name in TABLES):
            raise DataError(
                f"{folder}: lacks {len(missing)} files of its recorded version ({shorten(missing)}); a change would "
                f"lose their splits and scores. Restore them by `audioscore data pull`."
            )
        check_indexes(folder)


def new_version(
    folder: Path,
    config: "Config",
    *,
    record: bool = True,
    removing: bool = False,
    cache: Path | None = None,
    embed: Embed | None = None,
    stage: Stage = lambda name: None,
) -> NewVersion:
    """Check a data folder, write its indexes, and record it with DVC unless `record` is False.

    Equal files and versions are not written again. A folder that the gate refuses, or that is too small to be split, is
    recorded as well, because later deliveries may complete it.

    Raises DataError when a table names recordings of the recorded version that are missing, and when a folder that was
    split before cannot be split now. The latter is allowed with `removing`, because a withdrawal of consent must not
    wait for new singers.
    """
    with incoming_folder(folder), tempfile.TemporaryDirectory() as scratch:
        remove_leftovers(folder)
        gate = validate_folder(folder, settings=validation_settings(config), progress=stage("checking"), cache=cache)
        if any(line["expectation"] == UNREADABLE for line in gate.expectations):
            raise DataError(shorten(gate.reasons))
        _refuse_missing(folder, gate)
        write_accepted(gate, Path(scratch))
        splits, split_error = None, ""
        try:
            splits = sort_folder(folder, Path(scratch), folder, config.split, embed=embed)
        except DataError as error:
            if (folder / "index").is_dir() and not removing:
                raise
            split_error = str(error)
        version = commit(folder) if record else None
    return NewVersion(folder, gate, splits, version, split_error)


def _missing_files(folder: Path) -> set[str]:
    """Files of the recorded version that are not in the folder."""
    if not record_of(folder).is_file():
        return set()
    return {name for name in recorded_files(folder) if not (folder / name).is_file()}


def _refuse_missing(folder: Path, gate: ValidationResult) -> None:
    named = {one["audio_file"] for one in gate.rejected}
    if missing := sorted(named & _missing_files(folder)):
        raise DataError(
            f"{folder}: {len(missing)} recordings of its recorded version are named by its tables, but missing "
            f"({shorten(missing)}), so no version was recorded. Restore them by `audioscore data pull` or by adding a "
            f"delivery that holds them, or remove them by `audioscore data remove`."
        )
