"""Decode one audio stream with FFmpeg: which stream, which packets may be lost, and channels to mono.

PyAV's resampler adds 3 dB when it mixes equal stereo channels, so channels are averaged here.
"""

import math
import re
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioscore.data.decoding.containers import TAGS, end_of_tags, id3_bytes, read_at
from audioscore.data.decoding.formats import DEMUXERS
from audioscore.errors import AudioError, shorten

if TYPE_CHECKING:
    import av

Wave = NDArray[np.float32]

SHORTFALL_SECONDS = 0.5  # a recording may lack as much at its ends, because of encoder delay, padding or a damaged end
EDGE_SECONDS = 0.1  # a decoder may return a delayed frame after a lost packet at the end
MAX_CHANNELS, MAX_PLANES = 8, 2
LOSS_FLOOR_DB = -120.0  # the value for channels that cancel completely, since JSON has no -inf
RATES = range(1_000, 1_000_001)  # Hz; a header with another rate is damaged

# Demuxers that read the length from a sample count or an index, and not from the bit rate; mp3 only with an index.
EXACT_LENGTH = frozenset({
    "aiff", "ape", "au", "caf", "dsf", "flac", "iff", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mp3",
    "mpc", "mpc8", "osq", "tak", "tta", "w64", "wav", "wv",
})  # fmt: skip
HAS_TAG = re.compile(b"|".join(TAGS))  # the last packet before a tag may contain it
DELAY_FRAMES = 2  # counted by the index of an MP3, but removed by the decoder
MPEG_VERSIONS = {3: 0, 2: 1, 0: 2}  # how often version 1, 2 or 2.5 halves the sample rate, by its bits in the header
WITH_HEADER = EXACT_LENGTH | {"asf", "avi", "flv", "voc"}  # a second header is a second file
# Demuxers that find packets by the pattern at their start, so that other bytes between them become packets as well.
WITHOUT_PACKETS = frozenset({"aac", "ac3", "adp", "dts", "eac3", "flac", "gsm", "loas", "mp3", "mpegaudio", "truehd"})


EXACT_TIMES = frozenset({"flac", "ogg"})  # timestamps count samples, so that a gap is a loss
LOSS_SECONDS, GAP_SECONDS = 0.02, 0.1  # gaps from which on they count, there and elsewhere


class DecodedStream(NamedTuple):
    """The samples of a stream, its rate in Hz, and the length in seconds that the file declares exactly, if it does.

    Shape: wave [T], mono. `mono_loss_db` and `notes` are those of a Recording. `end`: offset behind the
    last packet, 0 for formats without a header.
    """

    wave: Wave
    rate: int
    declared: float | None
    mono_loss_db: float
    notes: tuple[str, ...]
    end: int


class LostPacket(NamedTuple):
    """A packet that the decoder refused: samples decoded before it, its length in seconds, and the reason."""

    at: int
    seconds: float
    is_sound: bool
    reason: str


def decode_stream(file: str | BinaryIO, name: str, max_seconds: float, *, length: bool = True) -> DecodedStream:
    """Decode the audio stream of a file; `length`: whether the length that it declares is read.

    Packets that contain no sound are skipped, and so are damaged ones at the ends up to SHORTFALL_SECONDS. If more is
    lost, FFmpeg's other decoders of the codec are tried.

    Raises AudioError, whose message starts with `name`, if there is no audio stream, or sound is lost, or it is longer
    than `max_seconds`; and the errors of FFmpeg.
    """
    result = _decode(file, name, max_seconds, length, None)
    if isinstance(result, DecodedStream):
        return result
    for decoder in _other_decoders(file):
        other = _decode(file, name, max_seconds, length, decoder)
        if isinstance(other, DecodedStream):
            return other
    raise result


def _decode(
    file: str | BinaryIO, name: str, max_seconds: float, length: bool, decoder: str | None
) -> DecodedStream | AudioError:
    """The samples by one decoder, by default FFmpeg's own; an error is returned if that decoder loses sound."""
    mp3_seconds = _mp3_seconds(file) if length else None
    with _open(file) as container:
        stream, notes = _select_stream(container, name)
        if stream.codec_context is None:
            raise AudioError(f"{name}: its codec is not supported. Export it again, as m4a, mp3, flac or wav.")
        rate = int(stream.rate or stream.codec_context.sample_rate or 0)
        if rate not in RATES:
            raise AudioError(f"{name}: declares a sample rate of {rate} Hz. Export it again.")
        kind, size, declared = container.format.name, int(container.size), None
        if kind in EXACT_LENGTH and (length or stream.codec_context.name.startswith("pcm_")):
            declared = mp3_seconds if kind == "mp3" else _declared_seconds(container, stream)
        if declared is not None and declared > max_seconds:
            raise AudioError(f"{name}: is {declared:.0f} s long; at most {max_seconds:.0f} s are accepted. Cut it.")
        if not length:
            declared = None
        mixer = _Mixer(name, rate, max_seconds, LOSS_SECONDS if kind in EXACT_TIMES else GAP_SECONDS)
        context = stream.codec_context if decoder is None else _context(decoder, stream.codec_context)
        lost, end, error = _decode_packets(container, stream, context, mixer)
    sound = [one for one in lost if one.is_sound]
    edge = EDGE_SECONDS * rate
    inside = [one for one in sound if edge < one.at < mixer.samples - edge]
    if error is not None and (declared is None or mixer.samples / rate < declared - SHORTFALL_SECONDS):
        raise error
    if lost and not mixer.samples:
        return AudioError(f"{name}: cannot be decoded ({lost[0].reason}). Export it again, as m4a, mp3, flac or wav.")
    if inside or sum(one.seconds for one in sound) > SHORTFALL_SECONDS:
        first = (inside or sound)[0]
        return AudioError(
            f"{name}: {len(sound)} of its packets are damaged, the first at {first.at / rate:.2f} s ({first.reason}). "
            f"Export it again, or repeat the transfer."
        )
    if mixer.gaps and kind in EXACT_TIMES:
        return AudioError(f"{name}: {_gaps(mixer.gaps, rate)} are missing. Export it again, or repeat the transfer.")
    if error is not None:
        notes.append(f"unread data: {size - end} bytes behind its samples are not used.")
    if lost:
        times = shorten([f"{one.at / rate:.2f} s" for one in lost], 3)
        notes.append(f"skipped packets: {len(lost)} that the decoder refuses, at {times}.")
    if mixer.gaps and kind not in WITHOUT_PACKETS:
        notes.append(f"gaps: {_gaps(mixer.gaps, rate)} are missing; the parts are joined.")
    return DecodedStream(mixer.wave(), rate, declared, mixer.loss_db(), tuple(notes), end if kind in WITH_HEADER else 0)


def _gaps(gaps: list[tuple[int, float]], rate: int) -> str:
    seconds, times = sum(seconds for _, seconds in gaps), shorten([f"{at / rate:.2f} s" for at, _ in gaps], 3)
    return f"{seconds:.2f} s at {times}"


def _open(file: str | BinaryIO) -> Any:
    """Open a file with the demuxers that read one file: a playlist could refer to any file or address."""
    import av

    if not isinstance(file, str):
        file.seek(0)
    source = f"file:{file}" if isinstance(file, str) else file  # FFmpeg takes `12:30.wav` for an address
    return av.open(source, options={"format_whitelist": ",".join(DEMUXERS)})


def _select_stream(container: Any, name: str) -> tuple[Any, list[str]]:
    """The audio stream that is marked as the default one, else the first; a note if there are several."""
    import av

    streams = list(container.streams.audio)
    if not streams:
        raise AudioError(f"{name}: has no audio stream. Export the audio track.")
    marked = [one for one in streams if one.disposition & av.stream.Disposition.default]
    chosen = (marked or streams)[0]
    if len(streams) == 1:
        return chosen, []
    why = "marked as default" if marked else "the first"
    return chosen, [f"several streams: stream {streams.index(chosen) + 1} of {len(streams)} is used, {why}."]


def _declared_seconds(container: Any, stream: Any) -> float | None:
    if container.format.name == "matroska,webm":  # FFmpeg's duration is that of the longest track
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
        if tag:
            end = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
            return end - float((stream.start_time or 0) * stream.time_base)
        return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None


def _mp3_seconds(file: str | BinaryIO) -> float | None:
    """The length by the index in the first frame of an MP3, which FFmpeg ignores if the size of the file differs."""
    with open(file, "rb") if isinstance(file, str) else nullcontext(file) as opened:
        head = read_at(opened, end_of_tags(opened), 4096)
    sync = head.find(b"\xff")
    if sync < 0 or len(head) < sync + 200 or head[sync + 1] & 0xE6 != 0xE2:  # MPEG audio, layer III
        return None
    shift, rate = MPEG_VERSIONS.get(head[sync + 1] >> 3 & 3), head[sync + 2] >> 2 & 3
    found = re.compile(rb"(?:Xing|Info)...(.)(.{4})|VBRI.{9}(.)(.{4})", re.DOTALL).search(head, sync, sync + 200)
    if found is None or rate == 3 or shift is None or (found[1] is not None and not found[1][0] & 1):
        return None
    frame = 1152 if shift == 0 else 576
    samples = int.from_bytes(found[2] or found[4]) * frame
    return max(0, samples - DELAY_FRAMES * frame) / ((44_100, 48_000, 32_000)[rate] >> shift)


def _decode_packets(
    container: Any, stream: Any, context: Any, mixer: "_Mixer"
) -> tuple[list[LostPacket], int, "av.FFmpegError | None"]:
    """Decode packet by packet; return those that the decoder refuses, the offset of the end, and a container error."""
    import av

    patterns = container.format.name in WITHOUT_PACKETS
    lost: list[LostPacket] = []
    end = tag_end = skipped_end = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:
            return lost, end, error
        position = packet.pos or 0
        end = max(end, position + packet.size)
        if position < tag_end:  # a picture in a tag may look like packets
            skipped_end = position + packet.size
            continue
        try:
            mixer.add(context.decode(packet))
        except av.FFmpegError as error:
            content = bytes(packet)
            no_sound = patterns and (HAS_TAG.search(content) or not content.strip(b"\0") or position == skipped_end)
            if patterns and (at := content.find(b"ID3")) >= 0:
                tag_end = position + at + id3_bytes(content[at : at + 10].ljust(10, b"\0"))
            seconds = float((packet.duration or 0) * (packet.time_base or 0))
            lost.append(LostPacket(mixer.samples, seconds, not no_sound, error.strerror or type(error).__name__))
    mixer.finish()
    return lost, end, None


class _Mixer:
    """Averages the channels of frames, whose format, channels and rate may change within a file.

    `samples`: samples at `rate` so far. `gaps`: samples before, and seconds of, each time that timestamps leave out.
    """

    def __init__(self, name: str, rate: int, max_seconds: float, gap_seconds: float) -> None:
        self.samples = 0
        self.gaps: list[tuple[int, float]] = []
        self._gap_seconds = gap_seconds
        self._next: float | None = None  # the time at which the next frame should begin
        self._name, self._rate, self._most = name, rate, max_seconds * rate
        self._resampler: Any = None
        self._format: tuple[Any, ...] = ()
        self._chunks: list[Wave] = []
        self._kept = self._given = 0.0  # energy of the mean channel; mean energy of the channels

    def add(self, frames: Iterable[Any]) -> None:
        import av

        for frame in frames:
            channels = frame.layout.nb_channels
            if channels > MAX_CHANNELS:
                raise AudioError(
                    f"{self._name}: has {channels} channels; at most {MAX_CHANNELS} are accepted. Mix it down."
                )
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind != self._format:
                self.finish()
                # Frames that are in its format already pass through, which most codecs' are: planar. Interleaved for
                # more channels, because PyAV crashes on the planes of 8.
                planar = channels <= MAX_PLANES
                self._resampler = av.AudioResampler(format="fltp" if planar else "flt", rate=self._rate)
                self._format = kind
            expected = self._next
            begin = expected if frame.time is None else frame.time
            if begin is not None:
                if expected is not None and begin > expected + self._gap_seconds:
                    self.gaps.append((self.samples, begin - expected))
                self._next = begin + frame.samples / frame.sample_rate
            self._keep(self._resampler.resample(frame))
            if self.samples > self._most:
                most = self._most / self._rate
                raise AudioError(f"{self._name}: is longer than {most:.0f} s, the maximum. Cut it.")

    def finish(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))
            self._resampler = None

    def _keep(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            channels = frame.layout.nb_channels
            self.samples += frame.samples
            if channels == 1:
                self._chunks.append(np.frombuffer(frame.planes[0], dtype=np.float32, count=frame.samples).copy())
                continue
            if channels <= MAX_PLANES:
                samples = frame.to_ndarray()  # (channels, T)
            else:
                interleaved = np.frombuffer(frame.planes[0], dtype=np.float32, count=frame.samples * channels)
                samples = interleaved.reshape(-1, channels).T
            self._chunks.append(samples.mean(axis=0, dtype=np.float32))
            self._kept += float(np.square(self._chunks[-1], dtype=np.float64).sum())
            self._given += float(np.square(samples, dtype=np.float64).sum()) / channels

    def wave(self) -> Wave:
        wave = np.concatenate(self._chunks) if self._chunks else np.zeros(0, dtype=np.float32)
        return wave.astype(np.float32, copy=False)

    def loss_db(self) -> float:
        return loss_db(self._kept, self._given)


def _other_decoders(file: str | BinaryIO) -> list[str]:
    """FFmpeg's decoders from other libraries for the codec of a file."""
    import av

    with _open(file) as container:
        codec = _select_stream(container, "")[0].codec_context.codec
    names = sorted(name for name in av.codecs_available if name.startswith("lib") and name != codec.name)
    found = []
    for name in names:
        try:
            if av.Codec(name, "r").id == codec.id:
                found.append(name)
        except ValueError:  # an encoder
            continue
    return found


def _context(decoder: str, original: Any) -> Any:
    import av

    context = av.CodecContext.create(decoder, "r")
    context.extradata = original.extradata
    context.sample_rate, context.layout = original.sample_rate, original.layout
    return context


def loss_db(kept: float, given: float) -> float:
    """Return the energy of averaged channels relative to the mean energy of the channels, in dB.

    >>> loss_db(0.0, 0.0), loss_db(1.0, 2.0), loss_db(0.0, 1.0)
    (0.0, -3.01, -120.0)
    """
    if not (0 < given < math.inf):  # one channel, silence, or samples that are not finite
        return 0.0
    return max(LOSS_FLOOR_DB, round(10 * math.log10(max(kept / given, 1e-30)), 2))
