"""Pod security: the restricted Pod Security Standard, and stricter rules of this project."""

import re
from collections.abc import Iterator

from manifests.check.objects import Object, Pod, of_kind, pods, title

# Source: kubernetes.io, Pod Security Standards, Restricted, "Volume Types".
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
NEEDED = ("cpu", "memory")
SECRETIVE = re.compile(r"password|passwd|secret|token|credential|access_?key", re.IGNORECASE)
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
# Source: kubernetes.io, Quantity.
SUFFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SUFFIXES |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", start=1)}


def pod_problems(objects: list[Object]) -> list[str]:
    """Problems of every pod that the objects would create."""
    return [f"{pod.owner}: {problem}" for pod in pods(objects) for problem in _problems_of(pod)]


def _problems_of(pod: Pod) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(key):
            yield f"{key} is not allowed"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: no pod here uses the Kubernetes API"
    for volume in pod.spec.get("volumes", []):
        kind = next((key for key in volume if key != "name"), "nothing")
        if kind not in VOLUMES:
            yield f"volume {volume['name']} is a {kind}, which the restricted standard does not allow"
        if kind == "emptyDir" and "sizeLimit" not in (volume[kind] or {}):
            yield f"volume {volume['name']} has no sizeLimit: it could fill the disk of its node"
    for container in pod.containers:
        problems = [*_image_problems(container), *_resource_problems(container), *_privilege_problems(pod, container)]
        yield from (f"container {container['name']}: {problem}" for problem in problems)
        yield from _literal_secrets(container)


def _image_problems(container: Object) -> Iterator[str]:
    image = str(container.get("image", ""))
    name, _, tag = image.rpartition("/")[2].partition("@")[0].partition(":")
    if not name:
        yield f"image {image!r} has no name"
    elif "@" in image and not DIGEST.search(image):
        yield f"image {image} has a digest that is not sha256 and 64 digits"
    elif tag == "latest":
        yield f"image {image} is `latest`, which changes over time: set a version or a digest"
    elif not tag and "@" not in image:
        yield f"image {image} has no tag: set a version or a digest"


def _resource_problems(container: Object) -> Iterator[str]:
    resources = container.get("resources") or {}
    for part in ("requests", "limits"):
        missing = [name for name in NEEDED if name not in (resources.get(part) or {})]
        if missing:
            yield f"no {' and no '.join(missing)} in resources.{part}"
    for name, wanted in (resources.get("requests") or {}).items():
        most = (resources.get("limits") or {}).get(name)
        try:
            if most is not None and quantity(wanted) > quantity(most):
                yield f"requests {wanted} of {name}, more than its limit {most}"
        except ValueError as error:
            yield f"{name}: {error}"


def _privilege_problems(pod: Pod, container: Object) -> Iterator[str]:
    whole, own = pod.spec.get("securityContext") or {}, container.get("securityContext") or {}
    if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
        yield "may run as root: runAsNonRoot must be true"
    if own.get("runAsUser", whole.get("runAsUser")) in (None, 0):
        yield "user is root or not set: runAsUser must be above 0"
    profile = own.get("seccompProfile", whole.get("seccompProfile")) or {}
    if profile.get("type") != "RuntimeDefault":
        yield "seccompProfile must be RuntimeDefault"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation must be false"
    if own.get("privileged"):
        yield "privileged is not allowed"
    capabilities = own.get("capabilities") or {}
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "capabilities must drop ALL and add none"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem must be true"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "hostPort is not allowed"


def _literal_secrets(container: Object) -> Iterator[str]:
    """Variables with a password's name must take their value from a secret; paths are exempt."""
    for variable in container.get("env", []):
        name = variable["name"]
        if SECRETIVE.search(name) and variable.get("value") and not name.endswith("_PATH"):
            yield f"container {container['name']}: {name} is written in the manifest: take it from a secret"


def secret_problems(objects: list[Object]) -> list[str]:
    """Secrets whose values are in the manifests."""
    return [
        f"{title(one)}: contains values ({', '.join(sorted(one.get('data') or one.get('stringData') or {}))}): "
        "use an ExternalSecret"
        for one in of_kind(objects, "Secret")
    ]


def quantity(text: str | int | float) -> float:
    """Parse a number of cores, bytes or devices.

    >>> quantity("250m"), quantity("2Gi"), quantity(4)
    (0.25, 2147483648.0, 4.0)
    """
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in SUFFIXES:
        raise ValueError(f"{text!r} is not a quantity: 250m, 2, 512Mi")
    return float(match[1]) * SUFFIXES[match[2]]
