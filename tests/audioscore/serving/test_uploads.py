from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from audioscore.serving.settings import Settings
from audioscore.serving.uploads import receive_uploads, shown_name

PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\nContent-Type: audio/wav\r\n\r\n%s\r\n'
KIND = "multipart/form-data; boundary=b"


def request_of(chunks: Sequence[bytes | None], kind: str | None = KIND, **headers: str) -> Request:
    """A request whose body comes in these pieces; None is a sender that hangs up."""
    pieces = iter(chunks)

    async def receive() -> dict[str, Any]:
        piece = next(pieces, b"")
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": piece != b""}

    given = {**({} if kind is None else {"content-type": kind}), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    return Request({"type": "http", "method": "POST", "path": "/score", "headers": raw}, receive)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_recordings_come_to_disk_as_they_were_sent(size: int, tmp_path: Path, wait: Any) -> None:
    """However the network cuts the body: bytes that look like boundaries too."""
    sent = [(b"one.wav", bytes(range(256)) * 3), (b"../two.m4a", b"\r\n--b\r\n"[:4] + b"--bx\r\n-"), (b"", b"data")]
    body = b"".join(PART % one for one in sent) + b"--b--\r\n"
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    found = wait(receive_uploads(request_of(pieces), tmp_path, Settings()))
    assert [one.file for one in found] == ["one.wav", "two.m4a", "recording 3"]
    assert [one.path.read_bytes() for one in found] == [data for _, data in sent]
    assert {one.path.parent for one in found} == {tmp_path}
    assert not any(one.path.suffix for one in found)


def test_what_is_no_upload_is_refused(tmp_path: Path, wait: Any) -> None:
    good = PART % (b"a.wav", b"data")
    for request, status, sentence in (
        (request_of([good], "text/plain"), 415, "needs multipart/form-data; got text/plain"),
        (request_of([good], None), 415, "got no content type"),
        (request_of([good], "multipart/form-data"), 400, "names no boundary"),
        (request_of([b"nothing of the kind"]), 400, "malformed"),
        (request_of([good]), 400, "ends before its last boundary"),
        (request_of([b"--b--\r\n"]), 400, "holds no recording"),
        (request_of([PART % (b"", b"") + b"--b--\r\n"]), 400, "holds no recording"),
        (request_of([good.replace(b'"file"', b'"song"')]), 400, "a part is called 'song'. Recordings are parts"),
        (request_of([good.replace(b'; filename="a.wav"', b"")]), 400, "has no filename"),
        (request_of([good, bytes(200)]), 413, "larger than 0.000190735 MiB"),
        (request_of([], content_length="201"), 413, "larger than"),
    ):
        with pytest.raises(HTTPException) as refused:
            wait(receive_uploads(request, tmp_path, Settings(max_bytes=200 if status == 413 else 9999, max_files=2)))
        assert (refused.value.status_code, sentence in refused.value.detail) == (status, True), refused.value.detail


def test_too_many_is_told_from_too_large(tmp_path: Path, wait: Any) -> None:
    many = PART % (b"a.wav", b"x") * 3
    with pytest.raises(HTTPException, match="more than 2 recordings"):
        wait(receive_uploads(request_of([many]), tmp_path, Settings(max_files=2)))


def test_who_is_slow_or_gone(tmp_path: Path, wait: Any) -> None:
    import asyncio

    async def nothing() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    slow = request_of([])
    slow._receive = nothing
    with pytest.raises(HTTPException, match="only 0 bytes came in 0 s") as refused:
        wait(receive_uploads(slow, tmp_path, Settings(body_seconds=0.05)))
    assert refused.value.status_code == 408
    assert refused.value.headers == {"Connection": "close"}
    with pytest.raises(ClientDisconnect):
        wait(receive_uploads(request_of([PART % (b"a", b"x"), None]), tmp_path, Settings()))


def test_names_lose_what_leads_elsewhere() -> None:
    assert shown_name("歌 1.m4a".encode(), 1) == "歌 1.m4a"
    assert shown_name(b"\xff\xfe.wav", 1) == "\ufffd\ufffd.wav"
    assert shown_name(b"a" * 500, 1) == "a" * 200
    assert shown_name(b"dir/", 4) == "recording 4"


def test_a_full_disk_is_told(tmp_path: Path, wait: Any) -> None:
    with pytest.raises(HTTPException, match=r"^503: the upload cannot be kept \(No such file or directory\)\. Try"):
        wait(receive_uploads(request_of([PART % (b"a", b"x")]), tmp_path / "gone", Settings()))
