"""A container engine and the image, built from this tree. Without an engine, the tests are skipped with the reason."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
IMAGE = "localhost/audioscore-python:test"
DEBIAN = "localhost/debian-python:bookworm"
BUILD_SECONDS = 1500


def cannot(reason: str) -> None:
    """Skip with the reason; fail in CI, which has an engine."""
    if os.environ.get("CI"):
        pytest.fail(f"containers cannot run here, and CI must run them: {reason}", pytrace=False)
    pytest.skip(f"CONTAINERS WERE NOT TESTED: {reason}")


@pytest.fixture(scope="session")
def engine_settings() -> Iterator[None]:
    """Settings of Podman for virtual machines, unless the machine has its own."""
    with pytest.MonkeyPatch.context() as patch:
        if not Path("/etc/containers/containers.conf").exists():
            patch.setenv("CONTAINERS_CONF", str(Path(__file__).with_name("containers.conf")))
        # Podman has the image, also on a machine with Docker.
        patch.delenv("DOCKER_HOST", raising=False)
        patch.setattr("pipelines.container_engine.DOCKER_SOCKET", Path("/var/run/no-docker.sock"))
        yield


@pytest.fixture(scope="session")
def image(engine_settings: None) -> str:
    """The name of the image, built by the script that `make image` calls."""
    podman = shutil.which("podman")
    if podman is None:
        cannot("podman is not installed (Debian: podman, runc, debootstrap)")
    base = os.environ.get("BASE") or _base(str(podman))
    built = subprocess.run(
        [str(REPOSITORY / "components" / "image" / "build.sh"), IMAGE],
        env={**os.environ, "BASE": base, "ENGINE": "podman"}, capture_output=True, text=True, timeout=BUILD_SECONDS,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    # The image of an earlier build has lost its name and uses 7 GB.
    ours = "label=org.opencontainers.image.title=audioscore"
    subprocess.run([str(podman), "image", "prune", "--force", "--filter", ours], capture_output=True)
    tried = subprocess.run(
        [str(podman), "run", "--rm", "--network", "host", IMAGE, "true"], capture_output=True, text=True
    )
    if tried.returncode != 0:
        cannot(tried.stderr.strip().splitlines()[-1])
    return IMAGE


def _base(podman: str) -> str:
    """A base image made of Debian packages; no registry is needed."""
    if subprocess.run([podman, "image", "exists", DEBIAN]).returncode != 0:
        script = REPOSITORY / "components" / "image" / "debian_base.sh"
        made = subprocess.run([str(script), DEBIAN], capture_output=True, text=True)
        if made.returncode != 0:
            cannot(f"no base image could be made: {made.stderr.strip().splitlines()[-1:]}")
    return DEBIAN
