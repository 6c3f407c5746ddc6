import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from audioscore.data.transfer import download, s3
from audioscore.data.transfer.download import Downloaded, FailedDownload, download_all, file_of
from audioscore.errors import DataError

BODY = random.Random(3).randbytes(200_000)
# A test in the background may ignore interrupts, and the processes that it starts inherit that.
PROGRAM = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from audioscore.data.transfer.download import download_all
download_all(sys.argv[2:], Path(sys.argv[1]))
"""


def test_every_job_has_its_result_in_order(web: Any, bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="录音/a.m4a", Body=b"s3")
    links = [
        web.serve("a.M4A", b"a"),
        web.serve("gone.m4a", answers=[(404, {})]),
        "s3://transfer-songs/录音/a.m4a",
        web.serve("page.m4a", b"<html>"),
        "s3://transfer-songs/gone.m4a",
        "s3://",
        f"{web.url}/a.M4A",
    ]
    done: list[tuple[int, int]] = []
    found = download_all(links, tmp_path / "in", progress=lambda *at: done.append(at))
    assert [one.uri for one in found] == links
    assert [one.path.read_bytes() if isinstance(one, Downloaded) else None for one in found] == [
        b"a", None, b"s3", None, None, None, b"a"
    ]  # fmt: skip
    reasons = [one.reason for one in found if isinstance(one, FailedDownload)]
    for sign, reason in zip(("404 Not Found", "<html", "NoSuchKey", "s3://: "), reasons, strict=True):
        assert sign in reason
    assert done[-1] == (6, 6)  # different links
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == sorted(
        file_of(link, Path()).name for link in (links[0], links[2])
    )


def test_existing_files_are_reused(web: Any, tmp_path: Path) -> None:
    links = [web.serve(f"{number}.m4a", BODY) for number in range(5)]
    first = download_all(links, tmp_path)
    (tmp_path / file_of(links[3], Path()).name).unlink()
    again = download_all(links, tmp_path)
    assert [one.reused for one in again if isinstance(one, Downloaded)] == [True, True, True, False, True]
    assert [one.path for one in first if isinstance(one, Downloaded)] == [file_of(link, tmp_path) for link in links]
    assert len(web.requests) == 6


@pytest.mark.parametrize(
    ("uri", "suffix"),
    [
        ("https://host.com", ""),
        ("https://host.com/a.WAV?b=c.d", ".wav"),
        ("http://[/a.mp3#x.y", ".mp3"),
        ("s3://b.c/d/e?f.flac", ".flac"),
        ("https://h/a.tar_gz", ""),
        ("https://h/a.b%2Fc", ""),
        ("https://h/\ud800.m4a", ".m4a"),
    ],
)
def test_a_links_file_has_a_plain_name(uri: str, suffix: str, tmp_path: Path) -> None:
    path = file_of(uri, tmp_path)
    assert path.parent == tmp_path
    assert path.suffix == suffix
    assert len(path.stem) == 24


def test_invalid_links_are_failed_downloads(web: Any, tmp_path: Path) -> None:
    links = ["http://[::1", "http://", "https://h/\ud800.m4a", web.serve("a.m4a", BODY)]
    assert [type(one) for one in download_all(links, tmp_path)] == [
        FailedDownload,
        FailedDownload,
        FailedDownload,
        Downloaded,
    ]


def reasons_of(links: list[str], folder: Path, workers: int) -> list[str]:
    return [one.reason for one in download_all(links, folder, workers=workers) if isinstance(one, FailedDownload)]


def test_links_of_an_unreachable_server_fail_at_once_after_eight(tmp_path: Path) -> None:
    links = [f"http://me:pw@127.0.0.1:1/x{number}.m4a" for number in range(30)]
    skipped = [reason for reason in reasons_of(links, tmp_path, 2) if re.search(r"\b8\b", reason)]
    assert 20 <= len(skipped) <= 22
    assert skipped[-1].startswith("http://127.0.0.1:1/x29.m4a: 127.0.0.1:1 ")


def test_links_through_an_unreachable_proxy_fail_at_once_after_eight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    reasons = reasons_of([f"http://host{number}.invalid/x.m4a" for number in range(12)], tmp_path, 1)
    assert [reason.startswith(f"http://host{at}.invalid/x.m4a: ") for at, reason in enumerate(reasons)] == [True] * 12
    assert ["HTTP_PROXY (http://127.0.0.1:1)" in reason for reason in reasons] == [True] * 8 + [False] * 4
    assert re.search(r"\bproxy in HTTP_PROXY\b.*\b8\b", reasons[11])


def test_every_link_of_a_responding_server_is_tried(web: Any, tmp_path: Path) -> None:
    reasons = reasons_of([web.serve(f"{number}.m4a", answers=[(404, {})]) for number in range(12)], tmp_path, 2)
    assert ["404" in reason for reason in reasons] == [True] * 12
    assert len(web.requests) == 12


def test_links_of_an_unreachable_s3_fail_at_once_after_eight(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PATIENCE", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    reasons = reasons_of([f"s3://transfer-songs/x{number}" for number in range(12)], tmp_path, 1)
    assert ["AWS_ENDPOINT_URL" in reason for reason in reasons] == [True] * 8 + [False] * 4
    assert re.match(r"s3://transfer-songs/x11: S3 .*\b8\b", reasons[11])


def test_a_full_disk_stops_all_downloads_and_keeps_received_bytes(web: Any, tmp_path: Path) -> None:
    links = [web.serve("small.m4a", b"x"), web.serve("large.m4a", BODY), web.serve("next.m4a", BODY)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))  # the largest file that may be written
    try:
        with pytest.raises(DataError) as caught:
            download_all(links, tmp_path, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(rf"{tmp_path}: .*\(File too large\).*\b1 of 3\b.*\b0\.1 MB", str(caught.value))
    assert isinstance(caught.value.__cause__, OSError)
    assert len(web.requests) == 2
    found = download_all(links, tmp_path)
    assert all(isinstance(one, Downloaded) for one in found)
    assert web.sent["large.m4a"] <= len(BODY) * 2
    assert ("large.m4a", "bytes=150000-") in web.requests


def test_an_unwritable_folder_is_named(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "in"))

    monkeypatch.setattr(download, "download_http", deny)
    with pytest.raises(DataError, match=f"^{tmp_path / 'in'}: Permission denied"):
        download_all([web.serve("a.m4a", BODY)], tmp_path / "in")


def start(folder: Path, *links: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(folder), *links]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    while not any(part.stat().st_size for part in folder.glob("*.part")):  # until the first bytes have arrived
        assert process.poll() is None
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_resumes(web: Any, tmp_path: Path, how: signal.Signals) -> None:
    link = web.serve("slow.m4a", BODY[:60_000], seconds_between=0.03)
    process = start(tmp_path, link)
    time.sleep(0.3)
    process.send_signal(how)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -how if how == signal.SIGKILL else "KeyboardInterrupt" in errors
    arrived = next(tmp_path.glob("*.part")).stat().st_size
    assert 0 < arrived < 60_000
    web.files["slow.m4a"].seconds_between = 0.0
    before = len(web.requests)
    (found,) = download_all([link], tmp_path)
    assert isinstance(found, Downloaded)
    assert found.path.read_bytes() == BODY[:60_000]
    assert web.requests[before:] == [("slow.m4a", f"bytes={arrived}-")]
    assert [path.suffix for path in tmp_path.iterdir()] == [".m4a"]


def test_an_interrupt_does_not_wait_for_a_slow_server(web: Any, tmp_path: Path) -> None:
    process = start(tmp_path, web.serve("slow.m4a", BODY[:3000], seconds_between=30.0))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)  # the server needs 60 s
    assert "KeyboardInterrupt" in errors
    assert next(tmp_path.glob("*.part")).stat().st_size == 1000


def test_a_note_beside_a_complete_file_is_removed(web: Any, tmp_path: Path) -> None:
    link = web.serve("a.m4a", BODY)
    target = file_of(link, tmp_path)
    target.write_bytes(BODY)
    (tmp_path / f"{target.name}.part.json").write_text("{}")
    (found,) = download_all([link], tmp_path)
    assert isinstance(found, Downloaded)
    assert found.reused
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
