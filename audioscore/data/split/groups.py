"""Which clips must share a split: one singer's, one recording's; and what gives way where memory says otherwise."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from audioscore.data.clips import Clip
from audioscore.data.split.pseudo_singers import singer_name
from audioscore.data.split.report import LeftOut
from audioscore.errors import DataError, shorten

SPLITS = ("train", "val", "test")


@dataclass
class Singer:
    """The clips of one singer, or one recording whose singer is unknown, and the split they must be in, if known."""

    key: str
    clips: list[Clip] = field(default_factory=list)
    split: str | None = None


@dataclass(frozen=True)
class Group:
    """Singers that must stay together, and those of their clips that are not left out."""

    singers: list[Singer]
    clips: list[Clip]
    split: str | None

    @property
    def name(self) -> str:
        """Tells groups apart, in whatever order their clips come."""
        return min(singer.key for singer in self.singers)


class Grouping(NamedTuple):
    """All singers, their groups, and what is left out, by audio_file."""

    singers: list[Singer]
    groups: list[Group]
    left_out: dict[str, LeftOut]


class _Link(NamedTuple):
    """Recordings that no two splits may share, and what they are to one another."""

    clips: list[Clip]
    relation: str


def group_clips(clips: Iterable[Clip], together: Sequence[Collection[str]], known: Mapping[str, str]) -> Grouping:
    """Group clips by singer and by recording, each group with the split that `known` (splits.json) has for it.

    `together` names clips, by sha256 or audio_file, that are one recording. Where it or a singer joins what is known
    in several splits, the groups stay where they are, and the clips that join them are left out: those whose singer
    is known elsewhere, and else the one in the earlier of train, val and test.
    """
    ordered = sorted(clips, key=lambda clip: (clip.audio_file, clip.sha256 or "", clip.singer_id or ""))
    singers, left_out = _settle_singers(ordered, known)
    groups = _join_linked(singers, list(_links(ordered, together)), left_out)
    return Grouping(singers, groups, left_out)


def group_key(clip: Clip) -> str:
    """The name under which splits.json remembers a clip: its singer, else its content, else its file.

    >>> group_key(Clip("a.m4a", singer_id="A01")), group_key(Clip("a.m4a", sha256="5fd2")), group_key(Clip("a.m4a"))
    ('singer:a01', 'sha256:5fd2', 'file:a.m4a')
    """
    return content_key(clip) if clip.singer_id is None else f"singer:{singer_name(clip.singer_id)}"


def content_key(clip: Clip) -> str:
    """The name under which splits.json remembers a recording, whoever sings it."""
    return f"sha256:{clip.sha256}" if clip.sha256 else f"file:{clip.audio_file}"


def remembered_split(clip: Clip, known: Mapping[str, str]) -> str | None:
    """Where a recording was before: by its content, or by its name from a time when nobody had heard it."""
    return known.get(content_key(clip)) or known.get(f"file:{clip.audio_file}")


def _settle_singers(clips: Sequence[Clip], known: Mapping[str, str]) -> tuple[list[Singer], dict[str, LeftOut]]:
    """Every singer with the split that is remembered for it, or else for most of its clips; and who contradicts it."""
    singers: dict[str, Singer] = {}
    # Who sings a recording sings its copies too, those without a singer included.
    sung_by = {content_key(clip): group_key(clip) for clip in reversed(clips) if clip.singer_id is not None}
    for clip in clips:
        key = group_key(clip) if clip.singer_id is not None else sung_by.get(content_key(clip), group_key(clip))
        singers.setdefault(key, Singer(key)).clips.append(clip)
    left_out: dict[str, LeftOut] = {}
    for singer in singers.values():
        own = [remembered_split(clip, known) for clip in singer.clips]
        votes = Counter(split for split in own if split is not None)
        most = max(votes, key=lambda split: (votes[split], SPLITS.index(split)), default=None)
        singer.split = known.get(singer.key, most)
        for clip, split in zip(singer.clips, own, strict=True):
            if split is not None and split != singer.split:
                who = "a copy of it" if clip.singer_id is None else f"its singer {clip.singer_id}"
                reason = f"it was there before, and {who} is in {singer.split}"
                left_out[clip.audio_file] = LeftOut(clip.audio_file, split, reason)
    return sorted(singers.values(), key=lambda singer: singer.key), left_out


def _links(clips: Sequence[Clip], together: Sequence[Collection[str]]) -> Iterator[_Link]:
    by_name: dict[str, list[Clip]] = defaultdict(list)
    by_content: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_name[clip.audio_file].append(clip)
        if clip.sha256:
            by_content[clip.sha256].append(clip)
    for found in (*by_content.values(), *by_name.values()):
        if len(found) > 1:
            yield _Link(found, "identical to")
    for item in sorted(together, key=sorted):
        if lost := sorted(name for name in item if name not in by_name and name not in by_content):
            raise DataError(f"{len(lost)} of {len(item)} clips to keep together are not in the data ({shorten(lost)}).")
        yield _Link([(by_content.get(name) or by_name[name])[0] for name in sorted(item)], "near-identical to")


def _join_linked(singers: Sequence[Singer], links: Sequence[_Link], left_out: dict[str, LeftOut]) -> list[Group]:
    """Groups of linked singers; where they are remembered in several splits, one group a split, and clips left out."""
    place = {id(clip): index for index, singer in enumerate(singers) for clip in singer.clips}
    binding = [_Link([clip for clip in link.clips if clip.audio_file not in left_out], link.relation) for link in links]
    sets = _connected(len(singers), [[place[id(clip)] for clip in link.clips] for link in binding])
    for joined in sets:
        found = {singers[index].split for index in joined} - {None}
        for index in joined:
            # New singers go where their linked clips give way: what is in test already is not disturbed.
            singers[index].split = singers[index].split or next((split for split in SPLITS if split in found), None)
    splits = {id(clip): singer.split for singer in singers for clip in singer.clips}
    _cut(binding, splits, left_out)
    groups = []
    for joined in sets:
        for split in sorted({singers[index].split for index in joined}, key=str):
            members = [singers[index] for index in joined if singers[index].split == split]
            kept = [clip for singer in members for clip in singer.clips if clip.audio_file not in left_out]
            groups += [Group(members, sorted(kept, key=lambda clip: clip.audio_file), split)] if kept else []
    return sorted(groups, key=lambda group: group.name)


def _cut(links: Sequence[_Link], splits: Mapping[int, str | None], left_out: dict[str, LeftOut]) -> None:
    """Leave out, of every link between splits, the clips in the earlier ones.

    Test first, then val: in its turn a split loses none of its clips, so that the order of the links does not matter.
    """
    for split in reversed(SPLITS[1:]):
        for link in links:
            present = [clip for clip in link.clips if clip.audio_file not in left_out]
            staying = [clip.audio_file for clip in present if splits[id(clip)] == split]
            for clip in present if staying else []:
                if (place := splits[id(clip)]) and place != split:
                    reason = f"{link.relation} {staying[0]} in {split}"
                    left_out[clip.audio_file] = LeftOut(clip.audio_file, place, reason)


def join_alike(groups: Sequence[Group], alike: Sequence[Collection[str]]) -> tuple[list[Group], int]:
    """Groups joined by estimates as far as nothing is remembered against it, and how many voices are remembered apart.

    `alike` names clips by audio_file. New groups follow the most of the clips that their voice has in remembered ones.
    """
    place = {clip.audio_file: index for index, group in enumerate(groups) for clip in group.clips}
    sets = _connected(len(groups), [[place[name] for name in sorted(item) if name in place] for item in alike])
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


def _connected(count: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """The sets that links connect among 0 to count - 1.

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
    """The splits that no group is remembered in."""
    return [split for split in SPLITS if all(group.split != split for group in groups)]


def can_fill(groups: Sequence[Group]) -> bool:
    """Whether there are new groups enough for the splits that have none."""
    return sum(group.split is None for group in groups) >= len(empty_splits(groups))
