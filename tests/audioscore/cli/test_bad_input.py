"""Each fault of a delivery gives one error line a row, the right exit code, and no lost data."""

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

# Recordings in the order of their rows, and the figures or names that the error contains ({root}: their folder).
BAD = {
    "empty.m4a": r"0 bytes",
    "cut.wav": r"1\.80 s.* 3\.00 s",
    "cut.flac": r"1\.\d\d s.* 3\.00 s",
    "cut.m4a": r"1\.\d\d s.* 3\.00 s",
    "cut.mp3": r"1\.\d\d s.* 3\.00 s",
    "text.m4a": r"\(Invalid data found when processing input\)",
    "page.m4a": r"\(Invalid data found when processing input\)",
    "short.wav": r"0\.05 s.* 1 s",
    "silence.wav": r"-120\.0 dBFS.* -60",
    "nan.wav": r"NaN",
    "inf.wav": r"infinite",
    "inverted.wav": r"phase.*-120\.0 dB\b",
    "long.wav": r"3700 s.* 3600 s",
    "loop.wav": r"circular link",
    "one/x.wav": r"circular link",
    "dead.wav": r"{root}/nowhere\.wav",
    "pipe.wav": r"pipe",
    "zero.wav": r"link.* {root}.* /dev/zero",
    "/dev/zero": r"device",
    "../secret.wav": r"{root}.*`\.\.`.*--audio",
    "sub/../../secret.wav": r"{root}.*`\.\.`.*--audio",
    "out.wav": r"link.* {root}.* {root}/\.\./secret\.wav",
    "gone.wav": r"no such file.* {root}",
    "good.wav/x.wav": r"no such file.* {root}",
    "locked.wav": r"permission",
    "folder.wav": r"folder",
    "x" * 300 + ".wav": r"\(File name too long\)",
    "file:///etc/passwd": r"file://.*https?.*s3",
}
# Valid but unusual names, and the names of the stored files.
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
    """A folder with every recording of BAD and GOOD, and a recording outside it."""
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
    """Append zero samples to an empty wav; the file is sparse."""
    head = bytearray(path.read_bytes())
    head[4:8] = (len(head) - 8 + size).to_bytes(4, "little")
    head[-4:] = size.to_bytes(4, "little")
    path.write_bytes(head)
    os.truncate(path, len(head) + size)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`audioscore data ARGUMENTS`: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    # Root may read every file, so os.access reports this one as locked.
    able = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and able(path, mode))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["audioscore", "data", *map(str, arguments)])
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
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


def matches(error: str, root: Path, name: str) -> bool:
    pattern = BAD[name].replace("{root}/\\.\\.", str(root.parent)).replace("{root}", str(root))
    return re.search(pattern, error) is not None


# --- recordings ---


@pytest.mark.parametrize("name", ["cut.wav", "silence.wav", "loop.wav", "/dev/zero", "../secret.wav", "locked.wav"])
def test_a_bad_recording_alone_stops_the_delivery(run: Run, delivered: Path, tmp_path: Path, name: str) -> None:
    labels = table(delivered / "labels.csv", [(name, "80", "s1")])
    before = tree(tmp_path)
    code, out, err = run("add", labels, "--data", "songs", "--no-version")
    assert (code, out.count("\n"), err.count("\n")) == (1, 1, 1)
    assert "row 1 " in out
    for figure in ("1 of 1", "100%", "10%", "row 1 ", name):
        assert figure in err
    assert matches(err.partition(name)[2], delivered, name)
    code, out, _ = run("add", labels, "--data", "songs", "--no-version", "--json")
    document = json.loads(out)
    assert (code, len(document["delivery"]["refused"]), document["delivery"]["added"]) == (1, 1, [])
    assert "1 of 1" in document["error"]
    assert tree(tmp_path) == before


def test_all_bad_recordings_are_listed_and_the_good_ones_added(run: Run, delivered: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(ALL_MAY_FAIL)
    rows = [(name, "80", f"s{number}") for number, name in enumerate([*BAD, *GOOD])]
    labels = table(delivered / "labels.csv", rows)
    options = ("--data", "songs", "--no-version", "--config", "config.yaml")
    code, out, _ = run("add", labels, *options, "--json")
    assert code == 3
    refused = json.loads(out)["delivery"]["refused"]
    assert [(fault["row"], fault["audio_file"]) for fault in refused] == list(enumerate(BAD, 1))
    assert [fault for fault in refused if not matches(fault["reason"], delivered, fault["audio_file"])] == []
    clips = read_labels(tmp_path / "songs" / "labels.csv").clips
    assert [clip.audio_file for clip in clips] == list(GOOD.values())
    for name, kept in GOOD.items():
        assert (tmp_path / "songs" / kept).read_bytes() == (delivered / name).read_bytes()
    assert not (tmp_path / ".songs.incoming").exists()
    before = tree(tmp_path)
    assert run("add", labels, *options)[0] == 3
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("labels.csv", 'audio_file,score\n"line\nend.wav",80\n', r"row 1 (line)"),
        ("index.json", '[[{"audio_file": "line\\nend.wav", "score": 80}]]', r"row 1 ('line\nend.wav')"),
        ("labels.jsonl", '{"audio_file": "line\\nend.wav", "score": 80}', r"row 1 (line)"),
        ("index.json", '[[{"audio_file": "nul\\u0000.wav", "score": 80}]]', r"row 1 ('nul\x00.wav')"),
        ("labels.csv", "audio_file,score\n,80\n", "row 1 ()"),
    ],
)
def test_names_that_no_row_can_hold(run: Run, tmp_path: Path, file: str, content: str, part: str) -> None:
    (tmp_path / file).write_text(content)
    code, out, err = run("add", file, "--data", "songs", "--no-version")
    assert (code, out.count("\n")) == (1, 1)
    assert part in err
    assert not (tmp_path / "songs").exists()


def test_the_sample_format_does_not_change_the_score(scorer_directory: Path, tmp_path: Path) -> None:
    # Noise: without it, the logarithm of silence would amplify the rounding.
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
    result = CliRunner().invoke(app.app, ["score", *files, "--model", str(scorer_directory), "--json"])
    assert result.exit_code == 0
    raw = {Path(row["file"]).stem: row["raw"] for row in json.loads(result.stdout)["results"]}
    moved = {name: abs(found - raw["f64"]) for name, found in raw.items()}
    assert moved.pop("u8") < 0.01, raw
    assert max(moved.values()) < 1e-4, moved


# --- scores and tables ---


@pytest.mark.parametrize(
    ("score", "part"),
    [
        *((score, "no score") for score in ("NaN", "", "   ")),
        *((score, f"score '{score}' ") for score in ("inf", "-Infinity", "good", "八十五", "85,5", "85%", "0x50")),
        *((score, f"score {score} .*0-100") for score in (r"100.5", "-1", "1e3")),
    ],
)
def test_an_invalid_score(run: Run, delivered: Path, tmp_path: Path, score: str, part: str) -> None:
    labels = table(delivered / "labels.csv", [("good.wav", score, "s1")])
    code, out, err = run("add", labels, "--data", "songs", "--no-version")
    assert (code, out.count("\n")) == (1, 1)
    for stream in (out, err):
        assert re.search(rf"row 1 .*good\.wav.*{part}", stream)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("score", "number"),
    [("\uff18\uff15", 85.0), ("85分", 85.0), ("\uff18\uff15\uff0e\uff15 分", 85.5), (" 85.50 ", 85.5), ("1e2", 100.0)],
)
def test_a_score_in_another_notation(run: Run, delivered: Path, tmp_path: Path, score: str, number: float) -> None:
    labels = table(delivered / "labels.csv", [("good.wav", score, "s1")])
    code, out, _ = run("add", labels, "--data", "songs", "--no-version", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["delivery"]["added"] == ["audio/good.wav"]
    assert [clip.score for clip in read_labels(labels).clips] == [number]
    assert not (tmp_path / "songs").exists()


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("labels.csv", "", r"labels\.csv: .*empty"),
        ("labels.csv", "\n \n", r"labels\.csv: .*empty"),
        ("labels.csv", "audio_file,score\n", r"labels\.csv.* no recording"),
        ("labels.csv", "good.wav,80\n", r"labels\.csv.* no column audio_file .*no column score"),
        ("labels.csv", "audio_file\ngood.wav\n", r"labels\.csv.* no column score.* audio_file"),
        ("labels.csv", "file,path,score\na,b,1\n", r"audio_file: 2 .*'file' \(column 1\).*'path' \(column 2\).*"),
        ("labels.csv", 'audio_file,score\n"a.wav,80\n', r"labels\.csv.* line"),
        ("labels.xlsx", "", r"labels\.xlsx.* xlsx.*\.csv"),
        ("labels.jsonl", "not JSON\n", r"labels\.jsonl.* 1 rows.*row 1.* JSON"),
        ("labels.jsonl", '{"audio_file": "\\ud800.wav", "score": 1}', r"labels\.jsonl.* 1 rows.*row 1.* character"),
        ("labels.pdf", "%PDF", r"labels\.pdf.*\.csv, \.tsv, \.xlsx, \.jsonl or \.json"),
        ("index.json", "", r"index\.json.* JSON \(Expecting value: line 1 column 1 \(char 0\)\)"),
        *(("index.json", text, r"index\.json.* no recording") for text in ("[]", "[[]]", "[[], []]")),
        ("index.json", "[" * 100_000, r"index\.json.* JSON \(maximum recursion depth exceeded"),
        ("index.json", '{"audio_file": "good.wav"}', r"index\.json.* list of groups"),
        ("index.json", '[[{"audio_file": "good.wav", "score": NaN}]]', r"position 1, good\.wav: score .*NaN"),
        ("index.json", '[[{"audio_file": "good.wav", "score": 1e999}]]', r"good\.wav: score .*Infinity"),
        ("index.json", '[[{"audio_file": "good.wav", "score": "85"}]]', r'good\.wav: score .*"85"'),
        ("index.json", '[[{"audio_file": "good.wav", "score": 185}]]', r"good\.wav: score .*185"),
        ("index.json", '[[{"audio_file": "\\ud800.wav"}]]', r"group 1, position 1: .*audio_file"),
        ("index.json", '[[{"audio_file": "good.wav", "singer_id": "\\ud800"}]]', r'good\.wav: singer_id .*"\\ud800"'),
        (
            "index.json", '[[{"audio_file": "a", "score": 1}, {"audio_file": "b", "score": 2}]]',
            r"a \(score 1, position 1\).* b \(score 2, position 2\)",
        ),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read(run: Run, tmp_path: Path, name: str, content: str, part: str) -> None:
    (tmp_path / name).write_text(content)
    code, out, err = run("add", name, "--data", "songs", "--no-version")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(part, err), err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["gone.csv"], "gone.csv: no such file"),
        (["pipe.csv"], "pipe.csv: no such file"),  # reading a pipe would block
        (["/dev/zero"], "/dev/zero: no such file"),
        (["labels.csv", "--audio", "nowhere"], "--audio nowhere: no such folder"),
        (["labels.csv", "--audio", "s3://"], "s3://BUCKET/PREFIX"),
        (["labels.csv", "--on-conflict", "worst"], "--on-conflict worst: "),
        (["labels.csv", "--map", "score"], "--map score: "),
        (["labels.csv", "--data", "labels.csv"], "labels.csv: is a file"),
    ],
)
def test_a_wrong_argument_is_named(run: Run, delivered: Path, tmp_path: Path, arguments: list[str], part: str) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    table(tmp_path / "labels.csv", [(str(delivered / "good.wav"), "80", "s1")])
    code, out, err = run("add", "--data", "songs", "--no-version", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err
    assert not (tmp_path / "songs").exists()


# --- a disk that fills up ---


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: the kernel refuses the write, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(rf"songs: .*\({os.strerror(errno.EFBIG)}\).* 2 new recordings", err)
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
    assert "after 0 new recordings" in err
    assert tree(tmp_path) == before
    assert run("add", labels, "--data", "songs", "--no-version")[0] == 0
    before = tree(tmp_path)
    rows = [(f"t{number}.wav", "70.125", f"singer {number}") for number in range(3)]
    update = table(tmp_path / "first" / "more.csv", rows)
    with largest_file(100):
        code, _, err = run("add", update, "--data", "songs", "--no-version")
    assert code == 2
    assert re.search(r"songs: .*\(File too large\)", err)
    update_only = {name: content for name, content in tree(tmp_path).items() if name != "first/more.csv"}
    assert update_only == before
    assert run("add", update, "--data", "songs", "--no-version")[0] == 0
    assert [clip.score for clip in read_labels(tmp_path / "songs" / "labels.csv").clips] == [70.125] * 3
