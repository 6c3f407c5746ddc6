"""Property tests: tables, indexes and state files read back as they were written, and as plain JSON."""

import csv
import json
import random
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import (
    LabelsFile,
    Withdrawn,
    read_labels_file,
    read_withdrawn,
    write_labels_file,
    write_order,
    write_withdrawn,
)
from audioscore.data.index import read_index, without_trailing_commas, write_index
from audioscore.data.labels import read_labels
from audioscore.data.spelling import Spellings, clean_id
from audioscore.data.split.sort import sort_index_file
from audioscore.errors import DataError

few_examples = settings(max_examples=20, deadline=None)

# Characters of names: quotes, commas, brackets, Chinese, emoji, direction marks; no line ends.
letters = st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\"',;[]{}\\/ \N{MICROPHONE}录音0")
words = st.text(letters, min_size=1, max_size=10).map(str.strip).filter(bool)
ids = words.filter(lambda word: is_id(word))
scores = st.floats(0, 100) | st.integers(0, 100).map(float)
dice = st.randoms(use_true_random=True)  # draws fast; its choices are not shrunk
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)


ratings = st.lists(st.none() | scores, max_size=3).filter(lambda given: not given or given[-1] is not None)


@st.composite
def scored_clips(draw: st.DrawFn) -> list[Clip]:
    """Clips of a table: all fields that a table has, with unique file names."""
    names = draw(st.lists(words, min_size=1, max_size=6))
    return [
        Clip(
            f"audio/{number}-{name.replace('/', '_')}x.wav",
            draw(scores),
            singer_id=draw(ids),  # without one, an a-cappella recording's singer is its artist
            song_id=draw(st.none() | ids),
            source=draw(st.sampled_from([None, "ktv", "acapella"])),
            artist=draw(st.none() | ids),
            raters=tuple(draw(ratings)),
            origin=draw(st.none() | words.map(lambda word: f"https://host/{word}")),
            sha256=draw(st.none() | hashes),
        )
        for number, name in enumerate(names)
    ]


@st.composite
def groups_of_clips(draw: st.DrawFn) -> list[list[Clip]]:
    """Groups of an index: some sorted high to low, some without scores."""
    groups: list[list[Clip]] = []
    for _ in range(draw(st.integers(0, 3))):
        clips = draw(scored_clips())
        measured = [replace(clip, row=7, seconds=draw(st.none() | st.floats(0, 1e6)), bytes=12) for clip in clips]
        if draw(st.booleans()):
            groups.append(sorted(measured, key=lambda clip: -(clip.score or 0.0)))
        else:
            groups.append([replace(clip, score=None) for clip in measured])
    return groups


def is_id(word: str) -> bool:
    try:
        return bool(clean_id(word))
    except DataError:
        return False


def as_read(groups: list[list[Clip]]) -> list[list[Clip]]:
    """The clips with one spelling for each id."""
    spellings = {name: Spellings(name) for name in ("singer_id", "song_id", "artist")}

    def one(clip: Clip) -> Clip:
        given = {name: vars(clip)[name] for name in spellings if vars(clip)[name]}
        return replace(clip, **{name: spellings[name](text) for name, text in given.items()})

    return [[one(clip) for clip in group] for group in groups]


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def strictly(path: Path) -> Any:
    """The value by strict JSON, without NaN and infinity."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    with path.open(encoding="utf-8") as handle:
        return json.load(handle, parse_constant=refuse)


def with_trailing_commas(dice: random.Random, value: object) -> str:
    """The value as JSON, with spaces and commas before some closing brackets."""

    def closing(end: re.Match[str]) -> str:
        return dice.choice(["", ",", ", ", ",\n\t"]) + end[0]

    text = json.dumps(value, indent=dice.randrange(3), ensure_ascii=dice.random() < 0.5)
    return re.sub(r"\n *[\]}]", closing, text)  # inside a string, a line end is escaped


@few_examples
@given(scored_clips())
def test_a_new_table_reads_back_as_filled(clips: list[Clip]) -> None:
    table = LabelsFile()
    for clip in clips:
        table.append(clip)
    with folder() as data:
        assert write_labels_file(data, table)
        assert not write_labels_file(data, read_labels_file(data))
        read = read_labels(data / "labels.csv")
    assert read.row_errors == []
    texts = ("singer_id", "song_id", "artist", "origin")
    lines = [{name: " ".join(vars(clip)[name].split()) for name in texts if vars(clip)[name]} for clip in clips]
    pairs = zip(clips, lines, strict=True)
    assert [read.clips] == as_read([[replace(clip, row=row, **inner) for row, (clip, inner) in enumerate(pairs, 1)]])


@few_examples
@given(scored_clips(), st.data())
def test_an_edit_keeps_unknown_columns(clips: list[Clip], data: st.DataObject) -> None:
    unknown = ["备注", "", "note", "score (old)"]
    cells = [[data.draw(st.just("") | words) for _ in unknown] for _ in clips]
    changed = data.draw(st.integers(1, len(clips)))
    with folder() as home:
        with (home / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
            rows = [[*before[:2], f"{number}.wav", "80", *before[2:]] for number, before in enumerate(cells)]
            csv.writer(handle).writerows([[*unknown[:2], "录音", "分数", *unknown[2:]], *rows])
        table = read_labels_file(home)
        table.update(changed, {"score": "81", "singer_id": "001"})
        table.append(Clip("new.wav", 70.0))
        write_labels_file(home, table)
        with (home / "labels.csv").open(encoding="utf-8", newline="") as handle:
            header, *after = csv.reader(handle)
        read = read_labels(home / "labels.csv")
    assert header == [*unknown[:2], "录音", "分数", *unknown[2:], "singer_id"]
    assert [[*row[:2], *row[4:6]] for row in after[:-1]] == cells
    assert after[-1] == ["", "", "new.wav", "70", "", "", ""]
    assert [clip.score for clip in read.clips] == [
        81.0 if row == changed else 80.0 for row in range(1, len(clips) + 1)
    ] + [70.0]
    assert [clip.singer_id for clip in read.clips].index("001") == changed - 1


@few_examples
@given(groups_of_clips())
def test_an_index_reads_back_as_written_and_as_strict_json(groups: list[list[Clip]]) -> None:
    with folder() as data:
        write_index(data / "train.json", groups)
        assert read_index(data / "train.json") == as_read(groups)
        plain = strictly(data / "train.json")
    assert [[(entry["audio_file"], entry.get("score")) for entry in group] for group in plain] == [
        [(clip.audio_file, clip.score) for clip in group] for group in groups
    ]


@few_examples
@given(groups_of_clips(), st.data())
def test_trailing_commas_are_ignored(groups: list[list[Clip]], data: st.DataObject) -> None:
    with folder() as home:
        write_index(home / "train.json", groups)
        value = strictly(home / "train.json")
        text = with_trailing_commas(data.draw(dice), value)
        assert json.loads(without_trailing_commas(text)) == value
        (home / "train.json").write_text(text, encoding=data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))
        assert read_index(home / "train.json") == as_read(groups)


@few_examples
@given(groups_of_clips(), st.data())
def test_a_resorted_index_is_strict_json_with_all_keys(groups: list[list[Clip]], data: st.DataObject) -> None:
    with folder() as home:
        path = home / "train.json"
        write_index(path, groups)
        value = [
            data.draw(st.permutations([entry | {"note": data.draw(words)} for entry in group]))
            if group and "score" in group[0]
            else group
            for group in strictly(path)
        ]
        path.write_text(with_trailing_commas(data.draw(dice), value), encoding="utf-8")
        sort_index_file(path, resort=True)
        found = strictly(path)
        assert not sort_index_file(path, resort=True)
        assert not sort_index_file(path)
    for before, after in zip(value, found, strict=True):
        if before and "score" in before[0]:
            assert after == sorted(before, key=lambda entry: -entry["score"])  # stable: equal scores stay in order
        else:
            assert after == before


@few_examples
@given(groups_of_clips())
def test_order_json_reads_back_as_written(groups: list[list[Clip]]) -> None:
    groups = as_read(groups)  # as groups are that were read from a delivery
    expected = [[replace(clip, score=None, row=None) for clip in group] for group in groups if group]
    with folder() as data:
        write_order(data, groups)
        if expected:
            assert read_index(data / "order.json") == expected
            first = (data / "order.json").stat().st_ino
            write_order(data, groups)
            assert (data / "order.json").stat().st_ino == first  # without changes, the file is not rewritten
            assert len(strictly(data / "order.json")) == len(expected)
        write_order(data, [])
        assert not expected or read_index(data / "order.json") == []  # a file of the recorded version is not removed


withdrawals = st.builds(
    Withdrawn,
    st.dates().map(str),
    st.none() | st.text("0123456789abcdef", min_size=32, max_size=32),
    st.none() | st.integers(0),
)


@few_examples
@given(st.dictionaries(hashes, withdrawals, max_size=5))
def test_withdrawn_json_reads_back_as_written(withdrawn: dict[str, Withdrawn]) -> None:
    with folder() as data:
        write_withdrawn(data, withdrawn)
        assert read_withdrawn(data) == withdrawn
        if withdrawn:
            assert list(strictly(data / "withdrawn.json")) == sorted(withdrawn)
        else:
            assert list(data.iterdir()) == []
