"""Whatever is wrong with a delivery ends in one sentence a row, the right exit code, and nothing lost."""

import csv
import errno
import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile
from typer.testing import CliRunner

from audioscore.cli import app
from audioscore.data.audio import encode
from audioscore.data.labels import read_labels

RATE = 24_000
ALL_MAY_FAIL = "validation: {max_rejected_share: 0.9}\nencoders: {muq: {source: m}, campplus: {source: c}}\n"
CODECS = {"m4a": "aac", "mp3": "libmp3lame", "flac": "flac", "wav": "pcm_s16le"}

Run = Callable[..., tuple[int, str, str]]

# What is delivered, in the order of its rows, and what is said of it ({root}: the folder of the delivery).
BAD = {
    "empty.m4a": r"the file is empty \(0 bytes\)\. Export it again",
    "cut.wav": r"ends 57618 bytes before the end that it declares\. Transfer it again",
    "cut.flac": r"cannot be decoded \(.+\)\. Export it again, as m4a, mp3, flac or wav",
    "cut.m4a": r"cannot be decoded \(.+\)\. Export it again, as m4a, mp3, flac or wav",
    "cut.mp3": r"ends after 1\.\d\d s of the 3\.00 s it declares\. Transfer it again",
    "text.m4a": r"cannot be decoded \(Invalid data found when processing input\)\. Export it again",
    "page.m4a": r"cannot be decoded \(Invalid data found when processing input\)\. Export it again",
    "short.wav": r"too short: 0\.05 s, and at least 1 s are needed; record more of it",
    "silence.wav": r"silent: its level is -120\.0 dBFS, below -60; check the microphone",
    "nan.wav": r"holds samples that are not numbers \(NaN or infinite\)\. Export it again",
    "inf.wav": r"holds samples that are not numbers \(NaN or infinite\)\. Export it again",
    "inverted.wav": r"phase-cancelled: its channels averaged are -120\.0 dB of what they are alone",
    "long.wav": r"is 3700 s long; at most 3600 s are taken\. Cut it",
    "loop.wav": r"its links go round in a circle\. Replace them by the recording",
    "one/x.wav": r"its links go round in a circle\. Replace them by the recording",
    "dead.wav": r"{root}/nowhere\.wav is not there, though a link leads to it\. Mend the link",
    "pipe.wav": r"is a pipe, not a recording\. Name a file",
    "zero.wav": r"is a link out of {root}, to /dev/zero\. Put the recording there",
    "/dev/zero": r"is a device, not a recording\. Name a file",
    "../secret.wav": r"leaves {root} by `\.\.`\. Name a recording inside it, or another --audio",
    "sub/../../secret.wav": r"leaves {root} by `\.\.`\. Name a recording inside it, or another --audio",
    "out.wav": r"is a link out of {root}, to {root}/\.\./secret\.wav\. Put the recording there",
    "gone.wav": r"no such file under {root}\. Check the name, or name the recordings' folder by --audio",
    "good.wav/x.wav": r"no such file under {root}\. Check the name",
    "locked.wav": r"may not be read \(permission denied\)\. Change its permissions",
    "folder.wav": r"is a folder, not a recording\. Name a file",
    "x" * 300 + ".wav": r"cannot be looked up \(File name too long\)\. Check the name",
    "file:///etc/passwd": r"file:// is not read\. Give a path, or an http, https or s3 link",
}
# Names that are unusual and right, and what becomes of them.
GOOD = {
    "with space.wav": "audio/with_space.wav",
    "quo\"te's.wav": "audio/quo_te's.wav",
    "录音 甜蜜蜜.wav": "audio/录音_甜蜜蜜.wav",
    "\N{MICROPHONE}.wav": "audio/\N{MICROPHONE}.wav",
    "a,b;c.wav": "audio/a,b;c.wav",
    "-rf.wav": "audio/rf.wav",
    "per%20cent#1?.wav": "audio/per%20cent#1_.wav",
}


def voice(pitch: float = 220.0, seconds: float = 1.2) -> NDArray[np.float32]:
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * (pitch * time + 0.6 * np.sin(2 * np.pi * 5.5 * time))
    return np.asarray(0.1 * sum(np.sin(k * phase) / k for k in range(1, 15)), dtype=np.float32)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every recording of BAD and GOOD, and one that is out of its reach."""
    root = tmp_path_factory.mktemp("delivered") / "in"
    for number, name in enumerate(["good.wav", "locked.wav", "../secret.wav", *GOOD]):
        encode(voice(150 + 9 * number), RATE, root / name, codec="pcm_s16le")
    for suffix, codec in CODECS.items():
        whole = root / f"cut.{suffix}"
        encode(voice(seconds=3.0), RATE, whole, codec=codec)
        whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    (root / "empty.m4a").touch()
    (root / "text.m4a").write_text("audio_file,score\n" * 30)
    (root / "page.m4a").write_text("<!doctype html><html>" + "Please log in. " * 30)
    for name, wave in {
        "short.wav": voice(seconds=0.05),
        "silence.wav": np.zeros(2 * RATE, dtype=np.float32),
        "nan.wav": np.append(voice(), np.float32(np.nan)),
        "inf.wav": np.append(voice(), np.float32(-np.inf)),
        "inverted.wav": np.stack([voice(), -voice()], axis=1),
    }.items():
        wavfile.write(root / name, RATE, wave)
    wavfile.write(root / "long.wav", 8_000, np.zeros(0, dtype=np.uint8))
    grow_wav(root / "long.wav", 3_700 * 8_000)
    for name, target in {"loop.wav": "loop.wav", "one": "two", "two": "one", "dead.wav": "nowhere.wav"}.items():
        (root / name).symlink_to(target)
    (root / "zero.wav").symlink_to("/dev/zero")
    (root / "out.wav").symlink_to("../secret.wav")
    os.mkfifo(root / "pipe.wav")
    (root / "folder.wav").mkdir()
    (root / "locked.wav").chmod(0)
    return root


def grow_wav(path: Path, size: int) -> None:
    """Give a wav without samples some: zeros that take no place on the disk."""
    head = bytearray(path.read_bytes())
    head[4:8] = (len(head) - 8 + size).to_bytes(4, "little")
    head[-4:] = size.to_bytes(4, "little")
    path.write_bytes(head)
    os.truncate(path, len(head) + size)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line's own entry, `audioscore data ARGUMENTS`: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    # To root, who may read everything, this file is locked as well.
    able = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and able(path, mode))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["audioscore", "data", *map(str, arguments)])
        code: object = 0
        try:
            app.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert isinstance(code, int)
        return code, out, err

    return call


def table(path: Path, rows: Sequence[tuple[str, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("audio_file", "score", "singer_id"), *rows])
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: files by their bytes, folders and links by None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


def said_of(root: Path, name: str) -> str:
    return BAD[name].replace("{root}/\\.\\.", str(root.parent)).replace("{root}", str(root))


# --- recordings ---


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recording_alone_stops_the_delivery(run: Run, delivered: Path, tmp_path: Path, name: str) -> None:
    labels = table(delivered / "labels.csv", [(name, "80", "s1")])
    before = tree(tmp_path)
    code, out, err = run("add", labels, "--data", "songs", "--no-version")
    assert (code, out.count("\n")) == (1, 1)
    assert out.startswith("refused   row 1  ")
    assert err.startswith("error: 1 of 1 rows cannot be used (100%), and at most 10% may be, so nothing was added: ")
    assert err.count("\n") == 1
    start = f"row 1 ({name}): "
    assert start in err
    assert re.match(said_of(delivered, name), err.partition(start)[2])
    assert tree(tmp_path) == before


def test_all_bad_recordings_are_listed_and_the_good_ones_added(run: Run, delivered: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(ALL_MAY_FAIL)
    rows = [(name, "80", f"s{number}") for number, name in enumerate([*BAD, *GOOD])]
    labels = table(delivered / "labels.csv", rows)
    options = ("--data", "songs", "--no-version", "--config", "config.yaml")
    code, out, _ = run("add", labels, *options)
    refused = [line for line in out.splitlines() if line.startswith("refused")]
    assert code == 3
    assert len(refused) == len(BAD)
    for row, (name, line) in enumerate(zip(BAD, refused, strict=True), 1):
        start = f"refused   row {row}  {name}: "
        assert line.startswith(start)
        assert re.match(said_of(delivered, name), line.removeprefix(start))
    clips = read_labels(tmp_path / "songs" / "labels.csv").clips
    assert [clip.audio_file for clip in clips] == list(GOOD.values())
    for name, kept in GOOD.items():
        assert (tmp_path / "songs" / kept).read_bytes() == (delivered / name).read_bytes()
    assert not (tmp_path / ".songs.incoming").exists()
    before = tree(tmp_path)
    assert run("add", labels, *options)[0] == 3
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "file", "said"),
    [
        ("line\nend.wav", "labels.csv", r"row 1 (line): a cell runs over several lines: is a quote left open?"),
        ("line\nend.wav", "index.json", r"row 1 ('line\nend.wav'): the name holds a control character, such as"),
        ("line\nend.wav", "labels.jsonl", r"row 1 (line): a cell runs over several lines"),
        ("nul\0.wav", "index.json", r"row 1 ('nul\x00.wav'): the name holds a control character"),
        ("", "labels.csv", "row 1 (): no file name"),
    ],
)
def test_names_that_no_row_can_hold(run: Run, tmp_path: Path, name: str, file: str, said: str) -> None:
    entry = {"audio_file": name, "score": 80}
    if file == "labels.csv":
        table(tmp_path / file, [(name, "80", "")])
    else:
        (tmp_path / file).write_text(json.dumps([[entry]] if file == "index.json" else entry))
    code, out, err = run("add", file, "--data", "songs", "--no-version")
    assert (code, out.count("\n")) == (1, 1)
    assert said in err
    assert not (tmp_path / "songs").exists()


def test_what_a_recording_is_stored_as_does_not_move_its_score(scorer_directory: Path, tmp_path: Path) -> None:
    # With some breath: where nothing at all sounds, the logarithm would show the rounding.
    wave = 4 * voice(seconds=2.0).astype(np.float64) + np.random.default_rng(0).normal(0, 0.03, 2 * RATE)
    stored: dict[str, NDArray[Any]] = {
        "f64": wave,
        "f32": wave.astype(np.float32),
        "six channels": np.stack([wave] * 6, axis=1).astype(np.float32),
        "s32": np.round(wave * 2**31).astype(np.int32),
        "s16": np.round(wave * 2**15).astype(np.int16),
        "u8": np.round(wave * 2**7 + 2**7).astype(np.uint8),
    }
    for name, samples in stored.items():
        wavfile.write(tmp_path / f"{name}.wav", RATE, samples)
    encode(wave.astype(np.float32), RATE, tmp_path / "s24.wav", codec="pcm_s24le")
    files = [str(tmp_path / f"{name}.wav") for name in (*stored, "s24")]
    said = CliRunner().invoke(app.app, ["score", *files, "--model", str(scorer_directory), "--json"])
    assert said.exit_code == 0
    raw = {Path(row["file"]).stem: row["raw"] for row in json.loads(said.stdout)["results"]}
    moved = {name: abs(found - raw["f64"]) for name, found in raw.items()}
    assert moved.pop("u8") < 0.01, raw
    assert max(moved.values()) < 1e-4, moved


# --- scores and tables ---


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("NaN", "no score"),
        ("", "no score"),
        ("   ", "no score"),
        ("inf", "score 'inf' is not a number"),
        ("-Infinity", "score '-Infinity' is not a number"),
        ("good", "score 'good' is not a number"),
        ("八十五", "score '八十五' is not a number"),
        ("85,5", "score '85,5' is not a number"),
        ("85%", "score '85%' is not a number"),
        ("0x50", "score '0x50' is not a number"),
        ("100.5", "score 100.5 is outside 0-100"),
        ("-1", "score -1 is outside 0-100"),
        ("1e3", "score 1e3 is outside 0-100"),
    ],
)
def test_a_score_that_is_none(run: Run, delivered: Path, tmp_path: Path, score: str, said: str) -> None:
    labels = table(delivered / "labels.csv", [("good.wav", score, "s1")])
    code, out, err = run("add", labels, "--data", "songs", "--no-version")
    assert (code, out) == (1, f"refused   row 1  good.wav: {said}\n")
    assert f"row 1 (good.wav): {said}. Mend them" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("score", "number"),
    [("\uff18\uff15", 85.0), ("85分", 85.0), ("\uff18\uff15\uff0e\uff15 分", 85.5), (" 85.50 ", 85.5), ("1e2", 100.0)],
)
def test_a_score_in_another_writing(run: Run, delivered: Path, tmp_path: Path, score: str, number: float) -> None:
    labels = table(delivered / "labels.csv", [("good.wav", score, "s1")])
    code, out, _ = run("add", labels, "--data", "songs", "--no-version", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["delivery"]["added"] == ["audio/good.wav"]
    assert [clip.score for clip in read_labels(labels).clips] == [number]
    assert not (tmp_path / "songs").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.csv", "", "labels.csv is empty. A table starts with a row of column names."),
        ("labels.csv", "\n \n", "labels.csv is empty. A table starts with"),
        ("labels.csv", "audio_file,score\n", "labels.csv names no recording."),
        ("labels.csv", "good.wav,80\n", "labels.csv has no column audio_file and no column score; its headers are"),
        ("labels.csv", "audio_file\ngood.wav\n", "labels.csv has no column score; its headers are audio_file."),
        ("labels.csv", "file,path,score\na,b,1\n", "'file' (column 1) and 'path' (column 2) both mean audio_file."),
        ("labels.csv", 'audio_file,score\n"a.wav,80\n', "labels.csv, near line"),
        ("labels.xlsx", "", "labels.xlsx cannot be opened as a workbook (File is not a zip file)."),
        ("labels.jsonl", "not JSON\n", "labels.jsonl: none of its 1 rows can be read (row 1: the line is not JSON"),
        ("labels.jsonl", '{"audio_file": "\\ud800.wav", "score": 1}', "(row 1: the line escapes half a character"),
        ("labels.pdf", "%PDF", "labels.pdf: .pdf is not read. Give .csv, .tsv, .xlsx, .jsonl or .json."),
        ("index.json", "", "index.json is not JSON (Expecting value: line 1 column 1 (char 0))."),
        ("index.json", "[]", "index.json names no recording."),
        ("index.json", "[[]]", "index.json names no recording."),
        ("index.json", "[[], []]", "index.json names no recording."),
        ("index.json", "[" * 100_000, "index.json is not JSON (maximum recursion depth exceeded"),
        ("index.json", '{"audio_file": "good.wav"}', "index.json is not a list of groups."),
        ("index.json", '[[{"audio_file": "good.wav", "score": NaN}]]', "position 1, good.wav: score is NaN."),
        ("index.json", '[[{"audio_file": "good.wav", "score": 1e999}]]', "good.wav: score is Infinity."),
        ("index.json", '[[{"audio_file": "good.wav", "score": "85"}]]', 'good.wav: score is "85". Give a number in'),
        ("index.json", '[[{"audio_file": "good.wav", "score": 185}]]', "good.wav: score is 185. Give a number in"),
        ("index.json", '[[{"audio_file": "\\ud800.wav"}]]', "group 1, position 1: an entry without audio_file"),
        (
            "index.json",
            '[[{"audio_file": "good.wav", "singer_id": "\\ud800"}]]',
            'good.wav: singer_id is "\\ud800". Give text.',
        ),
        (
            "index.json",
            '[[{"audio_file": "a", "score": 1}, {"audio_file": "b", "score": 2}]]',
            "a (score 1, position 1) stands above b (score 2, position 2)",
        ),
    ],
)
def test_a_table_that_cannot_be_read(run: Run, tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    code, out, err = run("add", name, "--data", "songs", "--no-version")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_table_or_folder_that_is_not_there(run: Run, delivered: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    labels = table(delivered / "labels.csv", [("good.wav", "80", "s1")])
    for arguments, said in [
        (("gone.csv",), "gone.csv: no such file."),
        (("pipe.csv",), "pipe.csv: no such file."),  # a pipe would be waited for
        (("/dev/zero",), "/dev/zero: no such file."),
        ((labels, "--audio", "nowhere"), "--audio nowhere: no such folder. Name the folder, or s3://,"),
        ((labels, "--audio", "s3://"), "s3:// names no bucket."),
        ((labels, "--on-conflict", "worst"), "--on-conflict worst: expected one of error, mean, newest."),
        ((labels, "--map", "score"), "--map score: expected NAME=HEADER"),
    ]:
        code, out, err = run("add", *arguments, "--data", "songs", "--no-version")
        assert (code, out) == (2, "")
        assert said in err
    (tmp_path / "songs").touch()
    assert run("add", labels, "--data", "songs", "--no-version") == (
        2,
        "",
        "error: songs is a file. Name the data folder.\n",
    )


# --- a disk that fills up ---


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the kernel refuses the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def deliver(folder: Path, seconds: list[float]) -> Path:
    for number, length in enumerate(seconds):
        encode(voice(130 + 11 * number, length), RATE, folder / f"t{number}.wav", codec="pcm_s16le")
    rows = [(f"t{number}.wav", str(60 + number), f"s{number}") for number in range(len(seconds))]
    return table(folder / "labels.csv", rows)


def test_a_disk_that_fills_up_half_way(run: Run, tmp_path: Path) -> None:
    first, second = deliver(tmp_path / "first", [1.3] * 3), deliver(tmp_path / "second", [1.4, 1.5, 4.0, 1.6])
    for folder in ("undisturbed", "songs"):
        assert run("add", first, "--data", folder, "--no-version")[0] == 0
    before = tree(tmp_path)
    with largest_file(100_000):  # of the four recordings, the third has 192,044 bytes
        code, out, err = run("add", second, "--data", "songs", "--no-version")
    assert (code, out) == (2, "")
    assert err == (
        f"error: songs: the disk is full ({os.strerror(errno.EFBIG)}) after 2 new recordings, so nothing was added. "
        f"Free space and add the delivery again.\n"
    )
    assert tree(tmp_path) == before
    assert run("add", second, "--data", "songs", "--no-version")[0] == 0
    assert run("add", second, "--data", "undisturbed", "--no-version")[0] == 0
    assert tree(tmp_path / "songs") == tree(tmp_path / "undisturbed")
    assert len(read_labels(tmp_path / "songs" / "labels.csv").clips) == 7


def test_a_disk_that_fills_up_at_once_or_at_the_table(run: Run, tmp_path: Path) -> None:
    labels = deliver(tmp_path / "first", [1.3] * 3)
    before = tree(tmp_path)
    with largest_file(10_000):
        code, _, err = run("add", labels, "--data", "songs", "--no-version")
    assert code == 2
    assert "after 0 new recordings, so nothing was added." in err
    assert tree(tmp_path) == before
    assert run("add", labels, "--data", "songs", "--no-version")[0] == 0
    before = tree(tmp_path)
    rows = [(f"t{number}.wav", "70.125", f"singer {number}") for number in range(3)]
    update = table(tmp_path / "first" / "more.csv", rows)
    with largest_file(100):
        code, _, err = run("add", update, "--data", "songs", "--no-version")
    assert code == 2
    assert "songs: the disk is full (File too large)" in err
    update_only = {name: content for name, content in tree(tmp_path).items() if name != "first/more.csv"}
    assert update_only == before
    assert run("add", update, "--data", "songs", "--no-version")[0] == 0
    assert [clip.score for clip in read_labels(tmp_path / "songs" / "labels.csv").clips] == [70.125] * 3
