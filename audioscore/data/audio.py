"""Decode and encode audio files: any container or codec to mono float32, and resampling.

All decoding uses this module, so training and scoring see the same samples. PyAV includes FFmpeg, so no system package
is needed. Its resampler adds 3 dB when it mixes equal stereo channels; channels are therefore averaged here, and soxr
changes the sample rate.
"""

import errno
import io
import math
import stat
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from audioscore.errors import AudioError
from audioscore.files import atomic_path

Wave = NDArray[np.float32]

MAX_SECONDS = 3600.0  # an hour: more is a broadcast, not a performance, and would exhaust memory
SHORTFALL_SECONDS = 0.5  # allowed shortfall of the decoded audio (encoder delay and padding)
EXACT_CODECS = frozenset({"flac"})  # the container declares the exact number of samples
MAX_CHANNELS = 8  # with more, PyAV 18 reads beyond the frame when it creates an array
MAX_PEAK = 1e6  # of full scale: float files may exceed 1 or contain integers, but beyond this squares overflow
LOSS_FLOOR_DB = -120.0  # the value for channels that cancel completely, since JSON has no -inf
RATES = range(1_000, 1_000_001)  # Hz; a header with another rate is damaged
WAV_SIZE_UNKNOWN = 0x7FFF_0000  # tools that write to a pipe declare this size or more


@dataclass(frozen=True)
class Recording:
    """A decoded recording at its original sample rate.

    Shape: wave [T], float32, mono; `rate` in Hz. `mono_loss_db`: power of the averaged channels relative to the mean
    power of the channels, at least LOSS_FLOOR_DB: 0 for one channel or equal channels, -3 for two uncorrelated
    channels, very low if one channel is the inverse of the other.
    """

    wave: Wave
    rate: int
    mono_loss_db: float = 0.0

    @cached_property
    def seconds(self) -> float:
        return len(self.wave) / self.rate

    def at(self, rate: int, quality: str = "HQ") -> Wave:
        """Resample with soxr; its fastest quality, "QQ", is sufficient for measurements.

        Shape: [T] at `self.rate` -> [round(T * rate / self.rate)].
        """
        if rate == self.rate:
            return self.wave
        import soxr

        return np.ascontiguousarray(soxr.resample(self.wave, self.rate, rate, quality=quality), dtype=np.float32)

    def resample_rounded_up(self, rate: int) -> Wave:
        """Resample as librosa does: the length is rounded up, and a missing sample at the end is zero.

        Shape: [T] at `self.rate` -> [ceil(T * (rate / self.rate))], with the quotient in floating point.
        """
        wave, length = self.at(rate), math.ceil(len(self.wave) * (rate / self.rate))
        return np.pad(wave[:length], (0, max(0, length - len(wave))))


def decode(source: str | Path | bytes, *, max_seconds: float = MAX_SECONDS) -> Recording:
    """Decode a whole file, or the bytes of one.

    A partly damaged file is refused, since a score of the rest would be misleading.

    Raises:
        AudioError: The file has no audio, a damaged frame, less audio than declared, samples that are not finite, or
            more than `max_seconds`. The message starts with the name of the file.
    """
    name = "the uploaded recording" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        check_file(Path(source), name)
    import av

    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as head:
            missing = _wav_bytes_missing(head)
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            recording, declared, tolerance = _read_stream(container, name, max_seconds)
    except AudioError:
        raise
    except PermissionError as error:
        raise AudioError(f"{name}: cannot be opened ({error.strerror}). Check its permissions.") from error
    except Exception as error:  # FFmpeg and PyAV raise many types for invalid files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AudioError(f"{name}: cannot be decoded ({reason}). Export it again, as m4a, mp3, flac or wav.") from error
    if missing:
        raise AudioError(f"{name}: ends {missing} bytes before the end that it declares. Transfer it again.")
    if len(recording.wave) == 0:
        raise AudioError(f"{name}: holds no audio samples. Export it again.")
    if declared is not None and recording.seconds < declared - tolerance:
        raise AudioError(
            f"{name}: ends after {recording.seconds:.2f} s of the {declared:.2f} s it declares. Transfer it again."
        )
    if not np.isfinite(recording.wave).all():
        raise AudioError(f"{name}: contains NaN or infinite samples. Export it again.")
    peak = float(max(recording.wave.max(), -recording.wave.min()))
    if peak > MAX_PEAK:
        raise AudioError(f"{name}: holds samples up to {peak:.3g}, where full scale is 1. Export it again.")
    return recording


def check_file(path: Path, name: str) -> None:
    """Raise AudioError, with `name` in the message, unless `path` is a regular file that is not empty.

    The path is not opened, since opening a pipe or a device may block.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"{name}: no such file. Check the path.") from error
    except OSError as error:  # a name that is too long, or a folder without access
        if error.errno == errno.ELOOP:
            raise AudioError(f"{name}: is a circular link. Replace it by the recording.") from error
        raise AudioError(f"{name}: cannot be opened ({error.strerror}). Check the path.") from error
    if stat.S_ISDIR(found.st_mode):
        raise AudioError(f"{name}: is a folder, not a recording. Use the paths of the recordings in it.")
    if not stat.S_ISREG(found.st_mode):
        raise AudioError(f"{name}: is a {_kind(found.st_mode)}, not a file. Replace it by the recording.")
    if found.st_size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes). Export it again.")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")


def _wav_bytes_missing(stream: BinaryIO) -> int:
    """How many bytes of its data chunk a wav lacks, which FFmpeg does not report; 0 for other formats."""
    if stream.read(4) != b"RIFF" or len(stream.read(4)) < 4 or stream.read(4) != b"WAVE":
        return 0
    while len(header := stream.read(8)) == 8:
        size = int.from_bytes(header[4:], "little")
        start = stream.tell()
        if header[:4] == b"data":
            return 0 if size >= WAV_SIZE_UNKNOWN else max(0, size - (stream.seek(0, io.SEEK_END) - start))
        stream.seek(start + size + size % 2)
    return 0


def _read_stream(container: Any, name: str, max_seconds: float) -> tuple[Recording, float | None, float]:
    """The first audio stream of an open container, its declared seconds, and the tolerance of those in seconds."""
    import av

    if not container.streams.audio:
        raise AudioError(f"{name}: has no audio stream. Export the audio track.")
    stream = container.streams.audio[0]
    rate = int(stream.rate or stream.codec_context.sample_rate or 0)
    if rate not in RATES:
        raise AudioError(f"{name}: declares a sample rate of {rate} Hz. Export it again.")
    declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    if declared is not None and declared > max_seconds:
        raise AudioError(f"{name}: is {declared:.0f} s long; at most {max_seconds:.0f} s are accepted. Cut it.")
    resampler = av.AudioResampler(format="fltp", rate=rate)  # changes only the sample format
    chunks: list[Wave] = []
    total, kept, given = 0, 0.0, 0.0  # samples; energy of the mean channel; mean energy of the channels

    def keep(frames: list[Any]) -> None:
        nonlocal total, kept, given
        for frame in frames:
            if frame.layout.nb_channels > MAX_CHANNELS:
                channels = frame.layout.nb_channels
                raise AudioError(f"{name}: has {channels} channels; at most {MAX_CHANNELS} are accepted. Mix it down.")
            total += frame.samples
            if len(frame.planes) == 1:  # one channel: to_ndarray would take a fifth more time
                chunks.append(np.frombuffer(frame.planes[0], dtype=np.float32, count=frame.samples).copy())
                continue
            samples = frame.to_ndarray()  # (channels, T)
            chunks.append(samples.mean(axis=0, dtype=np.float32))
            kept += float(np.square(chunks[-1], dtype=np.float64).sum())
            given += float(np.square(samples, dtype=np.float64).sum()) / samples.shape[0]

    for frame in container.decode(stream):
        keep(resampler.resample(frame))
        if total > max_seconds * rate:
            raise AudioError(f"{name}: is longer than {max_seconds:.0f} s, the maximum. Cut it.")
    if chunks:
        keep(resampler.resample(None))
    wave = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
    # Half a sample, since a time base may not express the exact duration.
    tolerance = 0.5 / rate if stream.codec_context.name in EXACT_CODECS else SHORTFALL_SECONDS
    return Recording(wave.astype(np.float32, copy=False), rate, _loss_db(kept, given)), declared, tolerance


def _loss_db(kept: float, given: float) -> float:
    """Energy of the averaged channels relative to the mean energy of the channels, in dB.

    >>> _loss_db(0.0, 0.0), _loss_db(1.0, 2.0), _loss_db(0.0, 1.0)
    (0.0, -3.01, -120.0)
    """
    if not (0 < given < math.inf):  # one channel, silence, or samples that are not finite
        return 0.0
    return max(LOSS_FLOOR_DB, round(10 * math.log10(max(kept / given, 1e-30)), 2))


def encode(wave: Wave, rate: int, target: Path, *, codec: str = "aac", bit_rate: int = 48_000) -> None:
    """Write a mono wave to a file; the suffix of `target` (m4a, wav, flac, ogg, mp3) selects the container.

    The same samples give the same bytes, without a date or version, so that test and demo data are reproducible.

    Shape: wave [T], float32 in [-1, 1].

    Raises:
        AudioError: The container does not support the codec, or the codec the rate. No partial file is left.
    """
    import av

    samples = np.clip(wave, -1.0, 1.0).astype(np.float32)
    options = {"fflags": "+bitexact"}
    if target.suffix in {".m4a", ".mp4"}:
        options["movflags"] = "+faststart"
    with atomic_path(target) as temporary:
        try:
            with av.open(str(temporary), "w", options=options) as container:
                _write_stream(container, samples, rate, codec, bit_rate)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(
                f"{target}: {codec} at {rate} Hz cannot be written as {target.suffix or 'a file without suffix'} "
                f"({getattr(error, 'strerror', None) or error}). Choose another rate, codec or suffix."
            ) from error


def _write_stream(container: Any, samples: Wave, rate: int, codec: str, bit_rate: int) -> None:
    import av

    stream = container.add_stream(codec, rate=rate, layout="mono")
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    if not codec.startswith("pcm") and codec != "flac":
        stream.codec_context.bit_rate = bit_rate
    wanted = stream.codec_context.format.name if stream.codec_context.format else "fltp"
    resampler = av.AudioResampler(format=wanted, layout="mono", rate=rate)
    frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
    frame.sample_rate = rate
    frame.pts = 0
    frame.time_base = Fraction(1, rate)  # required for the encoder delay in the container
    size = stream.codec_context.frame_size or 1024
    fifo = av.AudioFifo()
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        fifo.write(part)
    while (block := fifo.read(size) or fifo.read(size, partial=True)) is not None:
        for packet in stream.encode(block):
            container.mux(packet)
    for packet in stream.encode(None):
        container.mux(packet)
