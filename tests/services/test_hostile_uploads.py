"""Hostile uploads: each gets the right response quickly, and the next valid recording is scored as before."""

import contextlib
import io
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest

from audioscore import load_scorer
from audioscore.data.audio import encode
from benchmarks.serving import RunningService, make_scorer, multipart

pytestmark = pytest.mark.services

MEGABYTES, MINUTES, RATE = 4, 2, 24_000


class ServiceUnderTest(NamedTuple):
    served: RunningService
    good: tuple[str, bytes]
    score: float


def sung(seconds: float) -> Any:
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * (220 * time + 0.3 * np.sin(2 * np.pi * 5 * time))
    return np.asarray(sum(0.05 * np.sin(k * phase) / k for k in range(1, 12)), dtype=np.float32)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceUnderTest]:
    """A service with small limits, a valid recording, and the score of the same scorer without the service."""
    folder = tmp_path_factory.mktemp("hostile")
    model = make_scorer(folder / "scorer")
    encode(sung(2.5), RATE, folder / "good.wav", codec="pcm_s16le")
    limits = ["--max-megabytes", str(MEGABYTES), "--max-minutes", str(MINUTES)]
    with RunningService(str(model), folder / "log", *limits) as served:
        expected = load_scorer(model, device="cpu").score(folder / "good.wav").score
        yield ServiceUnderTest(served.ready(), ("good.wav", (folder / "good.wav").read_bytes()), expected)


@pytest.fixture(autouse=True)
def _valid_recordings_are_still_scored(service: ServiceUnderTest) -> Iterator[None]:
    yield
    status, document = service.served.score(service.good)
    assert status == 200
    assert document["results"][0]["score"] == pytest.approx(service.score, abs=1e-4)


def wav(rate: int, channels: int, samples: bytes, *, bits: int = 16, kind: int = 1, size: int | None = None) -> bytes:
    """A wav file with any header."""
    block = channels * bits // 8
    chunk = struct.pack("<HHIIHH", kind, channels, rate, (rate * block) & 0xFFFFFFFF, block & 0xFFFF, bits)
    declared = len(samples) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", len(chunk)) + chunk + b"data" + struct.pack("<I", declared) + samples
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def silence(seconds: int, rate: int) -> bytes:
    """A flac file of silence."""
    written = io.BytesIO()
    with av.open(written, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        stream.codec_context.options = {"frame_size": "65535"}
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4608), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = rate
        for _ in range(seconds * rate // 4608):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def fake_flac(rate: int, channels: int, samples: int) -> bytes:
    """A flac file with a header and no frames."""
    packed = (rate << 44) | ((channels - 1) << 41) | (15 << 36) | samples
    info = struct.pack(">HH", 65535, 65535) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC" + b"\x80" + len(info).to_bytes(3, "big") + info + b"\xff\xf8" + bytes(400)


def raw(service: ServiceUnderTest, sent: bytes, *, wait: float = 60.0) -> tuple[int, dict[str, Any]]:
    """Status and document of the response to raw bytes."""
    with socket.create_connection(("127.0.0.1", service.served.port), timeout=wait) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all bytes were sent
            connection.sendall(sent)
        return read_response(connection)


def read_response(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    received = b""
    while b"\r\n\r\n" not in received:
        block = connection.recv(65536)
        assert block, received
        received += block
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(one.split(b":")[1]) for one in head.split(b"\r\n") if one.lower().startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), json.loads(body)


def head(length: int | None, kind: str = "multipart/form-data; boundary=b", more: str = "") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{size}\r\n{more}\r\n".encode()


def test_unusable_recordings_get_an_error(service: ServiceUnderTest) -> None:
    count = RATE * 2
    noise = (np.random.default_rng(1).normal(0, 3000, count)).astype("<i2").tobytes()
    files: dict[str, tuple[bytes, str]] = {
        "hours of silence": (silence(3 * 3600, 8000), r"10800 s .*120 s"),
        "an hour at most rate": (fake_flac(655_350, 8, 2**36 - 1), r"104859 s"),
        "text.mp3": (b"I am no song. " * 1000, r"decode"),
        "nothing.wav": (b"", r"empty"),
        "nan.wav": (wav(RATE, 1, np.full(count, np.nan, "<f4").tobytes(), bits=32, kind=3), r"NaN"),
        "huge.wav": (wav(RATE, 1, np.full(count, 1e30, "<f4").tobytes(), bits=32, kind=3), r"1e\+30"),
        "1hz.wav": (wav(1, 1, noise), r"1 Hz|decode|longer"),
        "4ghz.wav": (wav(2**32 - 1, 1, noise), r"Hz|decode"),
        "0hz.wav": (wav(0, 1, noise), r"Hz|decode"),
        "1000 channels": (wav(RATE, 1000, noise), r"decode|no audio|short"),
        "9 channels": (wav(RATE, 9, noise[: count // 9 * 18]), r"9 channels.* 8 "),
        "65535 channels": (wav(RATE, 65535, noise), r"decode|no audio"),
        "4 GB.wav": (wav(RATE, 1, noise, size=0x7000_0000), r"\d\.\d\d s.* \d{5}\.\d\d s"),
        "cut.wav": (wav(RATE, 1, noise)[: -count], r"1\.00 s.* 2\.00 s"),
        "rails.wav": (wav(RATE, 1, (np.arange(count) // 50 % 2 * 65535 - 32768).astype("<i2").tobytes()), r"clip|rail"),
        "hiss.wav": (wav(RATE, 1, noise), r"pitch|voice|sing"),
        "zip": (b"PK\x03\x04" + bytes(5000), r"decode"),
        "gzip": (b"\x1f\x8b\x08" + bytes(5000), r"decode"),
        "nested": (multipart([service.good], "inner")[0], r"decode"),
        "png": (b"\x89PNG\r\n\x1a\n" + bytes(3000), r"decode|no audio"),
    }  # fmt: skip
    status, document = service.served.score(*((name, data) for name, (data, _) in files.items()))
    assert status == 200
    rows = document["results"]
    assert [row["file"] for row in rows] == list(files)
    unexpected = [
        (row["file"], row["error"])
        for row, (_, message) in zip(rows, files.values(), strict=True)
        if row["score"] is not None or not re.search(message, row["error"]) or "/tmp" in row["error"]
    ]
    assert unexpected == []


def test_playlists_and_links_are_not_followed(service: ServiceUnderTest, tmp_path: Path) -> None:
    """A playlist must not make the service open a local file or a connection."""
    (tmp_path / "secret.wav").write_bytes(service.good[1])
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        to, secret = f"http://127.0.0.1:{trap.getsockname()[1]}/a.wav", f"file://{tmp_path}/secret.wav"
        lists = [
            *(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{one}\n#EXT-X-ENDLIST\n" for one in (to, secret)),
            *(f"ffconcat version 1.0\nfile '{one}'\n" for one in (to, secret, tmp_path / "secret.wav")),
            f"v=0\nc=IN IP4 127.0.0.1\nm=audio {trap.getsockname()[1]} RTP/AVP 0\n",
            *(
                "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
                "mediaPresentationDuration='PT3S'><Period><AdaptationSet mimeType='audio/mp4'><Representation id='1'>"
                f"<BaseURL>{one}</BaseURL></Representation></AdaptationSet></Period></MPD>"
                for one in (to, secret)
            ),
            *(f"[playlist]\nFile1={one}\nNumberOfEntries=1\n" for one in (to, secret)),
        ]
        names = ("a.m3u8", "b.m3u8", "c.ffconcat", "d.ffconcat", "e.ffconcat", "f.sdp", "g.mpd", "h.mpd", "i.pls", "j")
        status, document = service.served.score(*zip(names, (one.encode() for one in lists), strict=True))
        assert status == 200
        for row in document["results"]:
            assert row["score"] is None, row
            assert row["error"], row
        with pytest.raises(TimeoutError):
            trap.accept()


def test_file_names_are_shortened_and_have_no_path(service: ServiceUnderTest) -> None:
    given = {
        "../../../../etc/passwd": "passwd",
        "C:\\windows\\win.ini": "win.ini",
        "": "recording 3",
        "/": "recording 4",
        "x" * 3000 + ".wav": "x" * 200,
        "a\tb\x00c\x1b[31m.wav": "abc[31m.wav",
        "歌.wav": "歌.wav",
        "$(reboot).wav": "$(reboot).wav",
    }
    status, document = service.served.score(*((name, service.good[1]) for name in given))
    assert status == 200
    assert [row["file"] for row in document["results"]] == list(given.values())
    for row in document["results"]:
        assert row["score"] == pytest.approx(service.score, abs=1e-4)


def test_malformed_forms_are_refused(service: ServiceUnderTest) -> None:
    body, kind = multipart([service.good], "b")
    request = service.served.get
    json_kind = {"Content-Type": "application/json"}
    for headers, sent, status, message in (
        (json_kind, b'{"file": 1}', 415, "application/json"),
        ({}, b"", 415, "content type"),
        ({"Content-Type": "multipart/form-data"}, body, 400, "boundary"),
        ({"Content-Type": "multipart/form-data; boundary=" + "x" * 300}, body, 400, "malformed"),
        ({"Content-Type": kind.replace("=b", "=c")}, body, 400, "malformed"),
        ({"Content-Type": kind}, body[:-8], 400, "last boundary"),
        ({"Content-Type": kind}, b"", 400, "last boundary"),
        ({"Content-Type": kind}, b"--b--\r\n", 400, "no recording"),
        ({"Content-Type": kind}, multipart([("", b"")], "b")[0], 400, "no recording"),
        ({"Content-Type": kind}, body.replace(b'name="file"', b'name="flie"'), 400, "'flie'"),
        ({"Content-Type": kind}, body.replace(b'name="file"; ', b""), 400, "without a name"),
        ({"Content-Type": kind}, body.replace(b"form-data;", b"form-data;" + b" " * 200_000), 400, "malformed"),
        ({"Content-Type": kind, "Content-Encoding": "gzip"}, b"\x1f\x8b\x08" + bytes(99), 400, "malformed"),
    ):
        found, _, text = request("/score", method="POST", body=sent, headers=headers)
        assert (found, message in json.loads(text)["error"]) == (status, True), (headers, found, text)
    assert request("/score?timeline=perhaps", method="POST")[0] == 400
    assert request("/score")[0] == 405
    assert request("/../../etc/passwd")[0] == 404
    assert request("/page/..%2f..%2fapp.py")[0] == 404


def test_too_large_requests_are_refused_before_they_are_stored(service: ServiceUnderTest) -> None:
    ten_thousand = multipart([("a.wav", b"RIFF")] * 10_000)
    too_many = head(len(ten_thousand[0]), ten_thousand[1]) + ten_thousand[0]
    begun = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    endless = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [begun, *[bytes(1 << 20)] * 5])
    huge = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"y" * (5 << 20)
    for sent, status, named in (
        (too_many, 413, "32 recordings"),
        (head(10 << 30), 413, "4 MiB"),
        (head(None) + endless, 413, "4 MiB"),
        (huge, 431, "headers"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "HTTP/1.1"),
        (head(5, more="Content-Length: 6\r\n") + b"hello!", 400, ""),
    ):
        found, document = raw(service, sent)
        assert (found, named in document["error"]) == (status, True), document


def test_slow_clients_time_out(service: ServiceUnderTest) -> None:
    """One client sends its header slowly, one its body, one sends no data, one disconnects."""
    connections = [socket.create_connection(("127.0.0.1", service.served.port), timeout=60) for _ in range(4)]
    started = time.monotonic()
    connections[0].sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    connections[1].sendall(head(100_000) + b"--b\r\n")
    connections[3].sendall(head(100_000) + b"--b\r\n")
    connections[3].close()
    responses: dict[int, tuple[int, dict[str, Any]]] = {}
    while len(responses) < 3 and time.monotonic() - started < 50:
        for number in {0, 1, 2} - set(responses):
            try:
                if number < 2:
                    connections[number].sendall(b"y")
                connections[number].settimeout(0.5)
                responses[number] = read_response(connections[number])
            except TimeoutError:
                continue
    for connection in connections:
        connection.close()
    assert {number: status for number, (status, _) in responses.items()} == {0: 408, 1: 408, 2: 408}
    assert "10 s" in responses[0][1]["error"]
    assert "20 s" in responses[1][1]["error"]
    assert json.loads(service.served.get("/healthz")[2]) == {"status": "ok"}
    figures = service.served.get("/metrics")[2].decode()
    assert "audioscore_in_flight_requests 0.0" in figures
