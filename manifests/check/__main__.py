"""`python -m manifests.check [FOLDER]`: build every overlay and check it.

Exit code 0 without problems, 1 with a line for each problem, 2 if the check could not run.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from audioscore.errors import AudioscoreError
from manifests.check.build import build_overlay, copy_with_secrets, find_kubectl
from manifests.check.links import link_problems
from manifests.check.objects import Object
from manifests.check.policies import policy_problems
from manifests.check.schemas import KUBERNETES, schema_problems
from manifests.check.security import pod_problems, secret_problems
from manifests.check.settings import settings_problems

MANIFESTS = Path(__file__).resolve().parents[1]
MAY_HOLD_SECRETS = ("dev",)  # overlays with generated passwords, which git ignores


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every overlay of a manifests folder and print the problems; returns the exit code."""
    folder = Path(arguments[0]) if arguments else MANIFESTS
    try:
        found = check(folder)
    except AudioscoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for overlay, (count, problems) in found.items():
        for problem in problems:
            sys.stdout.write(f"{overlay}: {problem}\n")
        summary = f"{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "no problems"
        sys.stdout.write(f"{overlay}: {count} objects for Kubernetes {KUBERNETES}, {summary}\n")
    return int(any(problems for _, problems in found.values()))


def check(folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Build and check every overlay; returns the number of objects and the problems, by overlay."""
    with tempfile.TemporaryDirectory() as temporary:
        copied = copy_with_secrets(folder, Path(temporary) / "manifests")
        overlays = sorted(path.parent for path in copied.glob("overlays/*/kustomization.yaml"))
        if not overlays:
            raise AudioscoreError(f"{folder}: no overlays/*/kustomization.yaml to check. Name the manifests folder.")
        kubectl = find_kubectl()
        built = {path.name: build_overlay(kubectl, path) for path in overlays}
    return {name: (len(objects), problems_of(name, objects)) for name, objects in built.items()}


def problems_of(overlay: str, objects: list[Object]) -> list[str]:
    """All problems of one overlay's objects; schemas first, since the rules rely on them."""
    problems = [problem for one in objects for problem in schema_problems(one)]
    if problems:
        return problems
    problems = pod_problems(objects) + policy_problems(objects) + link_problems(objects) + settings_problems(objects)
    return problems if overlay in MAY_HOLD_SECRETS else problems + secret_problems(objects)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
