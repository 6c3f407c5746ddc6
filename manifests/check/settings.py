"""The settings of runs that pods start: read as a run reads them, and compared with the objects of the cluster."""

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from audioscore.config import Config, load_config
from audioscore.errors import AudioscoreError
from manifests.check.objects import Object, Pod, namespace_of, of_kind, pods, title
from manifests.check.references import secret_keys

S3_NAMES = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")


def settings_problems(objects: list[Object]) -> list[str]:
    """Problems of every `audioscore run` that a pod would start."""
    return [
        f"{pod.owner}: {problem}"
        for pod in pods(objects)
        for container in pod.containers
        if container.get("command", [])[:2] == ["audioscore", "run"]
        for problem in _run_problems(pod, container, objects)
    ]


def _run_problems(pod: Pod, container: Object, objects: list[Object]) -> Iterator[str]:
    words = [*container["command"], *container.get("args", [])]
    values = {one["name"]: one.get("value", "") for one in container.get("env", [])}
    for name, value in values.items():
        words = [word.replace(f"$({name})", value) for word in words]
    options = [word.split("=", 1) for word in words if word.startswith("--") and "=" in word]
    path = next((value for key, value in options if key == "--config"), None)
    text = _mounted(pod, container, path, objects)
    if path is None or text is None:
        yield f"`{shlex.join(words)}` has no --config from a ConfigMap of the pod"
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_text(text, encoding="utf-8")
            config = load_config(file, [value for key, value in options if key == "--set"])
    except AudioscoreError as error:
        yield f"its settings are refused: {error}"
        return
    yield from _secret_problems(config, objects)
    yield from _store_problems(config, pod, objects)


def _mounted(pod: Pod, container: Object, path: str | None, objects: list[Object]) -> str | None:
    """The text of a ConfigMap's file that is mounted at a path of a container."""
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


def _secret_problems(config: Config, objects: list[Object]) -> Iterator[str]:
    """The secrets of the steps must exist in the namespace where the steps run."""
    namespace = config.cluster.namespace or ""
    available = secret_keys([one for one in objects if namespace_of(one) == namespace])
    for secret in config.cluster.secrets:
        missing = sorted(set(secret.env) - available.get(secret.name, set()))
        if missing:
            yield f"cluster.secrets: {namespace}/{secret.name} has no {', '.join(missing)}"


def _store_problems(config: Config, pod: Pod, objects: list[Object]) -> Iterator[str]:
    """The steps must use the object store of the pod's ConfigMap."""
    for one in of_kind(objects, "ConfigMap"):
        values = one.get("data") or {}
        if namespace_of(one) != pod.namespace or S3_NAMES[0] not in values:
            continue
        for name in S3_NAMES:
            if config.cluster.env.get(name) != values.get(name):
                yield f"cluster.env.{name} is {config.cluster.env.get(name)}, but {title(one)} has {values.get(name)}"
