import base64
import gzip
import hashlib
import json
import random
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from audioscore.data.transfer.http import download_http, new_session
from audioscore.data.transfer.network import redact
from audioscore.errors import AudioError, ServerUnreachable, UsageError

BODY = random.Random(1).randbytes(300_000)


def get(url: str, folder: Path, **options: Any) -> bytes:
    """Download the file, check that the folder holds nothing else, and return its content."""
    download_http(url, folder / "file.m4a", partial=folder / "file.m4a.part", **options)
    assert [path.name for path in folder.iterdir()] == ["file.m4a"]
    return (folder / "file.m4a").read_bytes()


def refused(url: str, folder: Path, details: str = "", *, kind: type[AudioError] = AudioError, **options: Any) -> None:
    with pytest.raises(AudioError, match=rf"^{re.escape(url)}\b.*{details}") as caught:
        download_http(url, folder / "file.m4a", partial=folder / "file.m4a.part", **options)
    assert type(caught.value) is kind
    assert not (folder / "file.m4a").exists()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def leave_half(folder: Path, url: str, size: int, version: str | None = '"v1"', whole: int | None = len(BODY)) -> None:
    """Write the files that a killed download leaves."""
    (folder / "file.m4a.part").write_bytes(BODY[:size])
    note = {"uri": url, "version": version, "size": whole, "checksums": {}}
    (folder / "file.m4a.part.json").write_text(json.dumps(note))


def test_a_recording_is_downloaded_completely(web: Any, tmp_path: Path) -> None:
    pieces: list[int] = []
    assert get(web.serve("a.m4a", BODY), tmp_path, progress=pieces.append) == BODY
    assert sum(pieces) == len(BODY)
    with new_session() as session:
        assert get(web.serve("empty.m4a"), tmp_path, session=session) == b""


def test_broken_connections_resume(web: Any, tmp_path: Path) -> None:
    assert get(web.serve("a.m4a", BODY, drops=[70_000, 1, 100_000]), tmp_path) == BODY
    assert web.requests == [("a.m4a", None), *(("a.m4a", f"bytes={start}-") for start in (70_000, 70_001, 170_001))]
    assert web.sent["a.m4a"] == len(BODY)  # no byte twice
    assert get(web.serve("many.m4a", BODY, drops=[20_000] * 14), tmp_path) == BODY  # more than 5 tries
    assert len(web.requests) == 4 + 15


def test_a_killed_download_resumes(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", BODY)
    leave_half(tmp_path, url, 120_000)
    assert get(url, tmp_path) == BODY
    assert web.sent["a.m4a"] == len(BODY) - 120_000
    leave_half(tmp_path, url, len(BODY))  # killed before the file was renamed: the server confirms the version
    assert get(url, tmp_path) == BODY
    assert web.requests[1:] == [("a.m4a", f"bytes={len(BODY) - 1}-")]
    (tmp_path / "file.m4a").unlink()
    leave_half(tmp_path, f"{web.url}/other.m4a", 1000)
    assert get(url, tmp_path) == BODY
    assert web.requests[2:] == [("a.m4a", None)]


@pytest.mark.parametrize("size", [1000, len(BODY)])
@pytest.mark.parametrize("newer", [BODY[::-1], BODY[:500], BODY + b"more"])
def test_the_partial_file_of_an_older_version_is_discarded(web: Any, tmp_path: Path, size: int, newer: bytes) -> None:
    leave_half(tmp_path, f"{web.url}/a.m4a", size)
    assert get(web.serve("a.m4a", newer, etag='"v2"'), tmp_path) == newer
    leave_half(tmp_path, f"{web.url}/b.m4a", size, version=None)
    (tmp_path / "file.m4a").unlink()
    assert get(web.serve("b.m4a", newer, etag=None), tmp_path) == newer


def test_a_resumed_response_without_the_etag_is_not_trusted(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", BODY)
    leave_half(tmp_path, url, 1000)
    start = web.start
    web.start = lambda request, status, headers: start(
        request, status, {name: value for name, value in headers.items() if name != "ETag" or status != 206}
    )
    assert get(url, tmp_path) == BODY
    assert web.requests == [("a.m4a", "bytes=1000-"), ("a.m4a", None)]


def test_a_proxy_is_named(tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "http://me:pw@127.0.0.1:1")
    refused("http://songs.invalid/a.m4a", tmp_path, r"HTTP_PROXY \(http://127\.0\.0\.1:1\)", kind=ServerUnreachable)
    assert get(web.serve("a.m4a", BODY), tmp_path) == BODY  # loopback
    monkeypatch.setenv("HTTP_PROXY", web.url)
    web.answer = lambda request: web.start(request, 502, {"Content-Length": "0"})
    refused("http://songs.invalid/a.m4a", tmp_path / "b", r"502 .*HTTP_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"^HTTP_PROXY: socks5://127\.0\.0\.1:1 "):
        download_http("http://songs.invalid/a.m4a", tmp_path / "c", partial=tmp_path / "c.part")


@pytest.mark.parametrize(
    ("size", "version", "whole", "damage"),
    [
        (1000, '"v1"', 2000, False),  # the size changed
        (1000, None, len(BODY), False),  # of unknown version
        (1000, '"v0"', len(BODY), False),  # of another version
        (300_000, '"v1"', 100, False),  # longer than the whole
        (1000, '"v1"', len(BODY), True),
    ],
)
def test_an_unusable_partial_file_is_replaced(
    web: Any, tmp_path: Path, size: int, version: str | None, whole: int, damage: bool
) -> None:
    url = web.serve("a.m4a", BODY)
    leave_half(tmp_path, url, size, version, whole)
    if damage:
        (tmp_path / "file.m4a.part.json").write_text("{")
    assert get(url, tmp_path) == BODY


def test_a_date_or_a_strong_etag_allows_resuming(web: Any, tmp_path: Path) -> None:
    date = formatdate(1e9, usegmt=True)
    # The test's server does not compare dates: it sends the complete file again.
    served = {"etag": None, "headers": {"Last-Modified": date}, "supports_range": False}
    assert get(web.serve("a.m4a", BODY, drops=[70_000], **served), tmp_path) == BODY
    assert web.requests[1] == ("a.m4a", "bytes=70000-")
    assert web.sent["a.m4a"] == len(BODY) + 70_000
    assert get(web.serve("weak.m4a", BODY, etag='W/"v1"', drops=[70_000]), tmp_path) == BODY
    assert web.requests[-1] == ("weak.m4a", None)


def test_two_versions_are_never_mixed(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = BODY[::-1]
    assert get(web.serve("a.m4a", BODY, drops=[70_000], next_version=newer), tmp_path) == newer
    (tmp_path / "file.m4a").unlink()
    url = web.serve("b.m4a", newer, etag='"v2"')
    leave_half(tmp_path, url, 1000)
    answer = web.answer

    def ignore_if_range(request: Any) -> None:
        del request.headers["If-Range"]
        answer(request)

    monkeypatch.setattr(web, "answer", ignore_if_range)
    assert get(url, tmp_path) == newer
    assert [requested for path, requested in web.requests if path == "b.m4a"] == ["bytes=1000-", None]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_transient_statuses_are_retried(web: Any, tmp_path: Path, status: int) -> None:
    assert get(web.serve("a.m4a", BODY, answers=[(status, {})]), tmp_path) == BODY
    assert len(web.requests) == 2


def test_pauses_follow_retry_after_within_bounds(web: Any, tmp_path: Path) -> None:
    waited: list[float] = []
    values = ["7", "100000", formatdate(0), "soon"]
    url = web.serve("a.m4a", BODY, answers=[(429, {"Retry-After": text}) for text in values])
    assert get(url, tmp_path, sleep=waited.append) == BODY
    assert waited[:3] == [7.0, 60.0, 0.0]
    assert 0.004 <= waited[3] <= 0.008  # the fourth back-off pause; the first is 0.001 s here


def test_the_error_is_raised_after_five_tries(web: Any, tmp_path: Path) -> None:
    refused(web.serve("a.m4a", BODY, answers=[(503, {})] * 9), tmp_path, r"\b503 .*\b5\b.*\b0 bytes")
    assert len(web.requests) == 5
    url = web.serve("b.m4a", BODY[:1000], length=2000, supports_range=False)
    refused(url, tmp_path, r"\b5\b.*\b1000 bytes")


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204, 400])
def test_final_statuses_are_raised_at_once(web: Any, tmp_path: Path, status: int) -> None:
    url = web.serve("a.m4a", answers=[(status, {})])
    refused(url, tmp_path, rf"\b{status}\b.*{HTTPStatus(status).phrase}")
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    ("body", "kind", "sign"),
    [
        (b"x", "text/html; charset=utf-8", "text/html"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><p>log in", "audio/mp4", "<html"),
        (b"<HTML lang=zh>", "application/octet-stream", "<html"),
        (b'{"code": 403}', "application/json", "application/json"),
    ],
)
def test_a_web_page_or_message_is_refused(web: Any, tmp_path: Path, body: bytes, kind: str, sign: str) -> None:
    refused(web.serve("a.m4a", body, kind=kind), tmp_path, rf"\(.*{sign}\)")
    assert list(tmp_path.iterdir()) == []


def test_the_size_limit_holds_for_compressed_responses_too(web: Any, tmp_path: Path) -> None:
    refused(web.serve("a.m4a", BODY), tmp_path, r"\b300000 bytes.*\b1000\b", limit=1000)
    compressed = {"headers": {"Content-Encoding": "gzip"}}
    url = web.serve("zeros.m4a", gzip.compress(bytes(1 << 20)), **compressed)  # of unknown size until decompressed
    refused(url, tmp_path, r"\b\d{6,} bytes.*\b300000\b", limit=300_000)
    assert list(tmp_path.iterdir()) == []
    assert get(web.serve("b.m4a", gzip.compress(BODY), drops=[1000], **compressed), tmp_path) == BODY


@pytest.mark.parametrize(
    ("header", "form", "algorithm"),
    [
        ("Content-MD5", "{}", "md5"),
        ("Digest", "crc32c=AAAA,SHA-256={}", "sha256"),
        ("Repr-Digest", "sha-256=:{}:", "sha256"),
        ("Content-Digest", "sha-512=:{}:", "sha512"),
        ("x-amz-checksum-sha256", "{}", "sha256"),
    ],
)
def test_checksums_are_compared(web: Any, tmp_path: Path, header: str, form: str, algorithm: str) -> None:
    digests = [hashlib.new(algorithm, body) for body in (BODY, b"x")]
    good, bad = (form.format(base64.b64encode(digest.digest()).decode()) for digest in digests)
    assert get(web.serve("good.m4a", BODY, headers={header: good}, drops=[1000]), tmp_path) == BODY
    (tmp_path / "file.m4a").unlink()
    found, expected = (digest.hexdigest() for digest in digests)
    url = web.serve("bad.m4a", BODY, headers={header: bad})
    refused(url, tmp_path, rf"{algorithm.upper()} {found}.*{expected}.*\b5\b")
    assert list(tmp_path.iterdir()) == []


def test_malformed_checksums_are_not_compared(web: Any, tmp_path: Path) -> None:
    assert get(web.serve("a.m4a", BODY, headers={"Content-MD5": "5fd2", "Digest": "md5=AA=="}), tmp_path) == BODY


def test_redirects_are_followed_ten_times_and_to_the_web_only(web: Any, tmp_path: Path) -> None:
    web.serve("a.m4a", BODY, drops=[1000])
    assert get(web.serve("go", answers=[(302, {"Location": "/a.m4a"})] * 2), tmp_path) == BODY
    (tmp_path / "file.m4a").unlink()
    refused(web.serve("round", answers=[(302, {"Location": "/round"})] * 50), tmp_path, r"\b10\b")
    assert len(web.requests) == 4 + 11
    for target in ("file:///etc/passwd", "ftp://host/a.m4a"):
        refused(web.serve("out.m4a", answers=[(302, {"Location": target})]), tmp_path, target)


@pytest.mark.parametrize("url", ["http://", "http://[::1", "https://bad host/a.m4a", "http://h:99999999/a"])
def test_an_invalid_link_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(AudioError, match=rf"^{re.escape(url)}: "):
        download_http(url, tmp_path / "a", partial=tmp_path / "a.part")
    assert not (tmp_path / "a").exists()


def test_an_unknown_host_and_a_closed_port(tmp_path: Path) -> None:
    refused("http://nowhere.invalid/a.m4a", tmp_path, r"\b5\b", kind=ServerUnreachable)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/a.m4a"
        refused(url, tmp_path, r"Connection refused.*\b5\b", kind=ServerUnreachable)


def test_a_server_that_stops_responding(web: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never responds
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.m4a"
        refused(url, tmp_path, r"\b5\b", kind=ServerUnreachable, timeouts=(1.0, 0.05))
    url = web.serve("slow.m4a", BODY[:5000], seconds_between=0.4)
    assert get(url, tmp_path, timeouts=(1.0, 0.2)) == BODY[:5000]  # each response sends a piece before it stalls
    assert len(web.requests) == 5


def test_a_server_without_tls(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", BODY).replace("http:", "https:")
    refused(url, tmp_path, r"TLS.*\b5\b", kind=ServerUnreachable)


def test_an_untrusted_certificate(web: Any, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    (tmp_path / "server.pem").write_bytes(
        built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    refused(web.serve("a.m4a", BODY).replace("http:", "https:"), tmp_path / "in", r"\(.*self-signed.*\)")


def test_secrets_in_links_are_redacted() -> None:
    assert redact("http://me:pw@h/a?x=1&token=abc&y=2&AccessKeyId=k") == "http://h/a?x=1&token=...&y=2&AccessKeyId=..."
    assert redact("http://h/a@b?c=d") == "http://h/a@b?c=d"
