"""Recordings in the formats that FFmpeg and libsndfile write, whole and damaged, with the samples that they contain.

The reference is independent of PyAV: the programs `ffmpeg` (another version of FFmpeg) and libsndfile. Run the whole
with `make test-long`.
"""

import itertools
import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from audioscore.data.audio import decode
from audioscore.data.decoding.formats import DEMUXERS
from audioscore.errors import AudioError

Samples = NDArray[np.float32]

SECONDS = 2.0
LENGTH_SECONDS = 0.05  # allowed difference of lengths
EXACT = 1e-3  # allowed difference of lossless samples
ALIKE = 0.99  # least correlation of lossy samples
DELAY_SECONDS = 0.006  # by which lossy samples may be shifted
LOST_SECONDS = 0.5

# The muxers whose files are decoded: `decoding.formats.DEMUXERS`, and their names where these differ; without nut, in
# which versions of FFmpeg differ.
MUXERS = {
    *DEMUXERS, "3g2", "3gp", "adts", "asf_stream", "dvd", "f4v", "ipod", "latm", "mp2", "mp4", "oga", "ogv", "opus",
    "psp", "spx", "svcd", "vcd", "vob", "webm",
} - {"nut"}  # fmt: skip
# Telephone formats, raw streams without a pattern, and video formats: tried whole, without changes.
ONLY_WHOLE = re.compile(r"g722|gsm|gxf|ircam|mxf|nut|psp|rm|sox|svcd|vcd|dvd|vob|mpeg|dts|wtv|asf_stream")
# Formats without a length: after a cut, only an incomplete packet shows that the end is missing.
NO_LENGTH = re.compile(r"ac3|adts|amr|eac3|flv|latm|loas|mlp|mp2|mp3|mpegts|og[agv]|opus|spx|truehd|voc")


SUFFIXES = {"matroska": "mkv", "adts": "aac", "ipod": "m4a", "asf": "wma", "mpegts": "ts"}


class Case(NamedTuple):
    """A file, and what decoding it must give: `samples` [T] at `rate`, or a refusal.

    A "whole" or "changed" file must be decoded to its end. One that is "cut" may be refused, or be shorter with a note;
    "joined" files too. `exact`: the codec is lossless. `declares`: a missing end can be detected.
    """

    path: Path
    kind: Literal["whole", "cut", "changed", "joined", "refused"]
    samples: Samples
    rate: int
    exact: bool
    declares: bool = True


def voice(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> Samples:
    """Harmonics with vibrato and some noise, another amplitude in each channel. Shape: [T, channels]."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(220 * (1 + 0.2 * t / seconds + 0.006 * np.sin(2 * np.pi * 5.5 * t))) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 8) if k * 300 < rate / 2)
    wave = 0.2 * wave * (0.6 + 0.4 * np.sin(2 * np.pi * 1.3 * t))
    noise = np.random.default_rng(seed).standard_normal((len(t), channels))
    return np.asarray(wave[:, None] * np.linspace(1, 0.7, channels) + 0.002 * noise, dtype=np.float32)


@cache
def ffmpeg_names(option: str, pattern: str) -> tuple[str, ...]:
    """The muxers or encoders of the installed program."""
    listed = subprocess.run(["ffmpeg", "-hide_banner", option], capture_output=True, text=True, check=True).stdout
    return tuple(match[1] for line in listed.splitlines() if (match := re.match(pattern, line)))


def pairs() -> list[tuple[str, str]]:
    """Every muxer that writes one file, with every audio encoder."""
    muxers = [one for one in ffmpeg_names("-muxers", r"\s+E\s+([\w]+)\s") if one in MUXERS]
    encoders = ffmpeg_names("-encoders", r"\s+A\S{5}\s+(\w+)\s")
    raw = {"mp2": "mp2|libtwolame", "ac3": "ac3", "eac3": "eac3", "dts": "dca", "gsm": "libgsm", "g722": "g722"}
    raw |= {"truehd": "truehd", "mlp": "mlp"}
    return [
        (muxer, encoder)
        for muxer in muxers
        for encoder in encoders
        if re.match(raw.get(muxer, ""), encoder)  # raw muxers accept every encoder
    ]


def write_by_ffmpeg(path: Path, muxer: str, encoder: str, rate: int, channels: int, seconds: float = SECONDS) -> bool:
    """Write a voice; False if FFmpeg does not support the combination."""
    sound = voice(seconds, rate, channels)
    command = [
        *("ffmpeg", "-v", "error", "-y", "-f", "f32le", "-ar", str(rate), "-ac", str(channels), "-i", "pipe:"),
        *("-c:a", encoder, "-strict", "-2", "-f", muxer, str(path)),
    ]
    done = subprocess.run(command, input=sound.tobytes(), capture_output=True, timeout=60, check=False)
    return done.returncode == 0 and path.is_file() and path.stat().st_size > 100


def read_by_ffmpeg(path: Path) -> tuple[Samples, int] | None:
    """The mean of the channels and the rate, by the program; None if it cannot decode the file."""
    described = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "a:0", "-show_entries", "stream=sample_rate,channels", "-of",
         "csv=p=0", str(path)], capture_output=True, text=True, check=False,
    )  # fmt: skip
    fields = described.stdout.strip().splitlines()
    if not fields or not re.match(r"\d+,\d+", fields[0]):
        return None
    rate, channels = (int(field) for field in fields[0].split(",")[:2])
    if not rate or not channels:
        return None
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:a:0", "-f", "f32le", "-ac", str(channels), "-ar",
         str(rate), "pipe:"], capture_output=True, check=False,
    )  # fmt: skip
    samples = np.frombuffer(done.stdout[: len(done.stdout) // (4 * channels) * 4 * channels], dtype="<f4")
    return (samples.reshape(-1, channels).mean(axis=1), rate) if len(samples) else None


def written_by_ffmpeg(
    folder: Path, chosen: Sequence[tuple[str, str, int, int]], *, most: int | None = None
) -> Iterator[Case]:
    """Each supported combination (muxer, encoder, rate, channels), up to `most`: whole, and changed copies.

    If FFmpeg does not support the rate or the channels, others are used.
    """
    found = 0
    for number, (muxer, encoder, rate, channels) in enumerate(chosen):
        if found == most:
            return
        path = folder / f"{number}.{encoder}.{SUFFIXES.get(muxer, muxer)}"
        tried = ((rate, channels), (44_100, 1), (48_000, 1), (8_000, 1))
        tried = tried[channels > 2 and encoder == "truehd" :]  # later versions of FFmpeg do not decode these files
        if not any(write_by_ffmpeg(path, muxer, encoder, *one) for one in tried):
            continue
        reference = read_by_ffmpeg(path)
        if reference is None or abs(len(reference[0]) / reference[1] - SECONDS) > LOST_SECONDS:
            continue  # the muxer wrote what its demuxer does not read
        found += 1
        samples, rate = reference
        exact = encoder.startswith(("pcm_s", "pcm_u", "pcm_f", "flac", "alac", "tta", "wavpack"))
        declares = not NO_LENGTH.fullmatch(muxer)
        content = path.read_bytes()
        yield Case(path, "whole", samples, rate, exact)
        if ONLY_WHOLE.fullmatch(muxer):
            continue
        yield changed(path, "cut", content[: len(content) * 6 // 10], samples, rate, exact, declares)
        yield changed(path, "padded", content + bytes(4096), samples, rate, exact)
        yield changed(path, "tagged", ID3V2 + content + APE + ID3V1, samples, rate, exact)
        yield changed(path, "twice", content + content, np.tile(samples, 2), rate, exact)


PICTURE = b"\xff\xfb\x90\x64" * 300
ID3V2 = b"ID3\x04\x00\x00" + bytes([0, 0, len(PICTURE) >> 7, len(PICTURE) & 127]) + PICTURE
ID3V1 = b"TAG" + b"song".ljust(125, b"\0")
APE = (
    b"APETAGEX"
    + struct.pack("<IIII8x", 2000, 32, 0, 0xA0000000)
    + b"APETAGEX"
    + struct.pack("<IIII8x", 2000, 32, 0, 1 << 31)
)


def changed(
    path: Path, kind: str, content: bytes, samples: Samples, rate: int, exact: bool, declares: bool = True
) -> Case:
    """Write a changed copy of a file, with the same suffix."""
    target = path.with_name(f"{kind}.{path.name}")
    target.write_bytes(content)
    return Case(
        target, "cut" if kind == "cut" else "joined" if kind == "twice" else "changed", samples, rate, exact, declares
    )


FFMPEG_MISREADS = ("NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32", "G721_32")  # in wav
NOT_COMPARED = {
    ("VOC", "PCM_U8"),  # stores the rate in steps, which FFmpeg does not round
    *(("AU", name) for name in ("G721_32", "G723_24", "G723_40")),  # the decoders agree to a correlation of 0.95
}
SIZES = {  # of the samples, by container: the bytes in front of it, its format, and how many more bytes it counts
    "WAV": (b"data", "<I", 0),
    "RF64": (b"ds64" + bytes(12), "<Q", 0),
    "AIFF": (b"SSND", ">I", 8),
    "AU": (b".snd" + bytes(4), ">I", 0),
    "CAF": (b"data", ">q", 4),
    "W64": (bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), "<q", 24),
}


def written_by_libsndfile(folder: Path) -> Iterator[Case]:
    """Every container and sample format of libsndfile that FFmpeg reads."""
    for container, subtype, rate, channels in itertools.product(
        ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "VOC", "IRCAM", "NIST", "SVX", "PVF", "FLAC", "MP3"),
        soundfile.available_subtypes(),
        (8_000, 44_100),
        (1, 2),
    ):
        if not soundfile.check_format(container, subtype) or (container, subtype) in NOT_COMPARED:
            continue
        path = folder / f"{container}.{subtype}.{rate}.{channels}"
        try:
            soundfile.write(path, voice(SECONDS, rate, channels), rate, format=container, subtype=subtype)
            samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            continue
        exact = not re.search("ADPCM|G72|MPEG", subtype)
        case = Case(path, "whole", samples.mean(axis=1), rate, exact)
        refused = container == "WAV" and subtype in FFMPEG_MISREADS
        yield case._replace(kind="refused") if refused else case


def with_wrong_sizes(folder: Path) -> Iterator[Case]:
    """PCM containers whose size field is a placeholder or wrong, that lack bytes, or that stand behind each other."""
    for (container, (before, size, counted)), subtype in itertools.product(SIZES.items(), ("PCM_16", "FLOAT")):
        path = folder / f"size.{container}.{subtype}"
        soundfile.write(path, voice(SECONDS, 44_100), 44_100, format=container, subtype=subtype)
        samples, rate = soundfile.read(path, dtype="float32")
        content, width = path.read_bytes(), 2 if subtype == "PCM_16" else 4
        at = content.index(before[:4]) + len(before)
        true = len(samples) * width + counted
        unsigned = size[1] == "I"
        largest = 0x7FFF_FFFF if unsigned else -1 if size[1] == "q" else 2**64 - 1
        values = {"zero": counted, "none": 0, "max": largest, "header": true + 44, "half": true // 4 * 2}
        values |= {"short": true + 20_000 * width, "much": true + 88_200 * width}
        if unsigned:
            values |= {"ff": 0xFFFF_FFFF, "80": 0x8000_0000}
        for name, value in values.items():
            new = content[:at] + struct.pack(size, value) + content[at + struct.calcsize(size) :]
            yield changed(path, "cut" if name == "much" else name, new, samples, rate, True)
        yield changed(path, "cut", content[:-60_000], samples, rate, True)
        yield changed(path, "cut a little", content[:-1_000], samples[: -1_000 // width], rate, True)
        yield changed(path, "twice", content + content, np.tile(samples, 2), rate, True)
        yield changed(path, "tag in front", ID3V2 + content, samples, rate, True)
        yield changed(path, "padded", content + bytes(4096), samples, rate, True)


def with_wide_samples(folder: Path) -> Iterator[Case]:
    """Wav and caf files whose samples have fewer valid bits than their containers."""
    for valid, width, channels, extensible in itertools.product(
        (8, 12, 16, 20, 24), (16, 24, 32), (1, 2), (True, False)
    ):
        if valid > width or (not extensible and valid != 24):  # libsndfile takes the width from the valid bits there
            continue
        rate = 44_100
        values = np.round(voice(SECONDS, rate, channels).astype(float) * 2 ** (valid - 1)).astype("<i4") << (32 - valid)
        data = values.reshape(-1, 1).view("u1")[:, 4 - width // 8 :].tobytes()
        align = channels * width // 8
        fmt = struct.pack(
            "<HHIIHH", 0xFFFE if extensible else 1, channels, rate, rate * align, align, width if extensible else valid
        )
        if extensible:
            fmt += struct.pack("<HHIH", 22, valid, 3 if channels == 2 else 4, 1) + bytes.fromhex(
                "000000001000800000aa00389b71"
            )
        body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data)) + data
        path = folder / f"wide.{valid}.{width}.{channels}.{extensible}.wav"
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
        yield from _by_libsndfile(path)
        desc = struct.pack(">d4sIIIII", rate, b"lpcm", 2, align, 1, channels, valid)
        caf = (
            b"caff\0\1\0\0desc"
            + struct.pack(">q", 32)
            + desc
            + b"data"
            + struct.pack(">q", len(data) + 4)
            + bytes(4)
            + data
        )
        path = path.with_suffix(".caf")
        if extensible:
            path.write_bytes(caf)
            yield from _by_libsndfile(path)


def _by_libsndfile(path: Path) -> Iterator[Case]:
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return
    yield Case(path, "whole", samples.mean(axis=1), rate, True)


def find_problem(case: Case) -> str | None:
    """Decode a file, and return what is wrong with the result."""
    try:
        got = decode(case.path)
    except AudioError as error:
        if not str(error).startswith(f"{case.path}: "):
            return f"the message does not name the file: {error}"
        return f"refused: {error}" if case.kind in ("whole", "changed") else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if case.kind == "refused":
        return "not refused"
    samples = case.samples
    if got.rate != case.rate:
        return f"{got.rate} Hz in place of {case.rate}"
    if case.kind == "cut" and not case.declares:
        reference = read_by_ffmpeg(case.path)
        samples = samples if reference is None else reference[0]
    lost = (len(samples) - len(got.wave)) / case.rate
    if lost > LOST_SECONDS and (case.kind in ("whole", "changed") or not got.notes):
        return f"{lost:.2f} s of {len(samples) / case.rate:.2f} s are lost ({got.notes})"
    allowed = 2 * LENGTH_SECONDS if case.kind == "joined" else LENGTH_SECONDS
    if abs(lost) > allowed and (not got.notes or case.kind == "whole"):
        joined = read_by_ffmpeg(case.path) if case.kind == "joined" else None
        if joined is None or len(joined[0]) != len(got.wave):  # FFmpeg too may repeat a codec's delay between two files
            return f"{lost:+.3f} s lost of {len(samples) / case.rate:.2f} s"
    n = min(len(samples), len(got.wave))
    if case.kind == "joined" and not case.exact:
        n = len(samples) // 2 - round(LENGTH_SECONDS * case.rate)  # the codec's delay shifts the second
    if case.exact:
        difference = float(np.abs(samples[:n] - got.wave[:n]).max())
        return f"samples differ by {difference:.4f}" if difference > EXACT else None
    # Versions of FFmpeg remove the delay of a codec by different rules, for example of Opus in Matroska.
    most = round(DELAY_SECONDS * case.rate)
    shifts = sorted(range(-most, most + 1), key=abs)
    found = (_correlation(samples[max(0, -shift) : n], got.wave[max(0, shift) : n]) for shift in shifts)
    return None if any(alike >= ALIKE for alike in found) else f"correlation below {ALIKE} at every shift"


def _correlation(first: Samples, second: Samples) -> float:
    n = min(len(first), len(second))
    return float(np.corrcoef(first[:n], second[:n])[0, 1])
