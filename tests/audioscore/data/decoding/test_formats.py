import os
from pathlib import Path

import numpy as np
import pytest
from av.format import ContainerFormat

from audioscore.data.audio import encode
from audioscore.data.decoding.formats import DEMUXERS, SUFFIXES, describe_others, has_audio, has_suffix, scan_folder

RATE = 48_000
TONE = (0.1 * np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE)).astype(np.float32)
WRITTEN = {
    "wav": "pcm_s16le", "w64": "pcm_s16le", "aiff": "pcm_s16be", "au": "pcm_s16be", "caf": "pcm_s16le", "voc": "pcm_u8",
    "flac": "flac", "wv": "wavpack", "tta": "tta", "m4a": "aac", "mov": "aac", "3gp": "aac", "mkv": "libopus",
    "webm": "libopus", "ogg": "flac", "opus": "libopus", "ts": "aac", "mp3": "libmp3lame", "aac": "aac",
    "avi": "pcm_s16le", "nut": "flac", "wma": "wmav2", "flv": "aac", "ac3": "ac3",
}  # fmt: skip


def recording(path: Path, suffix: str) -> Path:
    """A recording of 2 s in the format of `suffix`, at `path`."""
    source = path.with_name(f"{path.name}.{suffix}")
    encode(TONE, RATE, source, codec=WRITTEN[suffix])
    return source.rename(path)


def test_the_suffixes_are_those_of_the_demuxers() -> None:
    found = {f".{suffix}" for name in DEMUXERS for suffix in ContainerFormat(name, "r").extensions}
    assert found - SUFFIXES == {".avif", ".heic", ".heif", ".ism", ".mks"}  # images, a manifest, subtitles
    writing = {"adts", "ipod", "asf", "3gp", "3g2", "oga", "opus", "spx", "mpegts", "mpeg", "latm", "webm", "rm", "vob"}
    assert {f".{suffix}" for name in writing for suffix in ContainerFormat(name, "w").extensions} <= SUFFIXES
    assert all(has_suffix(f"a/b.{name.upper()}") for name in WRITTEN)
    assert not {".txt", ".csv", ".jpg", ".m3u", ".m3u8", ".cue", ".mpd", ".sdp", ".ffconcat", ".pls"} & SUFFIXES


@pytest.mark.parametrize("suffix", WRITTEN)
def test_audio_is_found_by_content(tmp_path: Path, suffix: str) -> None:
    assert has_audio(recording(tmp_path / "recording.data", suffix))
    assert has_audio(recording(tmp_path / "12:30", suffix))


def test_other_files_and_files_that_refer_to_files_are_no_audio(tmp_path: Path) -> None:
    recording(tmp_path / "a.wav", "wav")
    contents = {
        "empty": b"",
        "letter.txt": b"A letter, not a recording.\n" * 50,
        "noise.bin": np.random.default_rng(0).bytes(200_000),
        "concat": b"ffconcat version 1.0\nfile a.wav\n",
        "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.wav\n#EXT-X-ENDLIST\n",
        "list.mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
        "session.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "subtitles.srt": b"1\n00:00:00,000 --> 00:00:01,000\nla\n\n" * 20,
        "short": (tmp_path / "a.wav").read_bytes()[:8_000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert [name for name in contents if has_audio(tmp_path / name)] == []
    assert not has_audio(tmp_path)


def test_a_folder_is_scanned_by_content_and_the_rest_is_named(tmp_path: Path) -> None:
    (tmp_path / "in" / ".cache").mkdir(parents=True)
    for name, suffix in (("a.wav", "wav"), ("in/phone", "3gp"), ("ring.xyz", "m4a"), (".hidden.wav", "wav")):
        recording(tmp_path / name, suffix)
    recording(tmp_path / "in" / ".cache" / "b.wav", "wav")
    for name in ("damaged.mp3", "notes.txt", "in/x.bin"):
        (tmp_path / name).write_bytes(b"not audio")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone.m4a").symlink_to("nowhere.m4a")
    (tmp_path / "linked").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found, others = scan_folder(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    # A folder that is reached twice is scanned once, under the first of its names.
    assert names == sorted(["a.wav", "damaged.mp3", "gone.m4a", "in/phone", "ring.xyz"])
    assert sorted(others) == [".hidden.wav", "in/.cache", "in/x.bin", "notes.txt", "pipe"]


def test_a_folder_behind_a_link_is_scanned(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "songs").mkdir()
    recording(tmp_path / "elsewhere" / "a.wav", "wav")
    (tmp_path / "songs" / "ktv").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert scan_folder(tmp_path / "songs") == ([tmp_path / "songs" / "ktv" / "a.wav"], [])


def test_names_are_counted_and_companions_come_last() -> None:
    names = [*(f"{number}.txt" for number in range(20)), "b.bin", "a.bin"]
    text = describe_others("songs", names, 7)
    assert [part in text for part in ("songs: 7 ", " 22 ", "a.bin, b.bin, 0.txt", " 17 more")] == [True] * 4
