"""Group the clips that must be in the same split, by singer and recording, and exclude those that link two splits."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from audioscore.data.clips import Clip
from audioscore.data.spelling import id_key
from audioscore.data.split.report import ExcludedClip
from audioscore.errors import DataError, shorten

SPLITS = ("train", "val", "test")


@dataclass
class SingerClips:
    """The clips of one singer, or of one recording without a singer, and their split, if it is fixed."""

    key: str
    clips: list[Clip] = field(default_factory=list)
    split: str | None = None


@dataclass(frozen=True)
class Group:
    """Singers that must be in the same split, and their clips without the excluded ones."""

    singers: list[SingerClips]
    clips: list[Clip]
    split: str | None

    @property
    def name(self) -> str:
        """The unique name, which does not depend on the order of the clips."""
        return min(singer.key for singer in self.singers)


class Grouping(NamedTuple):
    """All singers, their groups, and the excluded clips by audio_file."""

    singers: list[SingerClips]
    groups: list[Group]
    left_out: dict[str, ExcludedClip]


class _Link(NamedTuple):
    """Clips that must be in the same split, and their relation."""

    clips: list[Clip]
    relation: str


def group_clips(clips: Iterable[Clip], same_recording: Sequence[Collection[str]], known: Mapping[str, str]) -> Grouping:
    """Group clips by singer and by recording, each group with its split in `known` (splits.json).

    A group with known clips in several splits is divided by split, and the clips that link the parts are excluded: the
    clip whose singer is in another split, else the clip in the earlier of train, val and test. The later splits are
    thus complete, since they are used for evaluation.

    Args:
        same_recording: Sets of near-duplicates, by sha256 or audio_file.
    """
    ordered = sorted(clips, key=lambda clip: (clip.audio_file, clip.sha256 or "", clip.singer_id or ""))
    singers, left_out = _singers_with_splits(ordered, known)
    groups = _join_linked(singers, list(_links(ordered, same_recording)), left_out)
    return Grouping(singers, groups, left_out)


def group_key(clip: Clip) -> str:
    """Return the key of a clip in splits.json: its singer, else its content, else its file.

    >>> group_key(Clip("a.m4a", singer_id="A01")), group_key(Clip("a.m4a", sha256="5fd2")), group_key(Clip("a.m4a"))
    ('singer:a01', 'sha256:5fd2', 'file:a.m4a')
    """
    return content_key(clip) if clip.singer_id is None else f"singer:{id_key(clip.singer_id)}"


def with_equal_ids(known: Mapping[str, str]) -> dict[str, str]:
    """Return the groups of a splits.json, and each singer's split under its `group_key` of today.

    Earlier versions compared fewer spellings. A singer whose spellings are in several splits has no split by its key:
    its recordings have theirs.

    >>> with_equal_ids({"singer:007": "val", "singer:02": "val", "singer:2.0": "test"})
    {'singer:7': 'val', 'singer:007': 'val', 'singer:02': 'val', 'singer:2.0': 'test'}
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for key, split in known.items():
        kind, _, name = key.partition(":")
        if kind == "singer":
            splits[f"singer:{id_key(name)}"].add(split)
    return {key: min(found) for key, found in splits.items() if len(found) == 1} | dict(known)


def content_key(clip: Clip) -> str:
    """Return the key of a recording in splits.json, independent of its singer."""
    return f"sha256:{clip.sha256}" if clip.sha256 else f"file:{clip.audio_file}"


def previous_split(clip: Clip, known: Mapping[str, str]) -> str | None:
    """Return the split of a recording in splits.json: by its content, else by its name, from before it was decoded."""
    return known.get(content_key(clip)) or known.get(f"file:{clip.audio_file}")


def _singers_with_splits(
    clips: Sequence[Clip], known: Mapping[str, str]
) -> tuple[list[SingerClips], dict[str, ExcludedClip]]:
    """Every singer with its known split, else the split of most of its clips; and the clips in other splits."""
    singers: dict[str, SingerClips] = {}
    # The singer of a recording also sings its copies, including those without a singer.
    singer_of = {content_key(clip): group_key(clip) for clip in reversed(clips) if clip.singer_id is not None}
    for clip in clips:
        key = group_key(clip) if clip.singer_id is not None else singer_of.get(content_key(clip), group_key(clip))
        singers.setdefault(key, SingerClips(key)).clips.append(clip)
    left_out: dict[str, ExcludedClip] = {}
    for singer in singers.values():
        own = [previous_split(clip, known) for clip in singer.clips]
        votes = Counter(split for split in own if split is not None)
        most = max(votes, key=lambda split: (votes[split], SPLITS.index(split)), default=None)
        singer.split = known.get(singer.key, most)
        for clip, split in zip(singer.clips, own, strict=True):
            if split is not None and split != singer.split:
                other = "a copy of it" if clip.singer_id is None else f"its singer {clip.singer_id}"
                reason = f"it was there in an earlier version, but {other} is in {singer.split}"
                left_out[clip.audio_file] = ExcludedClip(clip.audio_file, split, reason)
    return sorted(singers.values(), key=lambda singer: singer.key), left_out


def _links(clips: Sequence[Clip], same_recording: Sequence[Collection[str]]) -> Iterator[_Link]:
    by_name: dict[str, list[Clip]] = defaultdict(list)
    by_content: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_name[clip.audio_file].append(clip)
        if clip.sha256:
            by_content[clip.sha256].append(clip)
    for found in (*by_content.values(), *by_name.values()):
        if len(found) > 1:
            yield _Link(found, "identical to")
    for item in sorted(same_recording, key=sorted):
        if lost := sorted(name for name in item if name not in by_name and name not in by_content):
            raise DataError(f"near-duplicates: {len(lost)} of {len(item)} unknown ({shorten(lost)}). Validate again.")
        yield _Link([(by_content.get(name) or by_name[name])[0] for name in sorted(item)], "near-identical to")


def _join_linked(
    singers: Sequence[SingerClips], links: Sequence[_Link], left_out: dict[str, ExcludedClip]
) -> list[Group]:
    """Groups of linked singers: one group per split, if they have several; adds the excluded clips to `left_out`."""
    row = {id(clip): index for index, singer in enumerate(singers) for clip in singer.clips}
    binding = [_Link([clip for clip in link.clips if clip.audio_file not in left_out], link.relation) for link in links]
    sets = _connected(len(singers), [[row[id(clip)] for clip in link.clips] for link in binding])
    for joined in sets:
        found = {singers[index].split for index in joined} - {None}
        for index in joined:
            # New singers get the earliest split, so that their linked clips, not those in test, are excluded.
            singers[index].split = singers[index].split or next((split for split in SPLITS if split in found), None)
    splits = {id(clip): singer.split for singer in singers for clip in singer.clips}
    _exclude_links(binding, splits, left_out)
    groups = []
    for joined in sets:
        for split in sorted({singers[index].split for index in joined}, key=str):
            members = [singers[index] for index in joined if singers[index].split == split]
            kept = [clip for singer in members for clip in singer.clips if clip.audio_file not in left_out]
            groups += [Group(members, sorted(kept, key=lambda clip: clip.audio_file), split)] if kept else []
    return sorted(groups, key=lambda group: group.name)


def _exclude_links(links: Sequence[_Link], splits: Mapping[int, str | None], left_out: dict[str, ExcludedClip]) -> None:
    """Exclude, from every link between splits, the clips in the earlier ones.

    Test is processed first, then val. A split loses no clip in its own turn, so the order of the links does not matter.
    """
    for split in reversed(SPLITS[1:]):
        for link in links:
            present = [clip for clip in link.clips if clip.audio_file not in left_out]
            staying = [clip.audio_file for clip in present if splits[id(clip)] == split]
            for clip in present if staying else []:
                if (other := splits[id(clip)]) and other != split:
                    reason = f"{link.relation} {staying[0]} in {split}"
                    left_out[clip.audio_file] = ExcludedClip(clip.audio_file, other, reason)


def join_same_voice(groups: Sequence[Group], same_voice: Sequence[Collection[str]]) -> tuple[list[Group], int]:
    """Join new groups by estimated voice; return the groups, and the number of voices with several known splits.

    A wrong estimate must not move known clips, so only new groups are joined. They get the split with most of the known
    clips of their voice. `same_voice` contains sets of clips by audio_file.
    """
    row = {clip.audio_file: index for index, group in enumerate(groups) for clip in group.clips}
    sets = _connected(len(groups), [[row[name] for name in sorted(item) if name in row] for item in same_voice])
    result, apart = [], 0
    for joined in sets:
        members = [groups[index] for index in joined]
        sizes: Counter[str] = Counter()
        for group in members:
            sizes[group.split or ""] += len(group.clips)
        found = [split for split in SPLITS if sizes[split]]
        apart += len(found) > 1
        result += [group for group in members if group.split is not None]
        if new := [group for group in members if group.split is None]:
            split = max(found, key=lambda split: sizes[split], default=None)
            kept = sorted((clip for group in new for clip in group.clips), key=lambda clip: clip.audio_file)
            result.append(Group([singer for group in new for singer in group.singers], kept, split))
    return sorted(result, key=lambda group: group.name), apart


def joined_singers(clips: Sequence[Clip], links: Iterable[Collection[str]], known: Mapping[str, str]) -> dict[str, str]:
    """Return the name of the group of each recording that is joined to another singer or recording, by content key.

    Unlike the groups of a split, these groups ignore the splits: clips of one group belong into one fold.

    Args:
        links: Sets of clips by sha256 or audio_file: near-duplicates, and recordings that probably share a singer.
        known: What was joined before, by content key.
    """
    names = [group_key(clip) for clip in clips]
    rows: dict[str, list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        for key in (names[row], content_key(clip), f"known:{known.get(content_key(clip), row)}"):
            rows[key].append(row)
    by_name = {key: row for row, clip in enumerate(clips) for key in (clip.audio_file, clip.sha256 or clip.audio_file)}
    sets = _connected(len(clips), [*rows.values(), *([by_name[key] for key in one if key in by_name] for one in links)])
    found: dict[str, str] = {}
    for members in sets:
        if len({names[row] for row in members}) > 1:
            first = min(known.get(content_key(clips[row]), names[row]) for row in members)
            found |= {content_key(clips[row]): first for row in members}
    return dict(sorted(found.items()))


def _connected(count: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """The connected components of the indices 0 to count - 1.

    >>> _connected(5, [[0, 3], [3, 4]])
    [[0, 3, 4], [1], [2]]
    """
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    for first, *others in filter(None, links):
        for other in others:
            parent[root(other)] = root(first)
    sets: dict[int, list[int]] = defaultdict(list)
    for item in range(count):
        sets[root(item)].append(item)
    return sorted(sets.values())


def empty_splits(groups: Sequence[Group]) -> list[str]:
    """Return the splits without a group of a known split."""
    return [split for split in SPLITS if all(group.split != split for group in groups)]


def can_fill(groups: Sequence[Group]) -> bool:
    """Return whether there are enough new groups for the empty splits."""
    return sum(group.split is None for group in groups) >= len(empty_splits(groups))
