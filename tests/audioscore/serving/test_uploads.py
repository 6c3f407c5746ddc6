import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from audioscore.serving.metrics import ServiceSettings
from audioscore.serving.uploads import display_name, receive_uploads

PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\nContent-Type: audio/wav\r\n\r\n%s\r\n'
KIND = "multipart/form-data; boundary=b"


def request_of(chunks: Sequence[bytes | float | None], kind: str | None = KIND, **headers: str) -> Request:
    """A request with a body in these pieces; a number is a pause in seconds, None a closed connection."""
    pieces = iter(chunks)

    async def receive() -> dict[str, Any]:
        piece = next(pieces, b"")
        if piece is None:
            return {"type": "http.disconnect"}
        if isinstance(piece, float):
            await asyncio.sleep(piece)
            return await receive()
        return {"type": "http.request", "body": piece, "more_body": piece != b""}

    given = {**({} if kind is None else {"content-type": kind}), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    return Request({"type": "http", "method": "POST", "path": "/score", "headers": raw}, receive)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_recordings_are_stored_as_sent_with_any_chunk_size(size: int, tmp_path: Path, wait: Any) -> None:
    sent = [(b"one.wav", bytes(range(256)) * 3), (b"../two.m4a", b"\r\n--b\r\n"[:4] + b"--bx\r\n-"), (b"", b"data")]
    body = b"".join(PART % one for one in sent) + b"--b--\r\n"
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    found = wait(receive_uploads(request_of(pieces), tmp_path, ServiceSettings()))
    assert [one.file for one in found] == ["one.wav", "two.m4a", "recording 3"]
    assert [Path(str(one.source)).read_bytes() for one in found] == [data for _, data in sent]
    assert {Path(str(one.source)).parent for one in found} == {tmp_path}
    assert not any(Path(str(one.source)).suffix for one in found)


GOOD = PART % (b"a.wav", b"data")


@pytest.mark.parametrize(
    ("chunks", "headers", "status", "names"),
    [
        ([GOOD], {"kind": "text/plain"}, 415, "multipart/form-data.*text/plain"),
        ([GOOD], {"kind": None}, 415, "content type"),
        ([GOOD], {"kind": "multipart/form-data"}, 400, "content type.*boundary"),
        ([b"nothing of the kind"], {}, 400, r"\(.+\)"),
        ([GOOD], {}, 400, "last boundary"),
        ([b"--b--\r\n"], {}, 400, "'file'"),
        ([PART % (b"", b"") + b"--b--\r\n"], {}, 400, "'file'"),
        ([GOOD.replace(b'"file"', b'"song"')], {}, 400, "'song'.*'file'"),
        ([GOOD.replace(b'; filename="a.wav"', b"")], {}, 400, "'file'.*filename"),
        ([GOOD, bytes(200)], {}, 413, r"0\.000190735 MiB"),
        ([], {"content_length": "201"}, 413, r"0\.000190735 MiB"),
        ([PART % (b"a.wav", b"x") * 3], {}, 413, r"\b2 recordings"),
    ],
)
def test_invalid_uploads_are_refused(
    chunks: list[bytes], headers: dict[str, Any], status: int, names: str, tmp_path: Path, wait: Any
) -> None:
    most = 200 if "MiB" in names else 9999
    with pytest.raises(HTTPException, match=rf"^{status}: POST /score: .*{names}"):
        wait(receive_uploads(request_of(chunks, **headers), tmp_path, ServiceSettings(max_bytes=most, max_files=2)))


def test_slow_and_interrupted_uploads(tmp_path: Path, wait: Any) -> None:
    with pytest.raises(HTTPException, match=r"^408: .*\b0 bytes .*\b0 s\b") as refused:
        wait(receive_uploads(request_of([60.0]), tmp_path, ServiceSettings(body_seconds=0.05)))
    assert refused.value.headers == {"Connection": "close"}
    with pytest.raises(ClientDisconnect):
        wait(receive_uploads(request_of([PART % (b"a", b"x"), None]), tmp_path, ServiceSettings()))


def test_display_names_have_no_folder() -> None:
    assert display_name("歌 1.m4a".encode(), 1) == "歌 1.m4a"
    assert display_name(b"\xff\xfe.wav", 1) == "\ufffd\ufffd.wav"
    assert display_name(b"a" * 500, 1) == "a" * 200
    assert display_name(b"dir/", 4) == "recording 4"


def test_a_failed_write_is_reported(tmp_path: Path, wait: Any) -> None:
    with pytest.raises(HTTPException, match=r"^503: .*\(No such file or directory\)"):
        wait(receive_uploads(request_of([PART % (b"a", b"x")]), tmp_path / "gone", ServiceSettings()))
