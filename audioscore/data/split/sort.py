"""Sort the clips from best to worst, and write and read the index of each split."""

import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audioscore.data.clips import Clip
from audioscore.data.contradictions import split_notes
from audioscore.data.gate.output import read_accepted, read_near_duplicates, read_ordered, read_stated_splits
from audioscore.data.index import read_index, read_with_notes, without_trailing_commas, write_index
from audioscore.data.spelling import file_key, id_key
from audioscore.data.split.assign import Splits, assign_splits, read_splits, write_splits
from audioscore.data.split.groups import SPLITS
from audioscore.data.split.pseudo_singers import PseudoSingers, group_voices
from audioscore.data.text import decode_text
from audioscore.errors import DataError, shorten
from audioscore.files import write_json, write_text

if TYPE_CHECKING:
    from audioscore.config import SplitSection

log = logging.getLogger(__name__)

INDEX, SPLITS_FILE, REPORT = "index", "splits.json", "split_report.json"

Embed = Callable[[Sequence[Clip]], NDArray[np.floating]]  # clips [N] -> voice embeddings [N, E]


def sort_clips(clips: Iterable[Clip]) -> list[Clip]:
    """Sort clips by score, high to low; clips with equal scores by content hash, then by name.

    The result does not depend on the input order. Raises DataError if a clip has no score.
    """
    listed = list(clips)
    if unscored := [clip.audio_file for clip in listed if clip.score is None]:
        raise DataError(
            f"clips: {len(unscored)} of {len(listed)} have no score and cannot be sorted ({shorten(unscored)}). "
            f"Score them, or remove them."
        )
    return sorted(listed, key=lambda clip: (-(clip.score or 0.0), clip.sha256 or "", clip.audio_file))


def write_sorted(folder: Path, clips: Iterable[Clip], splits: Splits, unscored: Sequence[Sequence[Clip]] = ()) -> None:
    """Write `index/{train,val,test}.json` and `splits.json` under `folder`; files without changes are not rewritten.

    An index contains the scored clips of its split, sorted, and then those of every `unscored` group with at least two
    clips in the split, in the order of the group.

    Raises DataError, before writing, if a clip has no split.
    """
    ordered = sort_clips(clips)
    excluded = {one.audio_file for one in splits.report.left_out}
    names = [clip.audio_file for group in (ordered, *unscored) for clip in group]
    if lost := [name for name in names if name not in splits.of and name not in excluded]:
        raise DataError(f"clips: {len(lost)} of {len(names)} have no split ({shorten(lost)}). Assign splits again.")
    with tempfile.TemporaryDirectory() as scratch:
        new = Path(scratch)
        write_splits(new / SPLITS_FILE, splits)
        for split in SPLITS:
            main, *groups = [
                [clip for clip in group if splits.of.get(clip.audio_file) == split] for group in (ordered, *unscored)
            ]
            write_index(new / INDEX / f"{split}.json", [main, *(group for group in groups if len(group) > 1)])
        # splits.json is first: if writing stops between two files, the next run gives the same splits.
        for name in (SPLITS_FILE, *(f"{INDEX}/{split}.json" for split in SPLITS)):
            text = (new / name).read_text(encoding="utf-8")
            if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode():
                write_text(folder / name, text)


def read_split(folder: Path, split: str) -> list[Clip]:
    """Read the scored clips of one split from its index, best first."""
    groups = read_index(folder / INDEX / f"{split}.json")
    return [clip for group in groups for clip in group if clip.score is not None]


def read_unscored_groups(folder: Path, split: str) -> list[list[Clip]]:
    """Read the groups of one split without scores, each from best to worst; clips of two groups are not comparable."""
    groups = read_index(folder / INDEX / f"{split}.json")
    return [group for group in groups if group and group[0].score is None]


def check_indexes(folder: Path, resort: bool = False) -> list[Path]:
    """Check every `index/*.json` of a data folder, and return the files.

    With `resort`, files whose scores and order disagree are sorted. Raises DataError with the first inversion, or
    another error of a file.
    """
    paths = sorted((folder / INDEX).glob("*.json"))
    for path in paths:
        sort_index_file(path, resort)
    return paths


def index_notes(paths: Sequence[Path]) -> list[str]:
    """Describe contradictions within each index, and singers and recordings that are in several of them."""
    notes: list[str] = []
    found: dict[str, dict[str, set[str]]] = {"singers": defaultdict(set), "recordings": defaultdict(set)}
    for path in paths:
        groups, own = read_with_notes(path)
        notes += own
        for clip in (clip for group in groups for clip in group):
            found["recordings"][file_key(clip.audio_file)].add(path.name)
            if clip.singer_id is not None:
                found["singers"][id_key(clip.singer_id)].add(path.name)
    files = shorten([path.name for path in paths])
    for what, names in found.items():
        if shared := [name for name, files_of in names.items() if len(files_of) > 1]:
            notes.append(f"{files}: {len(shared)} {what} are in several of them ({shorten(shared)}).")
    return notes


def sort_index_file(path: Path, resort: bool = False) -> bool:
    """Check one index; with `resort`, rewrite it in place as valid JSON, each scored group high to low.

    Entries keep all their keys, also unknown ones, and equal scores keep their order. Returns whether the file was
    rewritten, which is only done if it changes. Raises DataError if the file is not an index or, without `resort`, if
    scores and order disagree.
    """
    read_index(path, resort=resort)
    if not resort:
        return False
    value = json.loads(without_trailing_commas(decode_text(path.read_bytes(), path.name)))
    groups: list[list[dict[str, Any]]] = [value] if value and isinstance(value[0], dict) else value
    ordered = [sorted(group, key=lambda entry: -float(entry.get("score") or 0.0)) for group in groups]
    if ordered == groups and _is_plain_json(path):
        return False
    try:
        write_json(path, ordered)
    except ValueError as error:
        raise DataError(f"{path.name}: contains a number that is not valid JSON ({error}). Remove it.") from error
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
    """Sort and split the accepted clips of a data folder; clips in its splits.json keep their splits.

    Writes index/ and splits.json under `target`, and split_report.json if that is not the data folder itself.

    Args:
        validated: Folder with the output of the gate.
        embed: Computes the voice embeddings of clips; called only if clips have no singer and
            `split.pseudo_singers` is set.
        resort: Sort the indexes of the folder whose scores and order disagree.

    Raises:
        DataError: Before writing: an index has scores and order that disagree, or splits.json is missing.
    """
    check_indexes(data, resort)
    clips, unscored = read_accepted(validated), read_ordered(validated)
    all_clips = list({clip.audio_file: clip for group in (*unscored, clips) for clip in group}.values())
    before = read_splits(data / SPLITS_FILE) if (data / SPLITS_FILE).is_file() else None
    previous = None if before is None else before.groups
    if previous is None and target == data and all((data / INDEX / f"{split}.json").is_file() for split in SPLITS):
        raise DataError(
            f"{data}: has indexes, but no {SPLITS_FILE}, so the previous test clips are unknown. Restore it from the "
            f"last version, or delete {INDEX}/ to create new splits, which invalidates earlier test results."
        )
    if previous is None and target != data:
        log.warning("splits: new, and not stored for later data; `audioscore data sort` stores them")
    voices = _estimate_voices(all_clips, section, embed)
    splits = assign_splits(
        all_clips,
        val=section.val,
        test=section.test,
        seed=section.seed,
        previous=previous,
        joined=None if before is None else before.joined,
        same_recording=read_near_duplicates(validated),
        same_voice=voices.same_voice if voices else (),
    )
    splits = _add_to_report(splits, voices, unscored)
    splits.report.warnings.extend(split_notes(read_stated_splits(validated), splits.of))
    for warning in splits.report.warnings:
        log.warning("%s", warning)
    write_sorted(target, clips, splits, unscored)
    if target != data:  # the report describes one run, and must not change a version of the data
        write_json(target / REPORT, splits.report.to_json())
    return splits


def _estimate_voices(clips: Sequence[Clip], section: "SplitSection", embed: Embed | None) -> PseudoSingers | None:
    if embed is None or not section.pseudo_singers or all(clip.singer_id is not None for clip in clips):
        return None
    return group_voices(clips, embed(clips), min_cosine=section.same_voice_cosine)


def _add_to_report(splits: Splits, voices: PseudoSingers | None, unscored: Sequence[Sequence[Clip]]) -> Splits:
    """Add estimated singers and unscored groups to the report."""
    warnings = [voices.summary()] if voices else []
    if unscored:
        parts = [
            [sum(splits.of.get(clip.audio_file) == split for clip in group) for split in SPLITS] for group in unscored
        ]
        kept = sum(size for sizes in parts for size in sizes if size > 1)
        alone = sum(size for sizes in parts for size in sizes if size == 1)
        excluded = f" {alone} more are excluded, since no other clip of their group is in the split." if alone else ""
        warnings.append(
            f"{kept} clips in groups ({len(unscored)}) have an order but no scores: they are used only for training."
            f"{excluded}"
        )
    report = replace(
        splits.report, warnings=[*splits.report.warnings, *warnings], pseudo_singers=voices.of if voices else {}
    )
    return replace(splits, report=report)


def _is_plain_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
