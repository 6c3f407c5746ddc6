"""Sizes and sample formats that PCM containers declare: wav, rf64, w64, aiff, caf and au.

FFmpeg does not report samples that a file lacks, does not read samples behind the declared end, and derives the width
of samples from the number of valid bits. `inspect_container` finds such differences and the corrections of the header.
"""

import io
import struct
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # metadata in front of, behind or between files, not sound
METADATA = {b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"cue ", b"PEAK", b"JUNK", b"info", b"free"}  # chunks

MISREAD = {0x0038: "NMS ADPCM", 0x0040: "G.721 ADPCM"}  # format tags of wav that FFmpeg reads as AMR and as big-endian

PADDING = 1024  # bytes; fewer zeros may be the end of a packet
# How mp3, aac and ac3 frames, amr, flac and mpegts begin: formats in which zeros at the end cannot be samples.
WITHOUT_END = (b"\xff", b"\x0b\x77", b"ID3", b"#!AMR", b"fLaC", b"G")

Edit = tuple[int, bytes]  # offset, and the bytes to write there


class Layout(NamedTuple):
    """How a container stores its chunks.

    `unknown`: sizes from this one on are placeholders, which programs that write to a pipe leave. `before`: bytes of
    the data chunk in front of the samples.
    """

    first: int
    id_bytes: int
    size: str
    unknown: int
    data: bytes
    format: bytes
    before: int = 0
    counts_header: bool = False
    align: int = 2


W64_FORMAT, W64_DATA = (name + bytes.fromhex("f3acd3118cd100c04f8edb8a") for name in (b"fmt ", b"data"))
MAX_CHUNKS = 10_000
AMR = b"#!AMR"
OGG_PAGE = 65_307  # bytes at most
ASF_HEADER, ASF_PROPERTIES = bytes.fromhex("3026b275"), bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
WAV = Layout(12, 4, "<I", 0x7FFF_0000, b"data", b"fmt ")
AIFF = Layout(12, 4, ">I", 0x7FFF_0000, b"SSND", b"COMM", before=8)
AU = Layout(12, 0, ">I", 0x7FFF_0000, b"", b"none")
LAYOUTS = {
    (b"RIFF", b"WAVE"): WAV,
    (b"RF64", b"WAVE"): WAV,
    (b"BW64", b"WAVE"): WAV,
    (b"RIFX", b"WAVE"): WAV._replace(size=">I"),
    (b"FORM", b"AIFF"): AIFF,
    (b"FORM", b"AIFC"): AIFF,
    (b"caff", b""): Layout(8, 4, ">q", 1 << 62, b"data", b"desc", before=4, align=1),
    (b"riff", b""): Layout(40, 16, "<q", 1 << 62, W64_DATA, W64_FORMAT, counts_header=True, align=8),
    (b".snd", b""): AU,
}


class Chunk(NamedTuple):
    """A chunk: where its size is stored and in which format, its first byte after the header, and its size."""

    id: bytes
    field: int
    format: str
    start: int
    size: int


@dataclass(frozen=True)
class Container:
    """The differences between a file and its header, and what FFmpeg must not read, in bytes.

    `present`: samples in the file, `missing`: samples that it should have beyond its end, `added`: samples of `present`
    that only the corrected header declares, `unread`: bytes behind the last chunk that are not read, `padding`: zeros
    at the end. `next_file`: offset of another file of the same format, behind this one. `end`: where to stop, if FFmpeg
    would read on. `edits`: corrections of the header. `misread`: name of the codec, if FFmpeg decodes it wrongly.
    `is_exact`: these sizes, not the length that FFmpeg derives, determine whether sound is missing. `is_ogg`: the last
    page is incomplete. `open_end`: the last page is not marked as the last.
    """

    present: int = 0
    missing: int = 0
    added: int = 0
    unread: int = 0
    padding: int = 0
    next_file: int | None = None
    end: int | None = None
    edits: tuple[Edit, ...] = ()
    misread: str | None = None
    is_exact: bool = False
    is_ogg: bool = False
    open_end: bool = False


def inspect_container(file: BinaryIO) -> Container:
    """Compare a file with its header: the samples of PCM containers, the size of avi, iff, wma and Ogg files."""
    end = file.seek(0, io.SEEK_END)
    head = read_at(file, 0, 12)
    magic = head[:4]
    layout = LAYOUTS.get((magic, head[8:])) or LAYOUTS.get((magic, b""))
    found = _inspect_pcm(file, head, end, layout) if layout is not None and len(head) == 12 else None
    if found is not None:
        return found
    content_end = _end_of_content(file) if head.startswith(WITHOUT_END) else end
    if end - content_end >= PADDING:
        return replace(_inspect_other(file, head, content_end), end=content_end, padding=end - content_end)
    return _inspect_other(file, head, end)


def _inspect_other(file: BinaryIO, head: bytes, end: int) -> Container:
    if head[:4] == b"OggS":
        return _inspect_ogg(file, end)
    if head[:5] == AMR:
        at = read_at(file, len(AMR), end).find(AMR)
        return Container(next_file=None if at < 0 else at + len(AMR))
    missing = _declared_bytes(file, head) - end
    return Container(end, missing, is_exact=True) if missing > 0 else Container()


def _inspect_pcm(file: BinaryIO, head: bytes, end: int, layout: Layout) -> Container | None:
    """The samples of a PCM container; None without a data chunk."""
    magic = head[:4]
    if layout is AU:
        offset, size = struct.unpack(">II", head[4:])
        chunks = [Chunk(AU.data, 8, AU.size, offset, size)]
    else:
        chunks = _chunks(file, layout.first, end, magic, layout)
    data = [chunk for chunk in chunks if chunk.id == layout.data]
    if not data:
        return None
    formats = [chunk for chunk in chunks if chunk.id == layout.format]
    edits = [edit for chunk in formats for edit in _width_edits(file, chunk, layout)]
    # PyAV frees the memory of an unusual channel order twice; the order has no effect on the mean.
    edits += [(chunk.field - layout.id_bytes, b"free") for chunk in chunks if chunk.id == b"chan"]
    if layout is AIFF:
        edits += _aiff_edits(file, formats, data[0], end)
    tag = struct.unpack("<H", read_at(file, formats[0].start, 2))[0] if formats and layout is WAV else 0
    last = chunks[-1]
    stop = last.start + last.size
    others = sum(chunk.size for chunk in data[1:])
    edits += [(chunk.field - layout.id_bytes, b"junk") for chunk in data[1:] if layout is WAV]  # the first one is used
    present = data[0].size - layout.before
    found = Container(present, unread=others, edits=tuple(edits), misread=MISREAD.get(tag), is_exact=True)
    to_end = replace(
        found, present=found.present - last.size + end - last.start, edits=(*edits, _size_edit(last, end, layout))
    )
    if last.size < 0 or stop > end:
        if last is not data[0]:  # metadata that was cut off
            return found
        return to_end if last.size < 0 or last.size >= layout.unknown else replace(to_end, missing=stop - end)
    stop += _padding(file, stop, layout)
    behind = read_at(file, stop, 12)
    if behind[:4] == magic and LAYOUTS.get((magic, behind[8:]), layout) is layout:
        return replace(found, next_file=stop)
    if behind.startswith(TAGS) or _all_zero(file, stop):
        return replace(found, end=stop) if layout is AU and stop < end else found
    if last is not data[0]:
        return replace(found, unread=others + end - stop)
    return replace(to_end, added=0 if last.size <= layout.before else end - stop)  # an empty chunk is a placeholder


def _inspect_ogg(file: BinaryIO, end: int) -> Container:
    """Whether the last page of an Ogg file is complete, and marked as the last."""
    start = max(0, end - 2 * OGG_PAGE)
    tail = read_at(file, start, end - start)
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return Container()
    segments = tail[at + 26]
    if len(tail) < at + 27 + segments + sum(tail[at + 27 : at + 27 + segments]):
        return Container(max(1, start + at), len(tail) - at, is_exact=True, is_ogg=True)
    return Container(open_end=not tail[at + 5] & 4)


def _declared_bytes(file: BinaryIO, head: bytes) -> int:
    """The size that an avi, iff or asf (wma) file declares for itself, 0 if none."""
    if head[:4] in (b"RIFF", b"FORM") and len(head) == 12:
        (size,) = struct.unpack("<I" if head[:4] == b"RIFF" else ">I", head[4:8])
        return size + 8 if size < WAV.unknown else 0
    if head[:4] == ASF_HEADER:
        start = read_at(file, 0, 4096)
        at = start.find(ASF_PROPERTIES) + 40
        if at > 40 and len(start) >= at + 8:
            return int.from_bytes(start[at : at + 8], "little")
    return 0


def id3_bytes(head: bytes) -> int:
    """Return the size of an ID3v2 tag with header and footer, from its first 10 bytes.

    >>> id3_bytes(b"ID3\\x04\\x00\\x00\\x00\\x00\\x01\\x00")
    138
    """
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _end_of_content(file: BinaryIO) -> int:
    """The offset of the zeros that fill the end of a file."""
    position = file.seek(0, io.SEEK_END)
    while position:
        start = max(0, position - (1 << 16))
        block = read_at(file, start, position - start).rstrip(b"\0")
        position = start + len(block)
        if block:
            break
    return position


def find_second_file(file: BinaryIO, start: int) -> int | None:
    """Return the offset of another file of the same format: of the first 8 bytes, repeated at or behind `start`."""
    magic = read_at(file, 0, 8)
    if len(set(magic)) < 4:
        return None
    found = read_at(file, start, -1).find(magic)
    return None if found < 0 else start + found


def end_of_tags(file: BinaryIO) -> int:
    """Return the offset behind the ID3v2 tags in front of a file."""
    start = 0
    while len(head := read_at(file, start, 10)) == 10 and head[:3] == b"ID3":
        start += id3_bytes(head)
    return start


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return up to `size` bytes at an offset."""
    file.seek(offset)
    return file.read(size)


def _all_zero(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    return not any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b""))


def _padding(file: BinaryIO, offset: int, layout: Layout) -> int:
    """How many bytes align the next chunk; some programs omit the byte behind an odd size."""
    padding = -offset % layout.align
    return padding if not read_at(file, offset, padding).strip(b"\0") else 0


def _chunks(file: BinaryIO, position: int, end: int, magic: bytes, layout: Layout) -> list[Chunk]:
    """The chunks, up to bytes that are not a chunk, or to a data or metadata chunk that exceeds the file."""
    chunks: list[Chunk] = []
    header = layout.id_bytes + struct.calcsize(layout.size)
    large: tuple[int, int] | None = None  # where an RF64 file stores the size of its data chunk, and that size
    while position + header <= end and len(chunks) < MAX_CHUNKS:
        head = read_at(file, position, header)
        name, start = head[: layout.id_bytes], position + header
        (size,) = struct.unpack(layout.size, head[layout.id_bytes :])
        chunk = Chunk(name, position + layout.id_bytes, layout.size, start, size - header * layout.counts_header)
        if name == b"ds64":
            large = start + 8, struct.unpack("<Q", read_at(file, start + 8, 8).ljust(8, b"\0"))[0]
        if name == layout.data and large and size == 0xFFFF_FFFF:
            chunk = Chunk(name, large[0], "<Q", start, -1 if large[1] >= 1 << 62 else large[1])
        if name[:4] == magic:  # another file
            break
        fits = 0 <= chunk.size <= end - start
        if fits and not (name[:4].isascii() and name[:4].decode().isprintable()):
            break
        if not fits and name != layout.data and name not in METADATA:
            break
        chunks.append(chunk)
        if not fits:
            break
        position = start + chunk.size
        position += _padding(file, position, layout)
    return chunks


def _size_edit(chunk: Chunk, end: int, layout: Layout) -> Edit:
    """The correction of a size field: the chunk ends with the file."""
    size = end - chunk.start + (chunk.start - chunk.field + layout.id_bytes) * layout.counts_header
    if chunk.format[1] == "I":
        size = min(size, 0xFFFF_FFFF)
    return chunk.field, struct.pack(chunk.format, size)


def _aiff_edits(file: BinaryIO, formats: list[Chunk], data: Chunk, end: int) -> list[Edit]:
    """Corrections of the size of the file and of a placeholder for the number of samples."""
    edits = (
        [] if read_at(file, 4, 4) == struct.pack(">I", end - 8) else [(4, struct.pack(">I", min(end - 8, 2**32 - 1)))]
    )
    if formats:
        channels, frames, bits = struct.unpack(">HIH", read_at(file, formats[0].start, 8).ljust(8, b"\0"))
        if channels and bits and not 0 < frames < AIFF.unknown:
            frames = (min(data.start + data.size, end) - data.start - AIFF.before) // (channels * -(-bits // 8))
            edits.append((formats[0].start + 2, struct.pack(">I", max(0, frames))))
    return edits


def _width_edits(file: BinaryIO, chunk: Chunk, layout: Layout) -> list[Edit]:
    """Corrections of the sample width, for integers whose containers are wider than their valid bits.

    The valid bits are the upper ones, so the samples are those of the wider format.
    """
    fields = read_at(file, chunk.start, min(chunk.size, 40))
    if layout.format == b"desc" and len(fields) == 32:
        kind, flags, align, _, channels, bits = struct.unpack(">4sIIIII", fields[8:])
        integer, at, packed = kind == b"lpcm" and not flags & 1, [28], ">I"
    elif layout.format in (b"fmt ", W64_FORMAT) and len(fields) >= 16 and layout.size[0] == "<":
        tag, channels, _, _, align, bits = struct.unpack("<HHIIHH", fields[:16])
        at, packed = [14], "<H"
        if tag == 0xFFFE and len(fields) >= 40:
            bits, (tag,), at = (
                struct.unpack("<H", fields[18:20])[0] or bits,
                struct.unpack("<H", fields[24:26]),
                [14, 18],
            )
        integer = tag == 1
    else:
        return []
    width = 8 * align // max(channels, 1)
    if not integer or width not in (16, 24, 32) or -(-bits // 8) * 8 == width:
        return []
    return [(chunk.start + offset, struct.pack(packed, width)) for offset in at]
