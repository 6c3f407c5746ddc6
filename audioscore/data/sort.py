"""One main list from the best recording to the worst, and its parts on disk."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.data.accepted import read_accepted
from audioscore.data.clips import Clip
from audioscore.data.index import read_index, write_index
from audioscore.data.split import SPLITS, Splits, assign_splits, read_splits, write_splits
from audioscore.errors import DataError, shorten
from audioscore.files import write_json

if TYPE_CHECKING:
    from audioscore.config import SplitSection

log = logging.getLogger(__name__)

SPLITS_FILE = "splits.json"


def sort_clips(clips: Iterable[Clip]) -> list[Clip]:
    """Clips by score, high to low; equal scores by content hash, then by name, whatever the order they came in.

    Raises DataError where a clip has no score: its place among the others is not known.
    """
    listed = list(clips)
    if unscored := [clip.audio_file for clip in listed if clip.score is None]:
        raise DataError(
            f"{len(unscored)} of {len(listed)} clips have no score and cannot be sorted ({shorten(unscored)}). "
            f"Score them, or leave them out."
        )
    return sorted(listed, key=lambda clip: (-(clip.score or 0.0), clip.sha256 or "", clip.audio_file))


def write_sorted(folder: Path, clips: Iterable[Clip], splits: Splits) -> None:
    """Write `index/{train,val,test}.json`, one sorted group each, and `splits.json` under `folder`.

    Raises DataError where a clip has no split.
    """
    ordered = sort_clips(clips)
    if lost := [clip.audio_file for clip in ordered if clip.audio_file not in splits.of]:
        raise DataError(f"{len(lost)} of {len(ordered)} clips have no split ({shorten(lost)}). Assign splits again.")
    for split in SPLITS:
        write_index(
            folder / "index" / f"{split}.json", [[clip for clip in ordered if splits.of[clip.audio_file] == split]]
        )
    write_splits(folder / SPLITS_FILE, splits)


def read_split(folder: Path, split: str) -> list[Clip]:
    """The scored clips of one split that `write_sorted` wrote, best first."""
    groups = read_index(folder / "index" / f"{split}.json")
    return [clip for group in groups for clip in group if clip.score is not None]


def sort_folder(data: Path, validated: Path, target: Path, section: "SplitSection") -> Splits:
    """Sort and split the accepted clips of a data folder; splits.json in the folder is remembered and extended.

    Writes index/, splits.json and split_report.json under `target`.
    """
    clips = read_accepted(validated)
    remembered = read_splits(data / SPLITS_FILE).groups if (data / SPLITS_FILE).is_file() else None
    if remembered is None and target != data:
        log.warning("splits: new, and not remembered for later data; `audioscore data sort` remembers them")
    splits = assign_splits(clips, val=section.val, test=section.test, seed=section.seed, remembered=remembered)
    for warning in splits.report.warnings:
        log.warning("%s", warning)
    write_sorted(target, clips, splits)
    write_json(target / "split_report.json", splits.report.to_json())
    return splits
