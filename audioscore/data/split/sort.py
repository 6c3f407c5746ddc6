"""One main list from the best recording to the worst, and its parts on disk."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.data.gate.output import read_accepted, read_near_duplicates, read_ordered
from audioscore.data.index import read_index, without_trailing_commas, write_index
from audioscore.data.split.assign import SPLITS, Splits, assign_splits, read_splits, write_splits
from audioscore.data.split.pseudo_singers import PseudoSingers, group_voices
from audioscore.data.tables import decode_text
from audioscore.errors import DataError, shorten
from audioscore.files import write_json, write_text

if TYPE_CHECKING:
    from audioscore.config import SplitSection

log = logging.getLogger(__name__)

INDEX, SPLITS_FILE, REPORT = "index", "splits.json", "split_report.json"

Embed = Callable[[Sequence[Clip]], NDArray[np.floating]]  # clips [N] -> voice embeddings [N, E]


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


def write_sorted(folder: Path, clips: Iterable[Clip], splits: Splits, relative: Sequence[Sequence[Clip]] = ()) -> None:
    """Write `index/{train,val,test}.json` and `splits.json` under `folder`; equal files stay.

    Each index holds its part of the main list, sorted, and then its part of every group of `relative` clips, in the
    group's order, where that leaves two clips to compare.

    Raises DataError, before anything is written, where a clip has no split.
    """
    ordered = sort_clips(clips)
    out = {one.audio_file for one in splits.report.left_out}
    named = [clip.audio_file for group in (ordered, *relative) for clip in group]
    if lost := [name for name in named if name not in splits.of and name not in out]:
        raise DataError(f"{len(lost)} of {len(named)} clips have no split ({shorten(lost)}). Assign splits again.")
    with tempfile.TemporaryDirectory() as scratch:
        new = Path(scratch)
        write_splits(new / SPLITS_FILE, splits)
        for split in SPLITS:
            main, *groups = [
                [clip for clip in group if splits.of.get(clip.audio_file) == split] for group in (ordered, *relative)
            ]
            write_index(new / INDEX / f"{split}.json", [main, *(group for group in groups if len(group) > 1)])
        # What is remembered goes first: after a stop between two files, the same splits come out again.
        for name in (SPLITS_FILE, *(f"{INDEX}/{split}.json" for split in SPLITS)):
            text = (new / name).read_text(encoding="utf-8")
            if not _holds(folder / name, text):
                write_text(folder / name, text)


def read_split(folder: Path, split: str) -> list[Clip]:
    """The scored clips of one split that `write_sorted` wrote, best first."""
    groups = read_index(folder / INDEX / f"{split}.json")
    return [clip for group in groups for clip in group if clip.score is not None]


def read_relative(folder: Path, split: str) -> list[list[Clip]]:
    """The groups of one split that carry order only, each from the best to the worst; no two are comparable."""
    groups = read_index(folder / INDEX / f"{split}.json")
    return [group for group in groups if group and group[0].score is None]


def check_indexes(folder: Path, resort: bool = False) -> list[Path]:
    """Read every `index/*.json` of a data folder; `resort` mends those whose scores and order disagree.

    Returns the files. Raises DataError naming the first inversion, or what else is wrong with a file.
    """
    paths = sorted((folder / INDEX).glob("*.json"))
    for path in paths:
        sort_index_file(path, resort)
    return paths


def sort_index_file(path: Path, resort: bool = False) -> bool:
    """Check one index; with `resort`, rewrite it in place as valid JSON, each scored group high to low.

    What an entry holds stays, keys that are not ours included, and so does the order of equal scores; a file that
    needs no change is left alone. Returns whether it was rewritten. Raises DataError where the file is no index, and,
    without `resort`, where scores and order disagree.
    """
    read_index(path, resort=resort)
    if not resort:
        return False
    value = json.loads(without_trailing_commas(decode_text(path)))
    groups: list[list[dict[str, Any]]] = [value] if value and isinstance(value[0], dict) else value
    ordered = [sorted(group, key=lambda entry: -float(entry.get("score") or 0.0)) for group in groups]
    if ordered == groups and _is_plain_json(path):
        return False
    try:
        write_json(path, ordered)
    except ValueError as fault:
        raise DataError(f"{path.name} holds a number that JSON has not ({fault}). Take it out.") from fault
    return True


def sort_folder(
    data: Path,
    validated: Path,
    target: Path,
    section: "SplitSection",
    embed: Embed | None = None,
    *,
    resort: bool = False,
) -> Splits:
    """Sort and split the accepted clips of a data folder; splits.json in the folder is remembered and extended.

    Writes index/ and splits.json under `target`, and split_report.json where that is not the data folder itself.
    `embed` gives the clips' voice embeddings; it is called only where clips lack a singer and the configuration wants
    voices estimated. Raises DataError, before anything is written, where an index in the folder has scores and order
    that disagree; `resort` mends it.
    """
    check_indexes(data, resort)
    clips, relative = read_accepted(validated), read_ordered(validated)
    everyone = list({clip.audio_file: clip for group in (*relative, clips) for clip in group}.values())
    remembered = read_splits(data / SPLITS_FILE).groups if (data / SPLITS_FILE).is_file() else None
    if remembered is None and target == data and all((data / INDEX / f"{split}.json").is_file() for split in SPLITS):
        raise DataError(
            f"{data} holds indexes, but no {SPLITS_FILE}, which remembers what was in test. Restore it from the last "
            f"version, or delete {INDEX}/ to split afresh, which voids earlier test results."
        )
    if remembered is None and target != data:
        log.warning("splits: new, and not remembered for later data; `audioscore data sort` remembers them")
    voices = _estimate_voices(everyone, section, embed)
    splits = assign_splits(
        everyone,
        val=section.val,
        test=section.test,
        seed=section.seed,
        remembered=remembered,
        together=read_near_duplicates(validated),
        alike=voices.alike if voices else (),
    )
    splits = _add_to_report(splits, voices, relative)
    for warning in splits.report.warnings:
        log.warning("%s", warning)
    write_sorted(target, clips, splits, relative)
    if target != data:  # it tells of one sorting, and a version of the data shall not change with it
        write_json(target / REPORT, splits.report.to_json())
    return splits


def _estimate_voices(clips: Sequence[Clip], section: "SplitSection", embed: Embed | None) -> PseudoSingers | None:
    if embed is None or not section.pseudo_singers or all(clip.singer_id is not None for clip in clips):
        return None
    return group_voices(clips, embed(clips), min_cosine=section.same_voice_cosine)


def _add_to_report(splits: Splits, voices: PseudoSingers | None, relative: Sequence[Sequence[Clip]]) -> Splits:
    """The report with what the splitting itself does not know: estimated singers, and groups with order only."""
    warnings = [voices.summary()] if voices else []
    if relative:
        parts = [
            [sum(splits.of.get(clip.audio_file) == split for clip in group) for split in SPLITS] for group in relative
        ]
        kept = sum(size for sizes in parts for size in sizes if size > 1)
        alone = sum(size for sizes in parts for size in sizes if size == 1)
        lonely = f" {alone} more are alone in their split, with nothing to compare, and left out." if alone else ""
        warnings.append(
            f"{kept} clips in groups ({len(relative)}) carry order but no scores: they are learned from, and no "
            f"figure counts them.{lonely}"
        )
    report = replace(
        splits.report, warnings=[*splits.report.warnings, *warnings], pseudo_singers=voices.of if voices else {}
    )
    return replace(splits, report=report)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _is_plain_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
