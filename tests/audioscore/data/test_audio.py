import os
import socket
import struct
import wave as wavefile
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.io import wavfile

from audioscore.data.audio import Recording, Wave, decode, encode
from audioscore.errors import AudioError

RATE = 24_000
CODECS = {"m4a": "aac", "mp3": "libmp3lame", "flac": "flac", "wav": "pcm_s16le", "ogg": "libopus"}


def tone(seconds: float = 2.0, rate: int = RATE, frequency: float = 220.0) -> Wave:
    t = np.arange(round(seconds * rate)) / rate
    # An envelope, so that a shift in time is detected.
    wave = 0.5 * np.sin(2 * np.pi * frequency * t) * np.sin(np.pi * t / seconds) ** 2
    return np.asarray(wave, dtype=np.float32)


def music(seconds: float = 3.0) -> Wave:
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    return (tone(seconds) + 0.05 * noise).astype(np.float32)


@pytest.mark.parametrize("suffix", CODECS)
def test_every_format_is_reproducible_and_keeps_the_samples(tmp_path: Path, suffix: str) -> None:
    path, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for target in (path, again):
        encode(tone(), RATE, target, codec=CODECS[suffix])
    assert path.read_bytes() == again.read_bytes()
    recording, second, uploaded = decode(path), decode(str(path)), decode(path.read_bytes())
    assert recording.rate == second.rate == uploaded.rate
    np.testing.assert_array_equal(recording.wave, second.wave)
    np.testing.assert_array_equal(recording.wave, uploaded.wave)
    assert recording.wave.dtype == np.float32
    assert recording.seconds == pytest.approx(2.0, abs=0.03)  # an AAC frame, 1024 samples, may be padded
    decoded = recording.at(RATE)[: 2 * RATE]
    # Aligned (no encoder delay left), and at the same level; lame scales by 0.95.
    assert float(decoded @ tone()) / float(tone() @ tone()) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize(("kind", "step"), [("u1", 2**-7), ("i2", 2**-15), ("i4", 2**-23), ("f4", 1e-7), ("f8", 1e-7)])
def test_wav_of_any_depth_and_rate_is_exact_to_its_step(tmp_path: Path, rate: int, kind: str, step: float) -> None:
    wave = tone(0.5, rate)
    scale = 1.0 if kind[0] == "f" else 2 ** (8 * int(kind[1]) - 1) - 1
    samples = wave.astype(float) * scale + (128 if kind == "u1" else 0)
    wavfile.write(tmp_path / "a.wav", rate, (samples if kind[0] == "f" else np.round(samples)).astype(kind))
    recording = decode(tmp_path / "a.wav")
    assert recording.rate == rate
    np.testing.assert_allclose(recording.wave, wave, atol=step)


def test_24_bit_wav_is_decoded(tmp_path: Path) -> None:
    values = np.array([0, 1, -1, 2**22, -(2**23), 2**23 - 1])
    with wavefile.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, RATE, 0, "NONE", ""))
        file.writeframes(b"".join(struct.pack("<i", value)[:3] for value in values))
    np.testing.assert_allclose(decode(tmp_path / "a.wav").wave, values / 2**23, atol=1e-7)


@pytest.mark.parametrize(
    ("others", "loss"), [([], 0), ([1.0], 0), ([0.0], -3.01), ([-1.0], -120), ([-0.5], -10.0), ([0.0] * 5, -7.78)]
)
def test_the_loss_by_averaging_channels_is_measured(tmp_path: Path, others: list[float], loss: float) -> None:
    channels = [tone(0.5), *(np.float32(gain) * tone(0.5) for gain in others)]
    wavfile.write(tmp_path / "a.wav", RATE, np.stack(channels, axis=1) if others else channels[0])
    recording = decode(tmp_path / "a.wav")
    assert recording.mono_loss_db == pytest.approx(loss, abs=0.02)
    np.testing.assert_array_equal(recording.wave, np.mean(channels, axis=0, dtype=np.float32))


def test_different_channels_are_averaged_and_silent_channels_have_no_loss(tmp_path: Path) -> None:
    left, right = tone(0.5), tone(0.5, frequency=330)
    wavfile.write(tmp_path / "two.wav", RATE, np.stack([left, right], axis=1))
    np.testing.assert_allclose(decode(tmp_path / "two.wav").wave, (left + right) / 2, atol=1e-7)
    wavfile.write(tmp_path / "a.wav", RATE, np.zeros((RATE, 2), dtype=np.float32))
    assert decode(tmp_path / "a.wav").mono_loss_db == 0.0
    assert Recording(tone(0.1), RATE).mono_loss_db == 0.0


def test_resampling_keeps_a_tone_below_the_cutoff_and_drops_one_above() -> None:
    t = np.arange(48_000) / 48_000
    low, high = (np.sin(2 * np.pi * f * t).astype(np.float32) for f in (1_000.0, 20_000.0))
    kept, dropped = Recording(low, 48_000).at(RATE), Recording(high, 48_000).at(RATE)
    assert len(kept) == RATE
    inside = slice(1_000, -1_000)
    assert Recording(low, RATE).at(RATE) is low
    np.testing.assert_allclose(kept[inside], low[::2][inside], atol=1e-3)
    assert np.abs(dropped[inside]).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("missing.wav", None, "no such"),
        ("", None, "folder"),
        ("empty.wav", b"", "0 bytes"),
        ("text.mp3", b"audio_file,score\n" * 50, "decoded"),
        ("junk.m4a", np.random.default_rng(1).bytes(4_000), "decoded"),
    ],
)
def test_other_files_are_refused_with_their_name(tmp_path: Path, name: str, content: bytes | None, word: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError) as refused:
        decode(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")
    assert word in str(refused.value)


@pytest.mark.parametrize(("content", "word"), [(b"", "0 bytes"), (b"not audio" * 50, "decoded")])
def test_other_bytes_are_refused_with_their_name(content: bytes, word: str) -> None:
    with pytest.raises(AudioError, match=rf"^s3://songs/a\.wav: .*{word}"):
        decode(content, name="s3://songs/a.wav")


@pytest.mark.parametrize("suffix", ["m4a", "mp3", "flac", "wav"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.5, 0.95])
def test_an_incomplete_transfer_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(music(20.0), RATE, path, codec=CODECS[suffix])
    content = path.read_bytes()
    path.write_bytes(content[: max(60, int(len(content) * share))])
    with pytest.raises(AudioError, match=rf"a\.{suffix}: "):
        decode(path)


@pytest.mark.parametrize("suffix", ["m4a", "mp3", "flac", "ogg"])
def test_a_damaged_packet_inside_is_refused(tmp_path: Path, suffix: str) -> None:
    encode(music(), RATE, tmp_path / f"a.{suffix}", codec=CODECS[suffix])
    content = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2_000] = bytes(2_000)
    with pytest.raises(AudioError):
        decode(bytes(content))


def test_a_wav_without_size_is_decoded_and_a_short_or_empty_one_refused(tmp_path: Path) -> None:
    encode(tone(), RATE, tmp_path / "a.wav", codec="pcm_s16le")
    content = (tmp_path / "a.wav").read_bytes()
    at = content.index(b"data") + 4
    piped = content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]  # as written to a pipe
    assert decode(piped).seconds == pytest.approx(2.0, abs=1e-3)
    (tmp_path / "cut.wav").write_bytes(content[:-1_000])
    cut = decode(tmp_path / "cut.wav")
    assert len(cut.wave) == 2 * RATE - 500
    assert "0.0208 s" in cut.notes[0]
    wavfile.write(tmp_path / "empty.wav", RATE, np.zeros(0, dtype=np.int16))
    with pytest.raises(AudioError):
        decode((tmp_path / "empty.wav").read_bytes())


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_sample_that_is_not_finite_is_refused(tmp_path: Path, bits: int, bad: float, position: int) -> None:
    wave = tone(0.5).astype(f"float{bits}")
    wave[position] = bad
    wavfile.write(tmp_path / "bad.wav", RATE, wave)
    with pytest.raises(AudioError, match=r"bad\.wav: .*NaN"):
        decode(tmp_path / "bad.wav")


def test_impossible_samples_and_rates_are_refused(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "loud.wav", RATE, 32_768 * tone(0.5))  # integers written as floats: clipped, but decoded
    assert np.abs(decode(tmp_path / "loud.wav").wave).max() > 10_000
    wavfile.write(tmp_path / "bad.wav", RATE, np.float32(1e30) * tone(0.5))
    with pytest.raises(AudioError, match=r"bad\.wav: .*e\+29"):
        decode(tmp_path / "bad.wav")

    wavfile.write(tmp_path / "slow.wav", 7, tone(0.5))
    with pytest.raises(AudioError, match=r"slow\.wav: .*\b7 Hz"):
        decode(tmp_path / "slow.wav")


def test_special_files_are_refused_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe.wav")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.wav")
        Path("loop.wav").symlink_to("loop.wav")
        words = {"pipe.wav": "pipe", "socket.wav": "socket", "/dev/null": "device", "loop.wav": "link"}
        for name, word in words.items():
            with pytest.raises(AudioError, match=rf"^{name}: .*\b{word}\b"):
                decode(name)


def test_playlists_are_refused_and_colons_are_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode(tone(), RATE, Path("12:30.wav"), codec="pcm_s16le")
    encode(tone(), RATE, Path("b.wav"), codec="pcm_s16le")
    assert decode("12:30.wav").seconds == pytest.approx(2.0)
    Path("concat.wav").write_text("ffconcat version 1.0\nfile b.wav\n")
    Path("list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\nb.wav\n#EXT-X-ENDLIST\n")
    for name in ("concat.wav", "list.m3u8"):
        with pytest.raises(AudioError):
            decode(name)


def test_a_video_without_audio_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32)
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"film\.mp4: .*audio stream"):
        decode(path)


def test_too_long_is_refused_before_and_without_a_declared_length(tmp_path: Path) -> None:
    encode(tone(), RATE, tmp_path / "a.flac", codec="flac")
    with pytest.raises(AudioError, match=r"a\.flac: .*\b2 s\b.*\b1 s\b"):
        decode(tmp_path / "a.flac", max_seconds=1.0)
    encode(tone(), RATE, tmp_path / "a.aac")  # ADTS: bare frames, without a length
    with pytest.raises(AudioError, match=r"a\.aac: .*\b[12] s\b"):
        decode(tmp_path / "a.aac", max_seconds=1.0)


def test_files_that_cannot_be_opened_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AudioError, match=r"x{300}"):
        decode(tmp_path / ("x" * 300 + ".wav"))
    with pytest.raises(AudioError, match="a\0b"):
        decode("a\0b.wav")

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(AudioError, match=r"a\.wav: .*Permission denied"):
        decode(tmp_path / "a.wav")


def test_a_rate_that_the_codec_does_not_support_is_refused_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.ogg").write_bytes(b"old")
    with pytest.raises(AudioError, match=r"a\.ogg: .*libopus.* 44100 Hz"):
        encode(tone(), 44_100, tmp_path / "a.ogg", codec="libopus")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
