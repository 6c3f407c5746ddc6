"""The container engine of this machine, Docker or Podman, and its images."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.errors import UsageError

if TYPE_CHECKING:
    from docker import DockerClient

DOCKER_SOCKET = Path("/var/run/docker.sock")
REVISION, UNKNOWN = "org.opencontainers.image.revision", "unknown"  # as components/image/Dockerfile writes them
START_SECONDS = 30.0  # that Podman's service may take to start


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """Provide a container engine in DOCKER_HOST: the user's, Docker's own socket, or a Podman service started here.

    Raises:
        UsageError: there is no engine, or it does not answer.
    """
    if os.environ.get("DOCKER_HOST") or DOCKER_SOCKET.exists():
        _check_engine()
        yield
        return
    program = shutil.which("podman")
    if program is None:
        raise UsageError(
            "container engine: DOCKER_HOST is not set, and neither Docker's socket nor podman was found. "
            "Install Docker or Podman, or run with --on local."
        )
    with tempfile.TemporaryDirectory() as folder:
        socket, log = Path(folder) / "podman.sock", Path(folder) / "podman.log"
        with log.open("w") as handle:
            service = subprocess.Popen(
                [program, "system", "service", "--time=0", f"unix://{socket}"],
                stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, cwd=folder,  # it writes files to its folder
                start_new_session=True,  # the terminal's interrupt must not end it before its containers
            )  # fmt: skip
        try:
            _await_socket(socket, service, log)
            os.environ["DOCKER_HOST"] = f"unix://{socket}"
            _check_engine()
            yield
        finally:
            os.environ.pop("DOCKER_HOST", None)
            service.terminate()
            service.wait()


def _check_engine() -> None:
    """Raise UsageError if the engine does not answer."""
    import docker
    from docker.errors import DockerException

    address = os.environ.get("DOCKER_HOST", f"unix://{DOCKER_SOCKET}")
    reason: Exception | str = "no such socket"
    if not address.startswith("unix://") or Path(address.removeprefix("unix://")).exists():
        try:
            with contextlib.closing(docker.from_env()) as client:
                client.ping()
            return
        except DockerException as error:
            reason = error
    raise UsageError(f"container engine at {address}: does not respond ({reason}). Start it, or correct DOCKER_HOST.")


def _await_socket(socket: Path, service: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not socket.exists():
        if service.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            raise UsageError(f"podman: its service did not start ({lines[-1]}). Try `podman info`.")
        time.sleep(0.05)


@dataclass(frozen=True)
class ImageCode:
    """An image's name with its current id, and the revision of the code in it."""

    image: str
    revision: str


def code_in(image: str) -> ImageCode:
    """Read the code revision from an image's labels; the image's id stands for a missing revision.

    Raises:
        UsageError: the image is missing and cannot be pulled.
    """
    import docker

    with contextlib.closing(docker.from_env()) as client:
        require_image(client, image)
        found = client.images.get(image)
    number = str(found.id).removeprefix("sha256:")[:12]
    revision = (found.labels or {}).get(REVISION, UNKNOWN)
    return ImageCode(f"{image} {number}", revision if revision != UNKNOWN else f"{UNKNOWN}-image-{number}")


def require_image(client: "DockerClient", image: str) -> None:
    """Pull an image if this machine does not have it.

    Raises:
        UsageError: it cannot be pulled.
    """
    from docker.errors import DockerException, ImageNotFound

    try:
        client.images.get(image)
        return
    except ImageNotFound:
        pass
    try:
        client.images.pull(image)
    except DockerException as error:
        raise UsageError(
            f"image {image}: not on this machine, and pulling it failed ({explain(error)}). Build it: `make image`."
        ) from error


def explain(error: Exception) -> str:
    """The engine's explanation of an error, in one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())
