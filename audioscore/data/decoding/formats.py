"""Which files are recordings: formats that cannot refer to other files, the suffixes of such files, and folders."""

import contextlib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath

from audioscore.errors import shorten

# Names of FFmpeg's demuxers that read audio from one file. Others read playlists (hls, concat, dash), follow links
# (sdp, rtsp, imf), read a whole folder (image2), or have no header, so that they accept every file (s16le).
DEMUXERS = (
    "aac", "ac3", "ac4", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "au", "avi", "avr", "bonk", "caf", "dsf", "dss",
    "dts", "dtshd", "dv", "eac3", "epaf", "flac", "flv", "g722", "gsm", "gxf", "iamf", "iff", "ilbc", "ircam", "lc3",
    "loas", "matroska", "mlp", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "mxf", "nistsphere", "nsv", "nut", "ogg",
    "oma", "osq", "pvf", "qcp", "qoa", "rka", "rm", "shn", "sln", "sox", "tak", "truehd", "tta", "voc", "vqf", "w64",
    "wav", "wsd", "wtv", "wv", "xwma",
)  # fmt: skip

# The suffixes of these formats; a test compares them with FFmpeg's. Without those of images and subtitles in them.
SUFFIXES = frozenset({
    ".3g2", ".3ga", ".3gp", ".3gp2", ".3gpp", ".722", ".aa3", ".aac", ".ac3", ".ac4", ".adt", ".adts", ".afc", ".aif",
    ".aifc", ".aiff", ".aifr", ".amr", ".ape", ".apl", ".asf", ".au", ".avi", ".avr", ".awb", ".bonk", ".bwf", ".caf",
    ".dff", ".dif", ".divx", ".dsf", ".dss", ".dts", ".dtshd", ".dv", ".eac3", ".ec3", ".f4a", ".f4b", ".f4p", ".f4v",
    ".fap", ".flac", ".flv", ".g722", ".gsm", ".gxf", ".iamf", ".iff", ".ilbc", ".ircam", ".isma", ".ismv", ".latm",
    ".lbc", ".lc3", ".loas", ".m1a", ".m2a", ".m2t", ".m2ts", ".m4a", ".m4b", ".m4p", ".m4r", ".m4v", ".mac", ".mj2",
    ".mk3d", ".mka", ".mkv", ".mlp", ".mogg", ".mov", ".mp1", ".mp2", ".mp2t", ".mp3", ".mp4", ".mp4a", ".mp4v", ".mpa",
    ".mpc", ".mpe", ".mpeg", ".mpg", ".mpga", ".mts", ".mxf", ".nist", ".nsv", ".nut", ".oga", ".ogg", ".ogm", ".ogv",
    ".ogx", ".oma", ".omg", ".opus", ".osq", ".paf", ".psp", ".pvf", ".qcp", ".qoa", ".qt", ".ra", ".rf64", ".rka",
    ".rm", ".rmvb", ".sf", ".shn", ".sln", ".snd", ".sox", ".sph", ".spx", ".svx", ".tak", ".thd", ".tod", ".tp",
    ".trp", ".ts", ".tta", ".vob", ".voc", ".vqe", ".vqf", ".vql", ".vro", ".w64", ".wav", ".wave", ".weba", ".webm",
    ".wma", ".wmv", ".wsd", ".wtv", ".wv", ".xa", ".xwma",
})  # fmt: skip

# Files that usually accompany recordings: they are named last.
COMPANIONS = frozenset(
    {".csv", ".gif", ".jpeg", ".jpg", ".json", ".jsonl", ".lrc", ".md", ".png", ".tsv", ".txt", ".xlsx"}
)
# A file without a known suffix contains audio if its first packets give AUDIO_SECONDS: a few other files contain bytes
# that look like a short mp3.
AUDIO_SECONDS, MOST_PACKETS = 0.5, 500


def has_suffix(name: str) -> bool:
    """Whether a file or object has the suffix of a recording."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def has_audio(path: Path) -> bool:
    """Whether a file contains audio, whatever its suffix; only its start is read, and no other file is opened."""
    import av

    seconds = 0.0
    try:
        with path.open("rb") as file, av.open(file, options={"format_whitelist": ",".join(DEMUXERS)}) as container:
            for packet in islice(container.demux(audio=0), MOST_PACKETS):
                with contextlib.suppress(av.FFmpegError):  # as in decoding, a damaged packet is skipped
                    seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
                if seconds >= AUDIO_SECONDS:
                    return True
    except Exception:  # FFmpeg and PyAV raise many types for other files
        return False
    return False


def scan_folder(folder: Path) -> tuple[list[Path], list[str]]:
    """Find the recordings in a folder and its subfolders, sorted; the other names are of what is left out.

    A file with the suffix of a recording is one even if it is damaged, so that it is reported. Left out are hidden
    files and folders, folders that cannot be read, and other files without audio.
    """
    recordings: list[Path] = []
    others: list[str] = []
    visited: set[str] = set()
    tree = os.walk(folder, followlinks=True, onerror=lambda error: others.append(error.filename))
    for root, folders, names in tree:
        real = os.path.realpath(root)
        if real in visited:  # a circular link
            folders.clear()
            continue
        visited.add(real)
        others += [os.path.join(root, name) for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and (has_suffix(name) or (path.is_file() and has_audio(path))):
                recordings.append(path)
            else:
                others.append(str(path))
    return sorted(recordings), [os.path.relpath(name, folder) for name in others]


def describe_others(where: str, others: Iterable[str], recordings: int) -> str:
    """Describe in one sentence what is left out of a folder or prefix; ordinary companions are named last.

    >>> describe_others("songs", ["a.txt", "x.bin"], 3)
    'songs: 3 recordings; 2 left out, hidden or no recordings: x.bin, a.txt'
    """
    names = sorted(others, key=lambda name: (PurePosixPath(name).suffix.lower() in COMPANIONS, name))
    left_out = f"; {len(names)} left out, hidden or no recordings: {shorten(names)}" if names else ""
    return f"{where}: {recordings} recordings{left_out}"
