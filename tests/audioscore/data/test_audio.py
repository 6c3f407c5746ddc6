import io
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
    # A swell, so that a shift in time shows.
    wave: Wave = (0.5 * np.sin(2 * np.pi * frequency * t) * np.sin(np.pi * t / seconds) ** 2).astype(np.float32)
    return wave


def music(seconds: float = 3.0) -> Wave:
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    return (tone(seconds) + 0.05 * noise).astype(np.float32)


@pytest.mark.parametrize("suffix", CODECS)
def test_every_format_gives_back_what_was_written(tmp_path: Path, suffix: str) -> None:
    encode(tone(), RATE, tmp_path / f"a.{suffix}", codec=CODECS[suffix])
    recording = decode(tmp_path / f"a.{suffix}")
    assert recording.wave.dtype == np.float32
    assert recording.seconds == pytest.approx(2.0, abs=0.03)  # an AAC frame, 1024 samples, may be filled up
    heard = recording.at(RATE)[: 2 * RATE]
    # Aligned (no encoder delay left), and at the same level; lame scales by 0.95.
    assert float(heard @ tone()) / float(tone() @ tone()) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("suffix", CODECS)
def test_bytes_and_file_decode_alike_and_twice_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(music(1.0), RATE, path, codec=CODECS[suffix])
    first, second, uploaded = decode(path), decode(str(path)), decode(path.read_bytes())
    assert first.rate == second.rate == uploaded.rate
    np.testing.assert_array_equal(first.wave, second.wave)
    np.testing.assert_array_equal(first.wave, uploaded.wave)


@pytest.mark.parametrize("suffix", CODECS)
def test_the_same_samples_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        encode(music(1.0), RATE, tmp_path / f"{name}.{suffix}", codec=CODECS[suffix])
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize(("bits", "step"), [(16, 2**-15), (32, 2**-23), (0, 1e-7)])
def test_wav_of_any_depth_and_rate_is_exact_to_its_step(tmp_path: Path, rate: int, bits: int, step: float) -> None:
    wave = tone(0.5, rate)
    samples = np.round(wave.astype(float) * (2 ** (bits - 1) - 1)).astype(f"int{bits}") if bits else wave  # 0: float
    wavfile.write(tmp_path / "a.wav", rate, samples)
    recording = decode(tmp_path / "a.wav")
    assert recording.rate == rate
    np.testing.assert_allclose(recording.wave, wave, atol=step)


def test_24_bit_wav_is_read_as_such(tmp_path: Path) -> None:
    values = np.array([0, 1, -1, 2**22, -(2**23), 2**23 - 1])
    with wavefile.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, RATE, 0, "NONE", ""))
        file.writeframes(b"".join(struct.pack("<i", value)[:3] for value in values))
    np.testing.assert_allclose(decode(tmp_path / "a.wav").wave, values / 2**23, atol=1e-7)


def test_stereo_becomes_the_mean_of_its_channels_not_3_db_more(tmp_path: Path) -> None:
    left, right = tone(0.5), tone(0.5, frequency=330)
    wavfile.write(tmp_path / "same.wav", RATE, np.stack([left, left], axis=1))
    wavfile.write(tmp_path / "two.wav", RATE, np.stack([left, right], axis=1))
    wavfile.write(tmp_path / "left.wav", RATE, np.stack([left, 0 * left], axis=1))
    np.testing.assert_allclose(decode(tmp_path / "same.wav").wave, left, atol=1e-7)
    np.testing.assert_allclose(decode(tmp_path / "two.wav").wave, (left + right) / 2, atol=1e-7)
    np.testing.assert_allclose(decode(tmp_path / "left.wav").wave, left / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("others", "loss"),
    [
        ([], 0.0),
        ([1.0], 0.0),
        ([0.0], -3.01),
        ([-1.0], -120.0),
        ([-0.5], 20 * np.log10(0.25) - 10 * np.log10(0.625)),
        ([0.0] * 5, -7.78),
    ],
)
def test_what_averaging_the_channels_costs_is_measured(tmp_path: Path, others: list[float], loss: float) -> None:
    channels = [tone(0.5), *(np.float32(gain) * tone(0.5) for gain in others)]
    wavfile.write(tmp_path / "a.wav", RATE, np.stack(channels, axis=1) if others else channels[0])
    recording = decode(tmp_path / "a.wav")
    assert recording.mono_loss_db == pytest.approx(loss, abs=0.02)
    np.testing.assert_array_equal(recording.wave, np.mean(channels, axis=0, dtype=np.float32))


def test_silent_channels_lose_nothing(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, np.zeros((RATE, 2), dtype=np.float32))
    assert decode(tmp_path / "a.wav").mono_loss_db == 0.0
    assert Recording(tone(0.1), RATE).mono_loss_db == 0.0


def test_resampling_keeps_a_tone_below_the_cutoff_and_drops_one_above() -> None:
    t = np.arange(48_000) / 48_000
    low, high = (np.sin(2 * np.pi * f * t).astype(np.float32) for f in (1_000.0, 20_000.0))
    kept, dropped = Recording(low, 48_000).at(RATE), Recording(high, 48_000).at(RATE)
    assert len(kept) == RATE
    inside = slice(1_000, -1_000)
    np.testing.assert_allclose(kept[inside], low[::2][inside], atol=1e-3)
    assert np.abs(dropped[inside]).max() < 1e-3


def test_its_own_rate_costs_nothing() -> None:
    wave = tone(0.1)
    assert Recording(wave, RATE).at(RATE) is wave


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.wav", None, "no such file"),
        ("", None, "is a folder, not a recording"),
        ("empty.wav", b"", "empty (0 bytes)"),
        ("text.mp3", b"audio_file,score\n" * 50, "cannot be decoded"),
        ("junk.m4a", np.random.default_rng(1).bytes(4_000), "cannot be decoded"),
    ],
)
def test_what_is_no_recording_is_named_and_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError) as refused:
        decode(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("suffix", ["m4a", "mp3", "flac", "wav"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.8])
def test_a_transfer_that_stopped_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(music(), RATE, path, codec=CODECS[suffix])
    content = path.read_bytes()
    path.write_bytes(content[: max(60, int(len(content) * share))])
    with pytest.raises(AudioError, match=rf"a\.{suffix}: "):
        decode(path)


@pytest.mark.parametrize("suffix", ["m4a", "mp3", "flac", "ogg"])
def test_damage_inside_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(music(), RATE, path, codec=CODECS[suffix])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2_000] = bytes(2_000)
    with pytest.raises(AudioError, match=r"cannot be decoded|ends after"):
        decode(bytes(content))


def test_a_short_wav_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    encode(tone(), RATE, tmp_path / "a.wav", codec="pcm_s16le")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-1_000])
    with pytest.raises(AudioError, match="ends 1000 bytes before"):
        decode(tmp_path / "cut.wav")


def test_a_wav_written_to_a_pipe_declares_no_size_and_is_read(tmp_path: Path) -> None:
    encode(tone(), RATE, tmp_path / "a.wav", codec="pcm_s16le")
    content = (tmp_path / "a.wav").read_bytes()
    at = content.index(b"data") + 4
    piped = content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]
    assert decode(piped).seconds == pytest.approx(2.0, abs=1e-3)


def test_a_wav_without_samples_is_refused() -> None:
    buffer = io.BytesIO()
    wavfile.write(buffer, RATE, np.zeros(0, dtype=np.int16))
    with pytest.raises(AudioError, match=r"^the uploaded recording: "):
        decode(buffer.getvalue())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    wave = tone(0.5)
    wave[100] = bad
    wavfile.write(tmp_path / "bad.wav", RATE, wave)
    with pytest.raises(AudioError, match=r"bad\.wav: holds samples that are not numbers"):
        decode(tmp_path / "bad.wav")


def test_samples_that_no_sound_has_are_refused(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "loud.wav", RATE, 32_768 * tone(0.5))  # integers written as floats: clipped, but decoded
    assert np.abs(decode(tmp_path / "loud.wav").wave).max() > 10_000
    wavfile.write(tmp_path / "bad.wav", RATE, np.float32(1e30) * tone(0.5))
    with pytest.raises(AudioError, match=r"bad\.wav: holds samples up to .*e\+29, where full scale is 1"):
        decode(tmp_path / "bad.wav")


def test_a_sample_rate_of_a_few_hertz_is_refused(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "slow.wav", 7, tone(0.5))
    with pytest.raises(AudioError, match=r"slow\.wav: declares a sample rate of 7 Hz"):
        decode(tmp_path / "slow.wav")


def test_what_is_no_regular_file_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe.wav")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.wav")
        Path("loop.wav").symlink_to("loop.wav")
        for name, said in {
            "pipe.wav": "is a named pipe, not a file",
            "socket.wav": "is a socket, not a file",
            "/dev/null": "is a device, not a file",
            "loop.wav": "is a link that leads back to itself",
        }.items():
            with pytest.raises(AudioError, match=f"^{name}: {said}"):
                decode(name)


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be opened .Permission denied.\. Check its permissions"):
        decode(tmp_path / "a.wav")


def test_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32)
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"film\.mp4: has no audio stream"):
        decode(path)


def test_too_long_is_refused_before_and_without_a_declared_length(tmp_path: Path) -> None:
    encode(tone(), RATE, tmp_path / "a.flac", codec="flac")
    with pytest.raises(AudioError, match=r"a\.flac: is 2 s long; at most 1 s"):
        decode(tmp_path / "a.flac", max_seconds=1.0)
    encode(tone(), RATE, tmp_path / "a.aac")  # ADTS: bare frames, without a length
    with pytest.raises(AudioError, match=r"a\.aac: is (longer than 1 s|2 s long)"):
        decode(tmp_path / "a.aac", max_seconds=1.0)


def test_a_name_the_file_system_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="cannot be opened"):
        decode(tmp_path / ("x" * 300 + ".wav"))
    with pytest.raises(AudioError, match="no such file"):
        decode("a\0b.wav")


def test_a_rate_the_codec_does_not_take_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.ogg").write_bytes(b"old")
    with pytest.raises(AudioError, match=r"a\.ogg: libopus at 44100 Hz cannot be written"):
        encode(tone(), 44_100, tmp_path / "a.ogg", codec="libopus")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
