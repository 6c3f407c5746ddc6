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
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from audioscore.data.transfer.http import download_http, new_session, shown
from audioscore.errors import AudioError

BODY = random.Random(1).randbytes(300_000)


def get(url: str, folder: Path, **options: Any) -> bytes:
    """What arrives; afterwards nothing but the file is there."""
    download_http(url, folder / "file.m4a", partial=folder / "file.m4a.part", **options)
    assert [path.name for path in folder.iterdir()] == ["file.m4a"]
    return (folder / "file.m4a").read_bytes()


def refused(url: str, folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(AudioError, match=message) as caught:
        download_http(url, folder / "file.m4a", partial=folder / "file.m4a.part", **options)
    assert not (folder / "file.m4a").exists()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def leave_half(folder: Path, url: str, size: int, version: str | None = '"v1"', whole: int | None = len(BODY)) -> None:
    """What a killed download leaves behind."""
    (folder / "file.m4a.part").write_bytes(BODY[:size])
    note = {"uri": url, "version": version, "size": whole, "checksums": {}}
    (folder / "file.m4a.part.json").write_text(json.dumps(note))


def test_a_recording_is_brought_whole(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", BODY)
    pieces: list[int] = []
    assert get(url, tmp_path, progress=pieces.append) == BODY
    assert sum(pieces) == len(BODY)
    with new_session() as session:
        assert get(web.serve("empty.m4a"), tmp_path, session=session) == b""


def test_broken_connections_go_on_where_they_were(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", BODY, drops=[70_000, 1, 100_000])
    assert get(url, tmp_path) == BODY
    assert web.asked == [("a.m4a", None), *(("a.m4a", f"bytes={start}-") for start in (70_000, 70_001, 170_001))]
    assert web.sent["a.m4a"] == len(BODY)  # not a byte twice


def test_many_drops_are_no_fault_while_something_arrives(web: Any, tmp_path: Path) -> None:
    assert get(web.serve("a.m4a", BODY, drops=[20_000] * 14), tmp_path) == BODY
    assert len(web.asked) == 15


def test_a_killed_download_goes_on(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", BODY)
    leave_half(tmp_path, url, 120_000)
    assert get(url, tmp_path) == BODY
    assert web.sent["a.m4a"] == len(BODY) - 120_000
    leave_half(tmp_path, url, len(BODY))  # killed before the file got its name
    assert get(url, tmp_path) == BODY
    assert len(web.asked) == 1


@pytest.mark.parametrize(
    ("size", "version", "whole", "damage"),
    [
        (1000, '"v1"', 2000, False),  # the file has become longer
        (1000, None, len(BODY), False),  # nothing tells whether it is the same
        (1000, '"v0"', len(BODY), False),  # it is not
        (300_000, '"v1"', 100, False),  # more than there can be
        (1000, '"v1"', len(BODY), True),
    ],
)
def test_what_cannot_be_gone_on_with_is_fetched_anew(
    web: Any, tmp_path: Path, size: int, version: str | None, whole: int, damage: bool
) -> None:
    url = web.serve("a.m4a", BODY)
    leave_half(tmp_path, url, size, version, whole)
    if damage:
        (tmp_path / "file.m4a.part.json").write_text("{")
    assert get(url, tmp_path) == BODY


def test_the_beginning_of_another_link_is_not_used(web: Any, tmp_path: Path) -> None:
    leave_half(tmp_path, f"{web.url}/other.m4a", 1000)
    assert get(web.serve("a.m4a", BODY), tmp_path) == BODY
    assert web.asked == [("a.m4a", None)]


def test_a_server_that_ignores_ranges_starts_anew(web: Any, tmp_path: Path) -> None:
    assert get(web.serve("a.m4a", BODY, drops=[70_000], takes_range=False), tmp_path) == BODY
    assert web.sent["a.m4a"] == len(BODY) + 70_000


def test_without_an_etag_the_date_tells_whether_it_is_the_same(web: Any, tmp_path: Path) -> None:
    date = formatdate(1e9, usegmt=True)
    url = web.serve("a.m4a", BODY, etag=None, headers={"Last-Modified": date}, drops=[70_000])
    web.files["a.m4a"].takes_range = False  # the server knows no dates: it sends the whole again
    assert get(url, tmp_path) == BODY
    assert web.asked[1] == ("a.m4a", "bytes=70000-")
    assert get(web.serve("weak.m4a", BODY, etag='W/"v1"', drops=[70_000]), tmp_path) == BODY
    assert web.asked[-1] == ("weak.m4a", None)


def test_a_file_that_changes_half_way_is_never_mixed(web: Any, tmp_path: Path) -> None:
    newer = BODY[::-1]
    assert get(web.serve("a.m4a", BODY, drops=[70_000], next_version=newer), tmp_path) == newer


def test_a_range_of_another_version_is_not_appended(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends the range although If-Range does not match."""
    url = web.serve("a.m4a", BODY[::-1], etag='"v2"')
    leave_half(tmp_path, url, 1000)
    answer = web.answer

    def heedless(request: Any) -> None:
        del request.headers["If-Range"]
        answer(request)

    monkeypatch.setattr(web, "answer", heedless)
    assert get(url, tmp_path) == BODY[::-1]
    assert [wanted for _, wanted in web.asked] == ["bytes=1000-", None]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(web: Any, tmp_path: Path, status: int) -> None:
    assert get(web.serve("a.m4a", BODY, answers=[(status, {})]), tmp_path) == BODY
    assert len(web.asked) == 2


def test_pauses_are_what_the_server_asks_for_within_bounds(web: Any, tmp_path: Path) -> None:
    waited: list[float] = []
    asks = ["7", "100000", formatdate(0), "soon"]
    url = web.serve("a.m4a", BODY, answers=[(429, {"Retry-After": text}) for text in asks])
    assert get(url, tmp_path, sleep=waited.append) == BODY
    assert waited[:3] == [7.0, 60.0, 0.0]
    assert 0.004 <= waited[3] <= 0.008  # the fourth of growing pauses that begin at 0.001 here


def test_giving_up_says_how_often_and_how_much(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", BODY, answers=[(503, {})] * 9)
    refused(url, tmp_path, rf"^{url}: the server answers 503 \(Service Unavailable\), in 5 tries \(0 bytes arrived\)")
    assert len(web.asked) == 5
    url = web.serve("b.m4a", BODY[:1000], length=2000, takes_range=False)
    refused(url, tmp_path, r"b\.m4a: the connection broke, in 5 tries \(1000 bytes arrived\)")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"access is denied \(401 Unauthorized\)"),
        (403, r"access is denied \(403 Forbidden\)"),
        (404, r"no such file any more \(404 Not Found\)"),
        (410, r"no such file any more \(410 Gone\)"),
        (204, r"answers 204 \(No Content\), not the recording"),
        (400, r"answers 400 \(Bad Request\)"),
    ],
)
def test_what_will_not_pass_is_told_at_once(web: Any, tmp_path: Path, status: int, message: str) -> None:
    url = web.serve("a.m4a", answers=[(status, {})])
    refused(url, tmp_path, f"^{url}: .*{message}")
    assert len(web.asked) == 1


@pytest.mark.parametrize(
    ("body", "kind", "sign"),
    [
        (b"x", "text/html; charset=utf-8", "text/html"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><p>log in", "audio/mp4", "its text begins with <html"),
        (b"<HTML lang=zh>", "application/octet-stream", "its text begins with <html"),
    ],
)
def test_a_web_page_is_no_recording(web: Any, tmp_path: Path, body: bytes, kind: str, sign: str) -> None:
    url = web.serve("a.m4a", body, kind=kind)
    refused(url, tmp_path, rf"^{url}: answered with a web page \({sign}\), not a recording")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_called_a_success(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", b'{"code": 403}', kind="application/json")
    refused(url, tmp_path, rf"^{url}: answered with a message \(application/json\), not a recording")


def test_more_bytes_than_are_taken(web: Any, tmp_path: Path) -> None:
    refused(web.serve("a.m4a", BODY), tmp_path, "is 300000 bytes or more; at most 1000 are taken", limit=1000)
    zeros = gzip.compress(bytes(1 << 20))  # says nothing of the size that it unfolds to
    url = web.serve("bomb.m4a", zeros, headers={"Content-Encoding": "gzip"})
    refused(url, tmp_path, r"bomb\.m4a: is \d+ bytes or more; at most 300000 are taken", limit=300_000)
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_answer_is_unfolded(web: Any, tmp_path: Path) -> None:
    url = web.serve("a.m4a", gzip.compress(BODY), headers={"Content-Encoding": "gzip"}, drops=[1000])
    assert get(url, tmp_path) == BODY


def checksum(algorithm: str, body: bytes = BODY) -> str:
    return base64.b64encode(hashlib.new(algorithm, body).digest()).decode()


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
    good, bad = form.format(checksum(algorithm)), form.format(checksum(algorithm, b"x"))
    assert get(web.serve("good.m4a", BODY, headers={header: good}, drops=[1000]), tmp_path) == BODY
    (tmp_path / "file.m4a").unlink()
    found, expected = hashlib.new(algorithm, BODY).hexdigest(), hashlib.new(algorithm, b"x").hexdigest()
    url = web.serve("bad.m4a", BODY, headers={header: bad})
    refused(url, tmp_path, rf"bad\.m4a: arrived with {algorithm.upper()} {found}, not {expected}, in 5 tries")
    assert list(tmp_path.iterdir()) == []


def test_a_checksum_that_is_none_is_not_compared(web: Any, tmp_path: Path) -> None:
    assert get(web.serve("a.m4a", BODY, headers={"Content-MD5": "5fd2", "Digest": "md5=AA=="}), tmp_path) == BODY


def test_links_that_lead_on(web: Any, tmp_path: Path) -> None:
    web.serve("a.m4a", BODY, drops=[1000])
    assert get(web.serve("go", answers=[(302, {"Location": "/a.m4a"})] * 2), tmp_path) == BODY
    (tmp_path / "file.m4a").unlink()
    url = web.serve("round", answers=[(302, {"Location": "/round"})] * 50)
    refused(url, tmp_path, f"^{url}: leads from link to link more than 10 times")
    assert len(web.asked) == 4 + 11


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://host/a.m4a"])
def test_links_out_of_the_web_are_not_followed(web: Any, tmp_path: Path, place: str) -> None:
    url = web.serve("a.m4a", answers=[(302, {"Location": place})])
    refused(url, tmp_path, f"^{url}: leads to something that is no web address .*{place}")


@pytest.mark.parametrize("url", ["http://", "http://[::1", "https://bad host/a.m4a", "http://h:99999999/a"])
def test_a_link_that_is_none(tmp_path: Path, url: str) -> None:
    refused(url, tmp_path, rf"^{re.escape(url)}: (is no valid link|its host is unknown)")


def test_an_unknown_host_and_a_closed_port(tmp_path: Path) -> None:
    refused("http://nowhere.invalid/a.m4a", tmp_path, "^http://nowhere.invalid/a.m4a: its host is unknown, in 5 tries")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/a.m4a"
        refused(url, tmp_path, rf"^{url}: the server cannot be reached \(Connection refused\), in 5 tries")


def test_a_server_that_falls_silent(web: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.m4a"
        refused(url, tmp_path, "the server does not answer in time, in 5 tries", timeouts=(1.0, 0.05))
    url = web.serve("slow.m4a", BODY[:5000], seconds_between=0.4)
    assert get(url, tmp_path, timeouts=(1.0, 0.2)) == BODY[:5000]  # each answer brings a piece before it stalls
    assert len(web.asked) == 5


def test_a_server_without_tls(web: Any, tmp_path: Path) -> None:
    web.serve("a.m4a", BODY)
    url = web.url.replace("http:", "https:") + "/a.m4a"
    refused(url, tmp_path, rf"^{url}: the server cannot be reached \(TLS: wrong version number\), in 5 tries")


def test_a_certificate_that_nobody_vouches_for(web: Any, tmp_path: Path) -> None:
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
    url = web.serve("a.m4a", BODY).replace("http:", "https:")
    refused(url, tmp_path / "in", rf"^{url}: the server's certificate is not trusted \(.*self-signed certificate\)\.")


def test_secrets_in_links_are_not_shown() -> None:
    assert shown("http://me:pw@h/a?x=1&token=abc&y=2&AccessKeyId=k") == "http://h/a?x=1&token=...&y=2&AccessKeyId=..."
    assert shown("http://h/a@b?c=d") == "http://h/a@b?c=d"
