import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audioscore.data.audio import decode, encode
from audioscore.data.decoding.containers import end_of_tags, id3_bytes, inspect_container
from audioscore.errors import AudioError

RATE = 16_000
FIELDS = {  # of the size of the samples: the bytes in front of it, its format, and how many more bytes it counts
    "WAV": (b"data", "<I", 0),
    "RF64": (b"ds64" + bytes(12), "<Q", 0),
    "AIFF": (b"SSND", ">I", 8),
    "AU": (b".snd" + bytes(4), ">I", 0),
    "CAF": (b"data", ">q", 4),
    "W64": (bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), "<q", 24),
}


def samples(seconds: float = 2.0) -> Any:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * 220 * t + 3 * t**2)).astype(np.float32)


def written(path: Path, container: str, wave: Any = None) -> bytes:
    soundfile.write(path, samples() if wave is None else wave, RATE, format=container, subtype="PCM_16")
    return path.read_bytes()


def with_size(content: bytes, container: str, value: int) -> bytes:
    before, packed, _ = FIELDS[container]
    at = content.index(before[:4]) + len(before)
    return content[:at] + struct.pack(packed, value) + content[at + struct.calcsize(packed) :]


@pytest.mark.parametrize("container", FIELDS)
def test_a_right_header_needs_no_edit(tmp_path: Path, container: str) -> None:
    found = inspect_container(io.BytesIO(written(tmp_path / "a", container)))
    assert (found.present, found.missing, found.added, found.unread) == (4 * RATE, 0, 0, 0)
    assert not found.edits
    assert found.next_file is None


@pytest.mark.parametrize("container", FIELDS)
def test_a_placeholder_is_read_to_the_end_without_a_note(tmp_path: Path, container: str) -> None:
    _, packed, counted = FIELDS[container]
    content = written(tmp_path / "a", container)
    placeholders = {"I": (0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF), "q": (-1,), "Q": (2**64 - 1,)}[packed[1]]
    for size in (0, counted, *placeholders):
        recording = decode(with_size(content, container, size))
        np.testing.assert_allclose(recording.wave, samples(), atol=1e-4)
        assert recording.notes == (), size


@pytest.mark.parametrize("container", FIELDS)
def test_more_and_fewer_samples_than_declared(tmp_path: Path, container: str) -> None:
    content, counted = written(tmp_path / "a", container), FIELDS[container][2]
    short = decode(with_size(content, container, 4 * RATE + counted + 44))  # counts 44 bytes of a header
    np.testing.assert_allclose(short.wave, samples(), atol=1e-4)
    assert len(short.notes) == 1
    half = decode(with_size(content, container, 2 * RATE + counted))  # the header was not updated
    np.testing.assert_allclose(half.wave, samples(), atol=1e-4)
    assert len(half.notes) == 1
    assert "1.00 s" in half.notes[0]
    with pytest.raises(AudioError, match=r"2\.00 s.*3\.00 s"):
        decode(with_size(content, container, 6 * RATE + counted))
    with pytest.raises(AudioError, match=r"1\.00 s.*2\.00 s"):
        decode(content[: len(content) - 2 * RATE])


@pytest.mark.parametrize("container", FIELDS)
def test_files_behind_each_other_are_all_used(tmp_path: Path, container: str) -> None:
    content = written(tmp_path / "a", container)
    recording = decode(content + content)
    np.testing.assert_allclose(recording.wave, np.tile(samples(), 2), atol=1e-4)
    assert len(recording.notes) == 1
    (tmp_path / "joined").write_bytes(content + content + content)
    assert decode(tmp_path / "joined").seconds == pytest.approx(6.0)


def test_a_thousand_files_behind_each_other_are_refused(tmp_path: Path) -> None:
    content = written(tmp_path / "a", "WAV", samples(0.001))
    assert decode(content * 300).seconds == pytest.approx(0.3)
    with pytest.raises(AudioError, match="1000 files"):
        decode(content * 1_002)


def test_joined_files_of_two_rates_are_resampled_and_have_a_limit(tmp_path: Path) -> None:
    content = written(tmp_path / "a", "WAV")
    soundfile.write(tmp_path / "b.wav", samples(), 2 * RATE, subtype="PCM_16")
    assert decode(content + (tmp_path / "b.wav").read_bytes()).seconds == pytest.approx(3.0, abs=0.001)
    with pytest.raises(AudioError, match=r"\b3 s\b"):
        decode(content + content, max_seconds=3.0)


@pytest.mark.parametrize(
    "behind", [b"", bytes(5_000), b"TAG" + bytes(125), b"ID3\x04\0\0\0\0\0\x05hello", b"APETAGEX" + bytes(24)]
)
@pytest.mark.parametrize("container", FIELDS)
def test_tags_and_padding_are_not_sound(tmp_path: Path, container: str, behind: bytes) -> None:
    tag = b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + b"\xff\xfb\x90\x00" * 64
    content = written(tmp_path / "a", container)
    for file in (content + behind, tag + tag + content + behind):
        recording = decode(file)
        np.testing.assert_allclose(recording.wave, samples(), atol=1e-4)
        assert recording.notes == ()


def test_chunks_behind_the_samples_are_not_sound(tmp_path: Path) -> None:
    content = written(tmp_path / "a", "WAV", samples()[:-1])
    listed = content + b"LIST" + struct.pack("<I", 1_001) + b"x" * 1_001  # without the byte that aligns the next one
    assert len(decode(listed + b"bext" + struct.pack("<I", 602) + b"y" * 602).wave) == 2 * RATE - 1
    assert len(decode(listed[:-500]).wave) == 2 * RATE - 1  # cut off inside a tag
    recording = decode(listed + b"\x00" + b"\xfe\x01" * 4_000)  # not a chunk, and the samples are not its neighbour
    assert len(recording.wave) == 2 * RATE - 1
    assert "8000" in recording.notes[0]


@pytest.mark.parametrize("extensible", [True, False])
@pytest.mark.parametrize(("valid", "width"), [(24, 32), (20, 24), (12, 16), (24, 24), (16, 16)])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_in_wider_containers(tmp_path: Path, valid: int, width: int, channels: int, extensible: bool) -> None:
    values = np.round(np.outer(samples().astype(float), np.ones(channels)) * 2 ** (valid - 1)).astype("<i4")
    data = (values << (32 - valid)).reshape(-1, 1).view("u1")[:, 4 - width // 8 :].tobytes()
    align = channels * width // 8
    bits = width if extensible else valid
    fields = struct.pack("<HHIIHH", 0xFFFE if extensible else 1, channels, RATE, RATE * align, align, bits)
    if extensible:
        fields += struct.pack("<HHIH", 22, valid, 2**channels - 1, 1) + bytes.fromhex("000000001000800000aa00389b71")
    body = b"WAVEfmt " + struct.pack("<I", len(fields)) + fields + b"data" + struct.pack("<I", len(data)) + data
    recording = decode(b"RIFF" + struct.pack("<I", len(body)) + body)
    np.testing.assert_allclose(recording.wave, samples(), atol=2.0 ** (1 - valid))
    desc = struct.pack(">d4sIIIII", RATE, b"lpcm", 2, align, 1, channels, valid)
    caf = (
        b"caff\0\1\0\0desc"
        + struct.pack(">q", 32)
        + desc
        + b"data"
        + struct.pack(">q", len(data) + 4)
        + bytes(4)
        + data
    )
    np.testing.assert_allclose(decode(caf).wave, samples(), atol=2.0 ** (1 - valid))


@pytest.mark.parametrize("container", ["WAVEX", "CAF", "FLAC", "AIFF"])
def test_eight_channels_are_averaged(tmp_path: Path, container: str) -> None:
    wave = np.stack([samples() * gain for gain in np.linspace(0.1, 1, 8)], axis=1)
    soundfile.write(tmp_path / "a", wave, RATE, format=container, subtype="PCM_16")
    content = (tmp_path / "a").read_bytes()
    if container == "CAF":  # left, right, centre, low, left and right surround, and two in the back
        order = struct.pack(">4sqIII", b"chan", 12 + 8 * 20, 0, 0, 8)
        order += b"".join(struct.pack(">II", label, 0) + bytes(12) for label in (1, 2, 3, 4, 10, 11, 5, 6))
        content = content.replace(b"data", order + b"data", 1)
    np.testing.assert_allclose(decode(content).wave, wave.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("frames", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_an_aiff_whose_sizes_are_placeholders(tmp_path: Path, frames: int) -> None:
    content = written(tmp_path / "a", "AIFF")
    at = content.index(b"COMM") + 10
    content = content[:4] + struct.pack(">I", frames) + content[8:at] + struct.pack(">I", frames) + content[at + 4 :]
    recording = decode(with_size(content, "AIFF", frames))
    np.testing.assert_allclose(recording.wave, samples(), atol=1e-4)
    assert recording.notes == ()


def test_a_second_data_chunk_is_named(tmp_path: Path) -> None:
    content = written(tmp_path / "a", "WAV")
    recording = decode(content + b"data" + struct.pack("<I", 4_000) + bytes(range(200)) * 20)
    assert len(recording.wave) == 2 * RATE
    assert "4000" in recording.notes[0]


def test_codecs_that_ffmpeg_misreads_are_refused(tmp_path: Path) -> None:
    for subtype in ("NMS_ADPCM_16", "G721_32"):
        soundfile.write(tmp_path / "a.wav", samples(), RATE, format="WAV", subtype=subtype)
        with pytest.raises(AudioError, match="ADPCM"):
            decode(tmp_path / "a.wav")


def test_other_and_damaged_files_have_no_container(tmp_path: Path) -> None:
    content = written(tmp_path / "a", "WAV")
    for other in (
        b"",
        b"RIFF",
        b"RIFF\0\0\0\0AVI LIST",
        b"OggS" + bytes(40),
        b".snd\0\0",
        b"caff\0\1\0\0",
    ):
        assert not inspect_container(io.BytesIO(other)).present
    for length in range(12, 60):  # cut inside the header
        with pytest.raises(AudioError):
            decode(content[:length])


def test_an_ogg_file_that_is_cut_off_is_refused_or_noted(tmp_path: Path) -> None:
    encode(np.tile(samples(5.0), 2), 48_000, tmp_path / "a.ogg", codec="libopus", bit_rate=96_000)
    content = (tmp_path / "a.ogg").read_bytes()
    assert decode(content).notes == ()
    pages = [match.start() for match in re.finditer(b"OggS", content)]
    page, size = pages[-3], pages[-2] - pages[-3]  # a second of sound
    with pytest.raises(AudioError, match=r"\d\.\d\d s"):
        decode(content[: page + size * 9 // 10])
    for cut in (decode(content[: page + size // 10]), decode(content[:page])):  # inside a page, and between two
        assert len(cut.notes) == 1


@pytest.mark.parametrize(("codec", "suffix"), [("aac", "m4a"), ("libmp3lame", "avi")])
def test_other_files_behind_each_other_are_all_used(tmp_path: Path, codec: str, suffix: str) -> None:
    encode(samples(), RATE, tmp_path / f"a.{suffix}", codec=codec)
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert decode(content + content).seconds == pytest.approx(2 * decode(content).seconds, abs=0.05)
    with pytest.raises(AudioError):
        decode(content[: len(content) // 2])


def test_amr_files_behind_each_other_are_all_used(tmp_path: Path) -> None:
    encode(samples()[::2], 8_000, tmp_path / "a.amr", codec="libopencore_amrnb", bit_rate=12_200)
    content = (tmp_path / "a.amr").read_bytes()
    recording = decode(content + content + bytes(4_000))
    assert recording.seconds == pytest.approx(4.0, abs=0.1)
    assert len(recording.notes) == 2


def test_tags_in_front_are_measured() -> None:
    tag = b"ID3\x04\0\x10" + bytes([0, 0, 0, 5])  # with a footer
    assert id3_bytes(tag) == 25
    assert end_of_tags(io.BytesIO(tag + bytes(15) + b"RIFF" + bytes(20))) == 25
    assert end_of_tags(io.BytesIO(b"RIFF" + bytes(20))) == 0
