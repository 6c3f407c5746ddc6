"""Run every step in a container of this machine.

KFP 2.17's own runner lets the engine remove a container while its exit code is still to be read. It then reports a
missing container, or treats a failed step as finished. Here a container is awaited, its log is printed to the last
line, and only then is it removed.
"""

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.errors import UsageError
from audioscore.platforms import ContainersSection
from pipelines.container_engine import explain, require_image
from pipelines.platform import OFFLINE, UID
from pipelines.steplog import KILLED, OUT_OF_MEMORY

if TYPE_CHECKING:
    from docker import DockerClient
    from kfp.local import DockerRunner

LABEL = "audioscore.run"
SIGKILL_CODE = 137  # exit code of a container that signal 9 ended
LOG_GRACE = 3.0  # seconds after a container's end until its log stream is closed
# Environment variables for steps: addresses and credentials of services. All others stay outside.
PASSED = (
    "AWS_", "MLFLOW_TRACKING_", "HF_ENDPOINT", "HF_TOKEN", "OMP_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip
PATHS = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")  # files that the image does not have


@dataclass(frozen=True)
class Containers:
    """Settings of step containers: the home is mounted writable, `read` read-only, each at its own path."""

    section: ContainersSection
    home: Path
    read: tuple[Path, ...]


def docker_runner(containers: Containers, owner: str) -> "DockerRunner":
    """KFP's runner with these settings.

    Steps run as the current user; for root, as the image's user, who then becomes the owner of the home.

    Args:
        owner: label of the containers, by which `remove_containers` finds them.
    """
    from docker.types import DeviceRequest, Mount
    from kfp import local

    section, home = containers.section, containers.home
    user, group = os.getuid(), os.getgid()
    if user != 0 and _is_rootless():
        user = group = 0  # inside a rootless container, 0 is the current user
    elif user == 0:
        user = group = UID
        _change_owner(home, user, group)
    mounts = [Mount(str(home), str(home), type="bind")]
    mounts += [
        Mount(str(path), str(path), type="bind", read_only=True)
        for path in dict.fromkeys(containers.read)
        if not path.is_relative_to(home)
    ]
    settings: dict[str, Any] = {
        "user": f"{user}:{group}",
        # DVC needs a user name, and the image has none for this user id.
        "environment": {**_environment(os.environ), "HOME": "/tmp", "LOGNAME": "audioscore", **_caches(home)},
        "mounts": mounts,
        "labels": {LABEL: owner},
        "network_mode": "host",  # the MLflow server or object store may listen on this machine only
        "shm_size": section.shm,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", "label=disable"],  # SELinux would deny the folders of this machine
    }
    if section.memory is not None:
        settings["mem_limit"] = section.memory
    if section.gpus:
        settings["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return local.DockerRunner(**settings)


def _is_rootless() -> bool:
    """Whether the engine runs as the current user, who then has id 0 inside containers."""
    import docker

    with contextlib.closing(docker.from_env()) as client:
        return any("rootless" in str(option) for option in client.info().get("SecurityOptions") or ())


def _caches(home: Path) -> dict[str, str]:
    """Variables that keep state and downloads in the home, beyond the end of a step."""
    return {
        "AUDIOSCORE_HOME": str(home),
        "HF_HOME": str(home / "cache" / "huggingface"),
        "MODELSCOPE_CACHE": str(home / "cache" / "modelscope"),
    }


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    passed = {name: value for name, value in variables.items() if name.upper().startswith(PASSED)}
    return {**OFFLINE, **{name: value for name, value in passed.items() if name not in PATHS}}


def _change_owner(folder: Path, user: int, group: int) -> None:
    """Give a folder's content to the user of the steps; root can still read and write it.

    Files with several hard links are left out: they may be the user's recordings, to which a run holds hard links.
    """
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = os.path.join(parent, name)
            found = os.lstat(path)
            if found.st_uid != user and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                os.chown(path, user, group, follow_symlinks=False)


def remove_containers(owner: str) -> int:
    """Remove the containers of a run, which a killed run leaves behind; return their number."""
    import docker
    from docker.errors import NotFound

    with contextlib.closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": f"{LABEL}={owner}"})
        for container in found:
            with contextlib.suppress(NotFound):  # another thread has removed it
                container.remove(v=True, force=True)
    return len(found)


@contextlib.contextmanager
def use_image(image: str) -> Iterator[None]:
    """Make KFP's runner use `run_container` and this image; KFP 2.17 ignores the pipeline's image parameter.

    Raises:
        UsageError: the image is missing and cannot be pulled.
    """
    import docker
    from kfp.local import docker_task_handler

    with contextlib.closing(docker.from_env()) as own_client:
        require_image(own_client, image)

    def run(client: "DockerClient", image: str, **settings: Any) -> int:
        return run_container(client, step_image, **settings)

    step_image = image
    before = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = before


def run_container(client: "DockerClient", image: str, command: list[str], volumes: Any, **settings: Any) -> int:
    """Run a container to its end, print its log, and return its exit code.

    Raises:
        UsageError: the engine cannot create or start the container.
    """
    from docker.errors import DockerException, NotFound

    try:
        container = client.containers.create(image=image, command=command, volumes=volumes, **settings)
    except DockerException as error:
        raise _printed(
            f"container of {image}: not created ({explain(error)}). See the section containers of the configuration."
        ) from error
    try:
        try:
            container.start()
        except DockerException as error:
            raise _printed(f"container of {image}: not started ({explain(error)}). Check the engine.") from error
        follow_log(container)
        code = int(container.wait()["StatusCode"])
        if code == SIGKILL_CODE:
            sys.stdout.write(f"\n{OUT_OF_MEMORY if _is_out_of_memory(container) else KILLED}\n")
        return code
    finally:
        with contextlib.suppress(NotFound):  # an interrupt has removed it
            container.remove(v=True, force=True)  # including the volumes that the image declares


def _printed(message: str) -> UsageError:
    """An error that is also printed to the step's log: KFP drops exceptions that are raised inside a loop."""
    sys.stdout.write(f"audioscore.errors.UsageError: {message}\n")
    return UsageError(message)


def _is_out_of_memory(container: Any) -> bool:
    """Whether the system ended the container for lack of memory; not every engine records it."""
    from docker.errors import DockerException

    try:
        container.reload()
    except DockerException:  # it was removed meanwhile
        return False
    return bool(container.attrs.get("State", {}).get("OOMKilled"))


def follow_log(container: Any) -> None:
    """Print a container's log until the container has ended and its whole log is printed.

    Podman 4.3 sometimes misses a container's end while its log is followed, and never ends the stream. Another thread
    therefore waits for the end and closes the stream; the rest is then read from the stored log.
    """
    stream, over = container.logs(stream=True, follow=True), threading.Event()
    threading.Thread(target=_close_late, args=(container, stream, over), daemon=True).start()
    printed = 0
    for chunk in stream:
        printed += len(chunk)
        sys.stdout.write(chunk.decode(errors="replace"))
    over.set()
    container.wait()
    sys.stdout.write(container.logs()[printed:].decode(errors="replace"))


def _close_late(container: Any, stream: Any, over: threading.Event) -> None:
    """Close a stream that does not end although its container has."""
    from docker.errors import DockerException
    from requests import RequestException

    with contextlib.suppress(DockerException, RequestException, OSError):  # an interrupt has removed the container
        container.wait()
    if not over.wait(LOG_GRACE):
        with contextlib.suppress(DockerException, OSError):  # a stream through ssh cannot be closed
            stream.close()
