"""Decode and encode audio files: any container or codec to mono float32, and resampling.

All decoding uses this module, so training and scoring see the same samples. PyAV includes FFmpeg, so no system package
is needed. Its resampler adds 3 dB when it mixes equal stereo channels; channels are therefore averaged here, and soxr
changes the sample rate.
"""

import errno
import io
import math
import mmap
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from audioscore.data.decoding.containers import (
    Container,
    Edit,
    end_of_tags,
    find_second_file,
    inspect_container,
    read_at,
)
from audioscore.data.decoding.streams import SHORTFALL_SECONDS, DecodedStream, decode_stream
from audioscore.data.decoding.streams import Wave as Wave  # also for those who import it from here
from audioscore.errors import AudioError
from audioscore.files import atomic_path

EMPTY = "the file is empty (0 bytes). Export it again."
MAX_SECONDS = 3600.0  # an hour: more is a broadcast, not a performance, and would exhaust memory
NOTED_SECONDS = 0.05  # smaller differences from the declared length are usual, and not noted
MAX_FILES = 1000  # one behind the other
MAX_PEAK = 1e6  # of full scale: float files may exceed 1 or contain integers, but beyond this squares overflow


@dataclass(frozen=True)
class Recording:
    """A decoded recording at its original sample rate.

    Shape: wave [T], float32, mono; `rate` in Hz. `mono_loss_db`: power of the averaged channels relative to the mean
    power of the channels, at least LOSS_FLOOR_DB: 0 for one channel or equal channels, -3 for two uncorrelated
    channels, very low if one channel is the inverse of the other. `notes`: one sentence for each part of the file that
    was not decoded as declared.
    """

    wave: Wave
    rate: int
    mono_loss_db: float = 0.0
    notes: tuple[str, ...] = ()

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


def decode(source: str | Path | bytes, *, name: str | None = None, max_seconds: float = MAX_SECONDS) -> Recording:
    """Decode a whole file, or the bytes of one, which `name` stands for in messages.

    A partly damaged file is refused, since a score of the rest would be misleading.

    Raises:
        AudioError: The file has no audio, a damaged frame, less audio than declared, samples that are not finite, or
            more than `max_seconds`. The message starts with `name`, by default the path of the file.
    """
    name = name or ("the recording" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes):
        check_file(Path(source), name)
    elif not source:
        raise AudioError(f"{name}: {EMPTY}")
    recording = _decode_file(source, name, max_seconds)
    if len(recording.wave) == 0:
        raise AudioError(f"{name}: holds no audio samples. Export it again.")
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
        raise AudioError(f"{name}: {EMPTY}")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")


def _decode_file(source: str | Path | bytes, name: str, max_seconds: float) -> Recording:
    """Decode a file, or several files one behind the other."""
    parts: list[Recording] = []
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as opened:
            file, path = cast(BinaryIO, opened), None if isinstance(source, bytes) else str(source)
            following: int | None = 0
            while following is not None:
                if following:
                    file, path = io.BytesIO(read_at(file, following, -1)), None
                recording, following = _decode_first(file, path, name, max_seconds)
                parts.append(recording)
                if sum(part.seconds for part in parts) > max_seconds:
                    raise AudioError(f"{name}: is longer than {max_seconds:.0f} s, the maximum. Cut it.")
                if len(parts) > MAX_FILES:
                    raise AudioError(f"{name}: contains more than {MAX_FILES} files. Export them as one recording.")
    except AudioError:
        raise
    except PermissionError as error:
        raise AudioError(f"{name}: cannot be opened ({error.strerror}). Check its permissions.") from error
    except Exception as error:  # FFmpeg and PyAV raise many types for invalid files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AudioError(f"{name}: cannot be decoded ({reason}). Export it again, as m4a, mp3, flac or wav.") from error
    return parts[0] if len(parts) == 1 else _join(parts)


def _decode_first(file: BinaryIO, path: str | None, name: str, max_seconds: float) -> tuple[Recording, int | None]:
    """Decode a file up to the next file behind it; return the offset of that one, too."""
    tags = end_of_tags(file)
    behind = read_at(file, tags, 4)
    if not tags or behind[:1] == b"\xff" or not behind.strip(b"\0"):
        tags = 0  # FFmpeg skips tags in front of MP3 and AAC, but not in front of every format
    else:
        file, path = io.BytesIO(read_at(file, tags, -1)), None
    header = inspect_container(file)
    if header.misread:
        raise AudioError(f"{name}: its codec is {header.misread}, which FFmpeg misreads. Convert it to PCM.")
    following, end = header.next_file, header.end if header.next_file is None else header.next_file
    read: str | BinaryIO = path or file
    with ExitStack() as stack:
        if header.edits and following is None:
            read = stack.enter_context(_edited(file, header.edits))
        elif end is not None:
            read = io.BytesIO(read_at(file, 0, end))
            for offset, new in header.edits:
                read.getbuffer()[offset : offset + len(new)] = new
        decoded = decode_stream(read, name, max_seconds, length=not header.is_exact)
    if following is None and decoded.end and not header.is_exact:
        following = find_second_file(file, decoded.end)
    return _compare(decoded, header, name), None if following is None else tags + following


def _compare(decoded: DecodedStream, header: Container, name: str) -> Recording:
    """Compare the length with the one that the file declares: AudioError if too much is missing, else with notes."""
    seconds, notes = len(decoded.wave) / decoded.rate, list(decoded.notes)
    per_byte = seconds / max(1, header.present)
    missing = header.missing * per_byte if header.is_exact else (decoded.declared or seconds) - seconds
    if header.open_end:
        notes.append("open end: its last page is not marked as the end, so that sound may be missing.")
    if header.padding:
        notes.append(f"padding: {header.padding} bytes of zeros at its end are not used.")
    if header.added * per_byte > NOTED_SECONDS:
        notes.append(
            f"wrong size: it is {header.added * per_byte:.2f} s longer than its header declares; all of it is used."
        )
    if header.unread:
        notes.append(f"unread data: {header.unread} bytes behind its samples are not used.")
    if missing > SHORTFALL_SECONDS:
        claim = "its last page, which is incomplete, reaches to" if header.is_ogg else "its header declares"
        raise AudioError(
            f"{name}: ends after {seconds:.2f} s, but {claim} {seconds + missing:.2f} s. Export it again, or repeat "
            f"the transfer if the original is longer."
        )
    if missing > (0 if header.is_exact else NOTED_SECONDS):
        notes.append(f"missing end: it lacks {missing:.4f} s.")
    return Recording(decoded.wave, decoded.rate, decoded.mono_loss_db, tuple(notes))


def _edited(file: BinaryIO, edits: Sequence[Edit]) -> Any:
    """A view of a file with some bytes overwritten; the file itself does not change."""
    if isinstance(file, io.BytesIO):
        view: Any = io.BytesIO(file.getvalue())
        content: Any = view.getbuffer()
    else:
        view = content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for offset, new in edits:
        content[offset : offset + len(new)] = new
    return view


def _join(parts: list[Recording]) -> Recording:
    rate = parts[0].rate
    notes = [note for part in parts for note in part.notes]
    notes.append(f"joined files: it contains {len(parts)} files one behind the other, and all of them are used.")
    wave = np.concatenate([part.at(rate) for part in parts])
    return Recording(wave, rate, min(part.mono_loss_db for part in parts), tuple(dict.fromkeys(notes)))


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
