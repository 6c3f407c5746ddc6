import io
import re
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from audioscore.data.audio import Wave, decode, encode
from audioscore.data.decoding.streams import loss_db
from audioscore.errors import AudioError

RATE = 44_100
TAG = b"ID3\x04\0\0" + bytes([0, 0, 18, 0]) + b"\xff\xfb\x90\x64" * 576  # its picture looks like frames
LYRICS = b"LYRICSBEGIN" + b"IND0000210" + b"LYR00005la la" + b"000035LYRICS200"


def voice(seconds: float = 3.0, rate: int = RATE) -> Wave:
    t = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * 220 * k * t + k * t**2) / k for k in range(1, 8))
    return np.asarray(0.2 * wave, dtype=np.float32)


def mux(path: Path, tracks: list[Wave], codec: str, *, default: int | None = None, **options: Any) -> bytes:
    """Write waves as the audio streams of a file; `options`: container format, muxer options, rate, bit rate."""
    rate = options.get("rate", RATE)
    with av.open(str(path), "w", format=options.get("format"), options=options.get("muxer", {})) as container:
        pending = []
        streams = [
            container.add_stream(codec, rate=rate, layout="mono", options=options.get("encoder", {})) for _ in tracks
        ]
        for number, stream in enumerate(streams):
            if "bit_rate" in options:
                stream.bit_rate = options["bit_rate"]
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        for stream, wave in zip(streams, tracks, strict=True):
            frame = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
            fifo = av.AudioFifo()
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                part.pts = None
                fifo.write(part)
            size, samples = stream.codec_context.frame_size or 1024, 0
            while (block := fifo.read(size) or fifo.read(size, partial=True)) is not None:
                block.pts, block.time_base = samples, Fraction(1, rate)
                samples += block.samples
                pending += stream.encode(block)
            pending += stream.encode(None)
        for packet in sorted(pending, key=lambda one: float((one.dts or 0) * one.time_base)):
            container.mux(packet)
    return path.read_bytes()


def mp3(tmp_path: Path, *, index: bool, **options: Any) -> bytes:
    muxer = {} if index else {"write_xing": "0", "id3v2_version": "0"}
    return mux(tmp_path / "a.mp3", [options.pop("wave", voice())], "libmp3lame", muxer=muxer, **options)


def test_a_length_that_ffmpeg_estimates_is_not_compared(tmp_path: Path) -> None:
    quiet = np.concatenate([np.zeros(2 * RATE, dtype=np.float32), voice()])
    variable = {"flags": "+qscale", "global_quality": "0"}
    for content in (
        mux(tmp_path / "a.aac", [quiet], "aac", format="adts", bit_rate=128_000),
        mp3(tmp_path, index=False, wave=quiet, encoder=variable),
        mp3(tmp_path, index=True, wave=quiet, encoder=variable),
    ):
        recording = decode(content)
        assert recording.seconds == pytest.approx(5.0, abs=0.06)
        assert recording.notes == ()


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp3", "libmp3lame"), ("flac", "flac"), ("m4a", "aac"), ("webm", "libopus")]
)
def test_a_length_that_the_file_declares_is_compared(tmp_path: Path, suffix: str, codec: str) -> None:
    rate = 48_000 if codec == "libopus" else RATE
    content = mux(
        tmp_path / f"a.{suffix}",
        [voice()],
        codec,
        rate=rate,
        muxer={"movflags": "faststart"} if suffix == "m4a" else {},
    )
    assert decode(content).seconds == pytest.approx(3.0, abs=0.08)
    with pytest.raises(AudioError, match=r"1\.\d\d s.* (3\.0|2\.9)\d s"):
        decode(content[: len(content) * 6 // 10])
    little = decode(content[: len(content) * 9 // 10])
    assert little.seconds < 2.95
    assert len(little.notes) in (1, 2)  # the length, and a packet that is cut off


@pytest.mark.parametrize(
    "behind",
    [LYRICS + b"TAG" + bytes(125), bytes(4096), TAG, b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 1 << 31)],
)
def test_tags_and_padding_around_mp3_frames_are_skipped_and_counted(tmp_path: Path, behind: bytes) -> None:
    content = mp3(tmp_path, index=False)
    alone = decode(content)
    recording = decode(TAG + content + behind)
    np.testing.assert_array_equal(recording.wave, alone.wave)
    between = decode(content + behind + content)
    assert between.seconds == pytest.approx(2 * alone.seconds, abs=0.08)


def test_a_damaged_packet_is_skipped_at_the_ends_and_refused_inside(tmp_path: Path) -> None:
    mux(tmp_path / "a.mka", [voice()], "flac", format="matroska")
    with av.open(str(tmp_path / "a.mka")) as container:
        sizes = [(packet.pos, packet.size) for packet in container.demux(container.streams.audio[0]) if packet.size]
    content = (tmp_path / "a.mka").read_bytes()

    def damaged(number: int, count: int = 1) -> bytes:
        changed = bytearray(content)
        for position, size in sizes[number : number + count]:
            start = changed.index(content[position + 20 : position + 40], position)
            changed[start : start + size - 40] = bytes(size - 40)
        return bytes(changed)

    whole = decode(content).seconds
    last = decode(damaged(len(sizes) - 1))
    assert whole - 0.2 < last.seconds < whole
    assert last.notes
    with pytest.raises(AudioError, match=r"\d\.\d\d s"):
        decode(damaged(len(sizes) // 2))
    with pytest.raises(AudioError):
        decode(damaged(len(sizes) - 12, 12))  # a second


def test_another_decoder_of_the_codec_is_tried(tmp_path: Path) -> None:
    """FFmpeg's own decoder of AMR does not support pauses (DTX)."""
    wave = np.concatenate([np.zeros(2 * RATE, dtype=np.float32), voice()])
    options = {"rate": 8_000, "bit_rate": 12_200, "encoder": {"dtx": "1"}}
    content = mux(tmp_path / "a.amr", [wave], "libopencore_amrnb", format="amr", **options)
    recording = decode(content)
    assert recording.seconds == pytest.approx(5.0, abs=0.05)
    assert recording.notes == ()
    assert np.abs(recording.wave[2 * 8_000 :]).max() > 0.1


@pytest.mark.parametrize(("default", "used"), [(1, 2), (0, 1), (None, 1)])
def test_the_default_stream_is_used_and_named(tmp_path: Path, default: int | None, used: int) -> None:
    silent = np.zeros(RATE, dtype=np.float32)
    tracks = [voice(1.0), silent] if used == 1 else [silent, voice(1.0)]
    recording = decode(mux(tmp_path / "a.mka", tracks, "pcm_s16le", format="matroska", default=default))
    assert np.abs(recording.wave).max() > 0.1
    assert len(recording.notes) == 1
    assert f"{used} of 2" in recording.notes[0]


def test_a_file_whose_format_changes_is_decoded_to_its_end(tmp_path: Path) -> None:
    first = mp3(tmp_path, index=False)
    with av.open(str(tmp_path / "b.mp3"), "w", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.tile(voice(3.0, 48_000), (2, 1)), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    recording = decode(first + (tmp_path / "b.mp3").read_bytes())
    assert recording.seconds == pytest.approx(6.0, abs=0.15)


def test_a_longer_video_beside_the_sound_is_no_loss(tmp_path: Path) -> None:
    for suffix in ("mkv", "webm", "mp4", "avi"):
        path = tmp_path / f"a.{suffix}"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libvpx" if suffix == "webm" else "mpeg4", rate=10, width=32, height=32)
            video.pix_fmt = "yuv420p"
            audio = container.add_stream("libopus" if suffix == "webm" else "libmp3lame", rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(voice(2.0, 48_000)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux([*audio.encode(frame), *audio.encode(None)])
            for number in range(40):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, dtype=np.uint8))
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        recording = decode(path)
        assert recording.seconds == pytest.approx(2.0, abs=0.06), suffix
        assert recording.notes == (), suffix


def test_a_late_start_in_matroska_is_no_loss(tmp_path: Path) -> None:
    mux(tmp_path / "a.mka", [voice(2.0)], "flac", format="matroska")
    with av.open(str(tmp_path / "a.mka")) as source, av.open(str(tmp_path / "late.mka"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.pts += 5_000  # ms
                packet.dts += 5_000
                packet.stream = stream
                target.mux(packet)
    recording = decode(tmp_path / "late.mka")
    assert recording.seconds == pytest.approx(2.0, abs=0.01)
    assert recording.notes == ()


def test_sound_that_timestamps_leave_out_is_refused_or_noted(tmp_path: Path) -> None:
    for suffix, codec in (("flac", "flac"), ("mka", "flac")):
        mux(tmp_path / f"a.{suffix}", [voice()], codec)
        with (
            av.open(str(tmp_path / f"a.{suffix}")) as source,
            av.open(str(tmp_path / f"gap.{suffix}"), "w") as target,
        ):
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None and not 1.0 < float(packet.pts * packet.time_base) < 1.43:
                    packet.stream = stream
                    target.mux(packet)
    assert re.search(r"0\.4\d s at 1\.\d\d s", decode(tmp_path / "gap.mka").notes[0])
    with pytest.raises(AudioError, match=r"0\.4\d s at 1\.\d\d s"):
        decode(tmp_path / "gap.flac")


def test_power_that_averaging_loses() -> None:
    assert loss_db(4.0, 1.0) == pytest.approx(6.02)
    assert loss_db(1.0, float("inf")) == 0.0


def test_bytes_and_a_file_give_the_same(tmp_path: Path) -> None:
    encode(voice(1.0), RATE, tmp_path / "a.mp3", codec="libmp3lame")
    content = (tmp_path / "a.mp3").read_bytes()
    np.testing.assert_array_equal(decode(content).wave, decode(tmp_path / "a.mp3").wave)
    assert io.BytesIO(content).read(3) == b"ID3"
