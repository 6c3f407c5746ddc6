"""`python -m manifests.check [FOLDER]`: build every overlay and judge it.

Exit code 0 where all hold, 1 with a line for each fault, 2 where nothing could be judged.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from audioscore.errors import AudioscoreError
from manifests.check.build import build_overlay, copy_with_secrets, find_kubectl
from manifests.check.links import link_faults
from manifests.check.objects import Object
from manifests.check.policies import policy_faults
from manifests.check.schemas import KUBERNETES, schema_faults
from manifests.check.security import pod_faults, secret_faults
from manifests.check.settings import settings_faults

MANIFESTS = Path(__file__).resolve().parents[1]
MAY_HOLD_SECRETS = ("dev",)  # overlays whose passwords are made on the spot, and kept out of git


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge every overlay of a manifests folder, and say what was found on standard output."""
    folder = Path(arguments[0]) if arguments else MANIFESTS
    try:
        found = check(folder)
    except AudioscoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for overlay, (count, faults) in found.items():
        for fault in faults:
            sys.stdout.write(f"{overlay}: {fault}\n")
        verdict = f"{len(faults)} fault{'s' * (len(faults) != 1)}" if faults else "all hold"
        sys.stdout.write(f"{overlay}: {count} objects for Kubernetes {KUBERNETES}, {verdict}\n")
    return int(any(faults for _, faults in found.values()))


def check(folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Overlay -> how many objects it makes, and what is wrong with them."""
    with tempfile.TemporaryDirectory() as temporary:
        copied = copy_with_secrets(folder, Path(temporary) / "manifests")
        overlays = sorted(path.parent for path in copied.glob("overlays/*/kustomization.yaml"))
        if not overlays:
            raise AudioscoreError(f"{folder}: no overlays/*/kustomization.yaml to check. Name the manifests folder.")
        kubectl = find_kubectl()
        built = {path.name: build_overlay(kubectl, path) for path in overlays}
    return {name: (len(objects), faults_of(name, objects)) for name, objects in built.items()}


def faults_of(overlay: str, objects: list[Object]) -> list[str]:
    """Everything that is wrong with the objects of one overlay; schemas first, since the rules trust the shapes."""
    faults = [fault for one in objects for fault in schema_faults(one)]
    if faults:
        return faults
    faults = pod_faults(objects) + policy_faults(objects) + link_faults(objects) + settings_faults(objects)
    return faults if overlay in MAY_HOLD_SECRETS else faults + secret_faults(objects)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
