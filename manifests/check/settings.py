"""Would a run start with the settings that the cluster holds? Read as a run reads them, compared with what is there."""

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from audioscore.config import Config, load_config
from audioscore.errors import AudioscoreError
from manifests.check.objects import Object, Pod, namespace_of, of_kind, pods, title
from manifests.check.references import secret_keys

S3_NAMES = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")


def settings_faults(objects: list[Object]) -> list[str]:
    """Faults of every `audioscore run` that a pod would start."""
    return [
        f"{pod.owner}: {fault}"
        for pod in pods(objects)
        for container in pod.containers
        if container.get("command", [])[:2] == ["audioscore", "run"]
        for fault in _run_faults(pod, container, objects)
    ]


def _run_faults(pod: Pod, container: Object, objects: list[Object]) -> Iterator[str]:
    words = [*container["command"], *container.get("args", [])]
    values = {one["name"]: one.get("value", "") for one in container.get("env", [])}
    for name, value in values.items():
        words = [word.replace(f"$({name})", value) for word in words]
    options = [word.split("=", 1) for word in words if word.startswith("--") and "=" in word]
    path = next((value for key, value in options if key == "--config"), None)
    text = _mounted(pod, container, path, objects)
    if path is None or text is None:
        yield f"`{shlex.join(words)}` names no --config that a ConfigMap of the pod holds"
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_text(text, encoding="utf-8")
            config = load_config(file, [value for key, value in options if key == "--set"])
    except AudioscoreError as fault:
        yield f"its settings are refused: {fault}"
        return
    yield from _secret_faults(config, objects)
    yield from _store_faults(config, pod, objects)


def _mounted(pod: Pod, container: Object, path: str | None, objects: list[Object]) -> str | None:
    """The text of a ConfigMap's file that a container sees under a path."""
    if path is None:
        return None
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for mount in container.get("volumeMounts", []):
        named = volumes.get(mount["name"], {}).get("configMap", {}).get("name")
        if Path(path).parent != Path(mount["mountPath"]):
            continue
        for one in of_kind(objects, "ConfigMap"):
            if one["metadata"]["name"] == named and namespace_of(one) == pod.namespace:
                found = one.get("data", {}).get(Path(path).name)
                return None if found is None else str(found)
    return None


def _secret_faults(config: Config, objects: list[Object]) -> Iterator[str]:
    """Secrets of the steps lie where the steps run."""
    namespace = config.cluster.namespace or ""
    known = secret_keys([one for one in objects if namespace_of(one) == namespace])
    for secret in config.cluster.secrets:
        missing = sorted(set(secret.env) - known.get(secret.name, set()))
        if missing:
            yield f"cluster.secrets: {namespace}/{secret.name} has no {', '.join(missing)}"


def _store_faults(config: Config, pod: Pod, objects: list[Object]) -> Iterator[str]:
    """The steps write to the object store that everybody else reads."""
    for one in of_kind(objects, "ConfigMap"):
        told = one.get("data") or {}
        if namespace_of(one) != pod.namespace or S3_NAMES[0] not in told:
            continue
        for name in S3_NAMES:
            if config.cluster.env.get(name) != told.get(name):
                yield f"cluster.env.{name} is {config.cluster.env.get(name)}, but {title(one)} says {told.get(name)}"
