"""Every step in a container of this machine, by Docker or Podman.

KFP's own runner lets the engine remove a container by itself while its exit code is still to be read: 2.17 then says
that there is no such container, or takes a failed step for a finished one. Here a container is waited for, its log is
kept to the last line, and then it is removed, whatever happened.
"""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.errors import UsageError
from audioscore.platforms import ContainersSection
from pipelines.causes import OUT_OF_MEMORY, WAS_KILLED
from pipelines.container_log import follow_log
from pipelines.platform import UID

if TYPE_CHECKING:
    from docker import DockerClient
    from kfp.local import DockerRunner

DOCKER_SOCKET = Path("/var/run/docker.sock")
LABEL = "audioscore.run"
REVISION, UNKNOWN = "org.opencontainers.image.revision", "unknown"  # as components/image/Dockerfile writes them
KILLED = 137  # exit code of what was ended by signal 9
START_SECONDS = 30.0  # that Podman's service may take to answer
# Variables that say where things are and who may read them. What else the shell holds stays outside.
PASSED = ("AWS_", "MLFLOW_TRACKING_", "HF_ENDPOINT", "HF_TOKEN", "OMP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PATHS = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")  # files of this machine, not of the image


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """A container engine that DOCKER_HOST names: the user's, Docker's own socket, or Podman's service, started here.

    Raises UsageError where there is none.
    """
    if os.environ.get("DOCKER_HOST") or DOCKER_SOCKET.exists():
        _ask()
        yield
        return
    program = shutil.which("podman")
    if program is None:
        raise UsageError(
            "no container engine: neither DOCKER_HOST, nor Docker's socket, nor podman was found. "
            "Install Docker or Podman, or run with --on local."
        )
    with tempfile.TemporaryDirectory() as folder:
        socket, said = Path(folder) / "podman.sock", Path(folder) / "podman.log"
        with said.open("w") as log:
            service = subprocess.Popen(
                [program, "system", "service", "--time=0", f"unix://{socket}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,  # it drops files where it began
                start_new_session=True,  # an interrupt from the terminal must not end it before its containers
            )  # fmt: skip
        try:
            _await(socket, service, said)
            os.environ["DOCKER_HOST"] = f"unix://{socket}"
            _ask()
            yield
        finally:
            os.environ.pop("DOCKER_HOST", None)
            service.terminate()
            service.wait()


def _ask() -> None:
    """Whether the engine answers at all, before a step is given to it."""
    import docker
    from docker.errors import DockerException

    address = os.environ.get("DOCKER_HOST", f"unix://{DOCKER_SOCKET}")
    fault: Exception | str = "no such socket"
    if not address.startswith("unix://") or Path(address.removeprefix("unix://")).exists():
        try:
            with contextlib.closing(docker.from_env()) as client:
                client.ping()
            return
        except DockerException as found:
            fault = found
    raise UsageError(f"the container engine at {address} does not answer ({fault}). Start it, or correct DOCKER_HOST.")


def _await(socket: Path, service: "subprocess.Popen[bytes]", said: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while not socket.exists():
        if service.poll() is not None or time.monotonic() > until:
            lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
            raise UsageError(f"podman's service did not start ({lines[-1]}). Try `podman info`.")
        time.sleep(0.05)


@dataclass(frozen=True)
class Containers:
    """What steps in containers get: their settings, the home to write in, and folders to read, under the same paths."""

    section: ContainersSection
    home: Path
    read: tuple[Path, ...]


def runner(containers: Containers, owner: str) -> "DockerRunner":
    """KFP's runner with these settings; `owner` is what its containers are labelled with.

    Steps run as this user; where this is root, as the image's own user, who is given the home.
    """
    from docker.types import DeviceRequest, Mount
    from kfp import local

    section, home = containers.section, containers.home
    user, group = os.getuid(), os.getgid()
    if user != 0 and _is_rootless():
        user = group = 0  # nobody's root: it is this user, outside
    elif user == 0:
        user = group = UID
        _give(home, user, group)
    mounts = [Mount(str(home), str(home), type="bind")]
    mounts += [
        Mount(str(path), str(path), type="bind", read_only=True)
        for path in dict.fromkeys(containers.read)
        if not path.is_relative_to(home)
    ]
    settings: dict[str, Any] = {
        "user": f"{user}:{group}",
        # DVC asks for the user's name, and a number that the image does not know has none.
        "environment": {**_environment(os.environ), "HOME": "/tmp", "LOGNAME": "audioscore", **_caches(home)},
        "mounts": mounts,
        "labels": {LABEL: owner},
        "network_mode": "host",  # a server of runs or of objects may listen on this machine only
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
    """Whether the engine runs as this user, whose own number is 0 inside its containers then."""
    import docker

    with contextlib.closing(docker.from_env()) as client:
        return any("rootless" in str(option) for option in client.info().get("SecurityOptions") or ())


def _caches(home: Path) -> dict[str, str]:
    """State and downloads outlive a step, in the home."""
    return {
        "AUDIOSCORE_HOME": str(home),
        "HF_HOME": str(home / "cache" / "huggingface"),
        "MODELSCOPE_CACHE": str(home / "cache" / "modelscope"),
    }


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    from pipelines.local_run import OFFLINE

    passed = {name: value for name, value in variables.items() if name.upper().startswith(PASSED)}
    return {**OFFLINE, **{name: value for name, value in passed.items() if name not in PATHS}}


def _give(folder: Path, user: int, group: int) -> None:
    """What root made before the steps run as somebody else; root still reads and writes it.

    A file with a second name is left alone: it may be the user's recording, of which a run holds a hard link.
    """
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = os.path.join(parent, name)
            found = os.lstat(path)
            if found.st_uid != user and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                os.chown(path, user, group, follow_symlinks=False)


def end_leftovers(owner: str) -> int:
    """Remove the containers of a run, which a killed one has left running. How many."""
    import docker
    from docker.errors import NotFound

    with contextlib.closing(docker.from_env()) as client:
        left = client.containers.list(all=True, filters={"label": f"{LABEL}={owner}"})
        for container in left:
            with contextlib.suppress(NotFound):  # whoever waits for it was faster
                container.remove(v=True, force=True)
    return len(left)


@dataclass(frozen=True)
class ImageCode:
    """Which image a name means now, and the revision of the code in it, as its build noted it."""

    image: str
    revision: str


def code_in(image: str) -> ImageCode:
    """What an image says of itself; one that was built without a revision is told by its id.

    Raises UsageError where there is no such image.
    """
    import docker

    with contextlib.closing(docker.from_env()) as client:
        _have(client, image)
        found = client.images.get(image)
    number = str(found.id).removeprefix("sha256:")[:12]
    said = (found.labels or {}).get(REVISION, UNKNOWN)
    return ImageCode(f"{image} {number}", said if said != UNKNOWN else f"{UNKNOWN}-image-{number}")


@contextlib.contextmanager
def waited_for(image: str) -> Iterator[None]:
    """KFP's runner with `run_container` in place of its own, and this image: 2.17 puts no parameter in an image's name.

    Raises UsageError where there is no such image.
    """
    import docker
    from kfp.local import docker_task_handler

    with contextlib.closing(docker.from_env()) as asked:
        _have(asked, image)

    def run(client: "DockerClient", image: str, **given: Any) -> int:
        return run_container(client, known, **given)

    known = image

    before = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = before


def run_container(client: "DockerClient", image: str, command: list[str], volumes: Any, **settings: Any) -> int:
    """Run a container to its end, its log on standard output; its exit code.

    Raises UsageError where the engine does not make such a container.
    """
    from docker.errors import DockerException, NotFound

    try:
        container = client.containers.create(image=image, command=command, volumes=volumes, **settings)
    except DockerException as fault:
        raise _told(f"no container of {image} could be made ({_said(fault)}). See the section containers.") from fault
    try:
        try:
            container.start()
        except DockerException as fault:
            raise _told(f"a container of {image} could not be started ({_said(fault)}).") from fault
        follow_log(container)
        code = int(container.wait()["StatusCode"])
        if code == KILLED:
            sys.stdout.write(f"\n{OUT_OF_MEMORY if _is_out_of_memory(container) else WAS_KILLED}\n")
        return code
    finally:
        with contextlib.suppress(NotFound):  # an interrupt has removed it
            container.remove(v=True, force=True)  # and the volumes that the image declares


def _told(sentence: str) -> UsageError:
    """An error that the step's log holds too: of what is raised in a loop, KFP keeps nothing."""
    sys.stdout.write(f"audioscore.errors.UsageError: {sentence}\n")
    return UsageError(sentence)


def _is_out_of_memory(container: Any) -> bool:
    """Whether the system ended a container for its memory; not every engine notes it."""
    from docker.errors import DockerException

    try:
        container.reload()
    except DockerException:  # somebody has removed it
        return False
    return bool(container.attrs.get("State", {}).get("OOMKilled"))


def _have(client: "DockerClient", image: str) -> None:
    """The image, from here or from where its name points."""
    from docker.errors import DockerException, ImageNotFound

    try:
        client.images.get(image)
        return
    except ImageNotFound:
        pass
    try:
        client.images.pull(image)
    except DockerException as fault:
        raise UsageError(
            f"there is no image {image} here, and it could not be pulled ({_said(fault)}). Build it with `make image`."
        ) from fault


def _said(fault: Exception) -> str:
    return " ".join(str(getattr(fault, "explanation", None) or fault).split())
