import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from audioscore.serving.metrics import ServiceSettings
from audioscore.serving.uploads import display_name, parse_disposition, receive_uploads

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
    assert display_name("歌 1.m4a", 1) == "歌 1.m4a"
    assert display_name("a" * 500, 1) == "a" * 200
    assert display_name("dir/", 4) == display_name(None, 4) == "recording 4"
    assert display_name("a\u202eb\0\ud800\r\nc.wav", 1) == "abc.wav"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        (b"filename*=utf-8''%E6%AD%8C.m4a", "歌.m4a"),
        (b"filename=\"x.m4a\"; filename*=UTF-8'zh-CN'%e6%ad%8c.m4a", "歌.m4a"),
        (b"filename*=gbk''%B8%E8.wav", "歌.wav"),
        (b"filename*=iso-8859-1'en'caf%E9.wav", "caf\u00e9.wav"),
        (b"filename*=none''a.wav", "a.wav"),
        (b"filename*=utf-8''%E6%9.wav", "\ufffd%9.wav"),
        (b"filename=\"a.wav\"; filename*=utf-8''", "a.wav"),
        (b"filename=\"x; filename*=utf-8''b.wav\"", "x; filename*=utf-8''b.wav"),
        (b'filename="a\\"b;c.wav"', 'a"b;c.wav'),
        (b'filename="a%22b%0D%0A%41.wav"', 'a"b%41.wav'),
        (b'filename="C:\\songs\\a.wav"', "C:\\songs\\a.wav"),
        ('filename="歌.wav"'.encode(), "歌.wav"),
        ('filename="歌.wav"'.encode("gbk"), "歌.wav"),
        ('filename="caf\u00e9.wav"'.encode("latin-1"), "caf\u00e9.wav"),
        (b"filename=", ""),
        (b"other=1", None),
    ],
)
def test_file_names_in_all_forms(parameters: bytes, name: str | None) -> None:
    assert parse_disposition(b'form-data; name="file"; ' + parameters) == ("file", name)
    assert parse_disposition(b"FORM-DATA;NAME=file;" + parameters) == ("file", name)


@given(st.lists(st.sampled_from([b"form-data", b";", b"name", b"filename", b"*", b"0", b"=", b'"', b"\\", b"'", b"%",
                                 b"utf-8", b"%E6", b"\xff", b"\0", b"gbk", b"../a"]), max_size=14))  # fmt: skip
def test_any_disposition_gives_a_printable_label(parts: list[bytes]) -> None:
    label = display_name(parse_disposition(b"".join(parts))[1], 1)
    assert label.isprintable()
    assert "/" not in label
    assert 0 < len(label) <= 200


def test_a_part_without_a_file_name_is_a_recording(tmp_path: Path, wait: Any) -> None:
    body = GOOD.replace(b'; filename="a.wav"', b"") + GOOD + b"--b--\r\n"
    found = wait(receive_uploads(request_of([body]), tmp_path, ServiceSettings()))
    assert [(one.file, Path(str(one.source)).read_bytes()) for one in found] == [
        ("recording 1", b"data"),
        ("a.wav", b"data"),
    ]


def test_a_failed_write_is_reported(tmp_path: Path, wait: Any) -> None:
    with pytest.raises(HTTPException, match=r"^503: .*\(No such file or directory\)"):
        wait(receive_uploads(request_of([PART % (b"a", b"x")]), tmp_path / "gone", ServiceSettings()))


def test_a_very_long_name_is_cut(tmp_path: Path, wait: Any) -> None:
    body = PART % (b"a" * 5_000 + b".wav", b"data") + b"--b--\r\n"
    (found,) = wait(receive_uploads(request_of([body]), tmp_path, ServiceSettings()))
    assert found.file == "a" * 200
