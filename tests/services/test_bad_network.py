"""Servers that drop connections, deny access or send a page: an error for each row, and all other rows are added."""

import contextlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.data.audio import encode
from audioscore.data.labels import read_labels
from audioscore.data.transfer import pool as retry
from audioscore.errors import AudioscoreError

pytestmark = pytest.mark.services

GOOD = 12
PAGE = b"<!doctype html><html><body>Please log in.</body></html>"
SECRET = "5ecret"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Different voices, twice as many as there are good rows."""
    folder, found = tmp_path_factory.mktemp("recordings"), {}
    time = np.arange(20_000) / 16_000
    for number in range(2 * GOOD):
        pitch = np.interp(time, np.linspace(0, 1.25, 5), np.random.default_rng(number).uniform(120, 420, 5))
        phase = 2 * np.pi * np.cumsum(pitch) / 16_000
        wave = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 12))
        encode(np.asarray(wave, dtype=np.float32), 16_000, folder / f"t{number}.wav", codec="pcm_s16le")
        found[f"t{number}.wav"] = (folder / f"t{number}.wav").read_bytes()
    return found


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)


def add(labels: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, standard output, and the message of the error that ended it."""
    done = CliRunner().invoke(app, ["data", "add", str(labels), "--data", "songs", "--no-version", *options])
    if isinstance(done.exception, AudioscoreError):
        return done.exception.exit_code, done.stdout, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, ""


def table(folder: Path, links: list[str]) -> Path:
    rows = [f"{link},{60 + number},s{number}" for number, link in enumerate(links)]
    (folder / "labels.csv").write_text("\n".join(["audio_file,score,singer_id", *rows]))
    return folder / "labels.csv"


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- a web server ---


class Web(http.server.ThreadingHTTPServer):
    """Serves `files` at /good/, and with the error that the path names at other paths, until `repaired` is set."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.repaired, self.requests = files, False, list[str]()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        error, name = urlsplit(self.path).path.lstrip("/").split("/")
        self.server.requests.append(self.path)
        content = self.server.files[name]
        broken = not self.server.repaired
        if broken and error == "silent":  # no byte of a response
            self.close_connection = True
        elif broken and error in ("denied", "missing", "broken"):
            self.respond({"denied": 403, "missing": 404, "broken": 500}[error], b"")
        elif broken and error == "login":
            self.respond(200, PAGE, kind="text/html; charset=utf-8")
        elif broken and error == "disguised":  # with the content type of audio
            self.respond(200, PAGE)
        elif broken and error == "drops":
            self.respond(200, content[: len(content) // 2], length=len(content))
            self.close_connection = True
        elif broken and error == "nothing":
            self.respond(200, b"")
        else:
            self.respond(200, content)

    def respond(self, status: int, content: bytes, *, kind: str = "audio/wav", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(recordings: dict[str, bytes]) -> Iterator[Web]:
    with Web(recordings) as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield found
        found.shutdown()


ERRORS = {
    "denied": r"\(403 Forbidden\)",
    "missing": r"\(404 Not Found\)",
    "broken": r"\b500 \(Internal Server Error\).*\b5 .*\(0 bytes",
    "login": r"\(text/html\)",
    "disguised": r"<html",
    "drops": r"connection .*\b5 .*\([1-9]\d* bytes",
    "silent": r"server .*\b5 .*\(0 bytes",
    "nothing": r"\(0 bytes\)",
}


@pytest.mark.parametrize("error", ERRORS)
def test_one_bad_link_among_good_ones(web: Web, tmp_path: Path, error: str) -> None:
    host = web.url.removeprefix("http://")
    good = [f"{web.url}/good/t{number}.wav" for number in range(GOOD)]
    bad = f"http://me:{SECRET}@{host}/{error}/t{GOOD}.wav?id=7&X-Amz-Signature={SECRET}"
    labels = table(tmp_path, [*good[:5], bad, *good[5:]])
    code, out, _ = add(labels)
    assert code == 3
    (line,) = [line for line in out.splitlines() if line.startswith("refused")]
    start = f"refused   row 6  http://{host}/{error}/t{GOOD}.wav?id=7&X-Amz-Signature=...: "
    assert line.startswith(start)
    assert re.search(ERRORS[error], line.removeprefix(start)), line
    assert SECRET not in out
    clips = read_labels(tmp_path / "songs" / "labels.csv").clips
    assert [clip.origin for clip in clips] == good
    before = {name: content for name, content in tree(tmp_path).items() if name.startswith("songs/audio/")}
    assert list(before.values()) == [web.files[Path(name).name] for name in before]

    web.repaired = True
    requests = len(web.requests)
    code, _, _ = add(labels)
    assert code == 0
    assert len(web.requests) == requests + 1  # the good files are not fetched again
    after = tree(tmp_path / "songs")
    assert after[f"audio/t{GOOD}.wav"] == web.files[f"t{GOOD}.wav"]
    assert SECRET.encode() not in b"".join(after.values())
    assert not (tmp_path / ".songs.incoming").exists()


@pytest.mark.parametrize("error", ["denied", "drops"])
def test_too_many_bad_links_stop_the_delivery(web: Web, tmp_path: Path, error: str) -> None:
    good = [f"{web.url}/good/t{number}.wav" for number in range(4)]
    bad = [f"{web.url}/{error}/t{number}.wav?token={SECRET}" for number in range(4, 6)]
    code, out, message = add(table(tmp_path, [*good, *bad]))
    assert (code, set(re.findall(r"^\w+", out, re.MULTILINE))) == (1, {"refused"})
    assert re.search(r"2 of 6 .*\(33%\).*\b10%.*: row 5 \(", message)
    assert f"{web.url}/{error}/t4.wav?token=..." in message
    assert SECRET not in message
    assert not (tmp_path / "songs").exists()
    web.repaired = True
    assert add(tmp_path / "labels.csv")[0] == 0
    assert len(read_labels(tmp_path / "songs" / "labels.csv").clips) == 6


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    code, out, message = add(table(tmp_path, [f"http://127.0.0.1:{port}/a.wav", f"http://127.0.0.1:{port}/b.wav"]))
    assert (code, set(re.findall(r"^\w+", out, re.MULTILINE))) == (1, {"refused"})
    assert re.search(r"2 of 2 .*\(100%\).*\(Connection refused\).*\b5 .*\(0 bytes", message)
    assert not (tmp_path / "songs").exists()


# --- S3 ---


class Proxy:
    """A proxy of a server on loopback, which closes each connection after `cut_after` bytes of responses."""

    def __init__(self, endpoint: str) -> None:
        self.behind = (urlsplit(endpoint).hostname or "", urlsplit(endpoint).port or 0)
        self.cut_after: int | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.pass_on, args=(self.listener.accept()[0],), daemon=True).start()

    def pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.behind) as server:
            threading.Thread(target=self.copy, args=(client, server, False), daemon=True).start()
            self.copy(server, client, True)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def copy(self, source: socket.socket, target: socket.socket, is_response: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 14):
                most = self.cut_after if is_response else None
                target.sendall(block if most is None else block[: max(0, most - passed)])
                passed += len(block)
                if most is not None and passed >= most:
                    return


@pytest.fixture(scope="module")
def buckets(s3_server: Any, recordings: dict[str, bytes]) -> list[str]:
    """The buckets `open` and `closed`, each with every recording below `八月/`."""
    names = {name.lower(): value for name, value in s3_server.environment.items()}
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=names["aws_endpoint_url"],
        aws_access_key_id=names["aws_access_key_id"],
        aws_secret_access_key=names["aws_secret_access_key"],
        region_name="us-east-1",
    )
    with contextlib.closing(client):
        for bucket in ("open", "closed"):
            client.create_bucket(Bucket=bucket)
            for name, content in recordings.items():
                client.put_object(Bucket=bucket, Key=f"八月/{name}", Body=content)
        client.put_object(Bucket="open", Key="page.wav", Body=PAGE, ContentType="text/html")
    return ["open", "closed"]


@pytest.fixture
def proxy(s3_server: Any, buckets: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The environment of a client that can only read the bucket `open`, through a proxy."""
    found = Proxy(s3_server.endpoint)
    for name, value in (s3_server.reader | {"AWS_ENDPOINT_URL": found.endpoint}).items():
        monkeypatch.setenv(name, value)
    yield found
    found.listener.close()


def test_objects_that_are_denied_missing_or_pages(proxy: Proxy, tmp_path: Path) -> None:
    good = [f"s3://open/八月/t{number}.wav" for number in range(GOOD)]
    (tmp_path / "config.yaml").write_text(
        "validation: {max_rejected_share: 0.5}\nencoders: {muq: {source: m}, campplus: {source: c}}\n"
    )
    bad = {
        "s3://closed/八月/t0.wav": "AccessDenied",
        "s3://open/八月/gone.wav": "NoSuchKey",
        "s3://open/page.wav": "(Invalid data found when processing input)",
    }
    code, out, _ = add(table(tmp_path, [*good, *bad]), "--config", "config.yaml")
    assert code == 3
    refused = [line for line in out.splitlines() if line.startswith("refused")]
    for row, (line, (link, reason)) in enumerate(zip(refused, bad.items(), strict=True), GOOD + 1):
        assert line.startswith(f"refused   row {row}  {link}: ")
        assert reason in line
        assert line.count(link) == 1
        assert "reader-secret" not in line
    assert len(read_labels(tmp_path / "songs" / "labels.csv").clips) == GOOD


def test_a_bucket_without_list_permission(proxy: Proxy, tmp_path: Path) -> None:
    labels = table(tmp_path, [f"t{number}.wav" for number in range(GOOD)])
    before = tree(tmp_path)
    code, out, message = add(labels, "--audio", "s3://closed/八月")
    assert (code, out) == (2, "")
    assert re.search(f"s3://closed/八月: .*{proxy.endpoint}.*AccessDenied", message)
    assert tree(tmp_path) == before
    assert add(labels, "--audio", "s3://open/八月")[0] == 0


@pytest.mark.parametrize(
    ("cut_after", "named"),
    [(0, "{endpoint}"), (200, r"connection .*\b5 .*\(0 bytes")],  # before the response, and within its headers
)
def test_an_endpoint_that_drops_every_connection(proxy: Proxy, tmp_path: Path, cut_after: int, named: str) -> None:
    labels = table(tmp_path, [f"s3://open/八月/t{number}.wav" for number in range(3)])
    proxy.cut_after = cut_after
    code, out, message = add(labels)
    assert (code, set(re.findall(r"^\w+", out, re.MULTILINE))) == (1, {"refused"})
    assert re.search(r"3 of 3 .*\(100%\)", message)
    assert re.search(rf"row 1 \(s3://open/八月/t0.wav\): .*{named.format(endpoint=proxy.endpoint)}", message)
    assert message.count("s3://open/八月/t0.wav") == 1
    assert not (tmp_path / "songs").exists()
    proxy.cut_after = None
    assert add(labels)[0] == 0
    assert len(read_labels(tmp_path / "songs" / "labels.csv").clips) == 3


def test_an_object_is_downloaded_in_pieces_from_an_endpoint_that_cuts_responses(proxy: Proxy, tmp_path: Path) -> None:
    proxy.cut_after = 9_000  # of 40,044 bytes, with headers
    assert add(table(tmp_path, [f"s3://open/八月/t{number}.wav" for number in range(4)]))[0] == 0
    assert len(read_labels(tmp_path / "songs" / "labels.csv").clips) == 4
