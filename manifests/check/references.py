"""References of a pod: settings, secrets, service account, volumes, and the ports of its health checks."""

from collections.abc import Iterator

from manifests.check.objects import Object, Pod, namespace_of, of_kind

Keys = dict[str, set[str]]  # name -> keys


def reference_problems(pod: Pod, objects: list[Object]) -> list[str]:
    """Names in a pod that do not exist in its namespace."""
    inside = [one for one in objects if namespace_of(one) == pod.namespace]
    settings, secrets = _settings(inside), secret_keys(inside)
    problems = [*_account_problems(pod, inside)]
    for container in pod.containers:
        problems += _variable_problems(container, settings, secrets)
        problems += _mount_problems(container, pod)
        problems += _health_check_problems(container)
    for volume in pod.spec.get("volumes", []):
        problems += _volume_problems(volume, inside, settings, secrets)
    return [f"{pod.owner}: {problem}" for problem in problems]


def _settings(objects: list[Object]) -> Keys:
    return {
        one["metadata"]["name"]: {*(one.get("data") or {}), *(one.get("binaryData") or {})}
        for one in of_kind(objects, "ConfigMap")
    }


def secret_keys(objects: list[Object]) -> Keys:
    """Secret name -> keys, of secrets and of those that an ExternalSecret will create."""
    found = {
        one["metadata"]["name"]: {*(one.get("data") or {}), *(one.get("stringData") or {})}
        for one in of_kind(objects, "Secret")
    }
    for one in of_kind(objects, "ExternalSecret"):
        found[one["spec"]["target"]["name"]] = {entry["secretKey"] for entry in one["spec"]["data"]}
    return found


def _account_problems(pod: Pod, inside: list[Object]) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account is None:
        yield "no serviceAccountName: it would run as `default`, which all pods share"
    elif account not in {one["metadata"]["name"] for one in of_kind(inside, "ServiceAccount")}:
        yield f"ServiceAccount {account} does not exist"


def _variable_problems(container: Object, settings: Keys, secrets: Keys) -> Iterator[str]:
    for source in container.get("envFrom", []):
        for key, available, kind in (("configMapRef", settings, "ConfigMap"), ("secretRef", secrets, "Secret")):
            if key in source:
                yield from _missing(kind, source[key]["name"], None, available)
    for variable in container.get("env", []):
        source = variable.get("valueFrom") or {}
        for key, available, kind in (("configMapKeyRef", settings, "ConfigMap"), ("secretKeyRef", secrets, "Secret")):
            if key in source:
                yield from _missing(kind, source[key]["name"], source[key]["key"], available)


def _missing(kind: str, name: str, key: str | None, available: Keys) -> Iterator[str]:
    if name not in available:
        external = "" if kind == "ConfigMap" else ", and no ExternalSecret creates it"
        yield f"{kind} {name} does not exist{external}"
    elif key is not None and key not in available[name]:
        yield f"{kind} {name} has no key {key}; it has {', '.join(sorted(available[name]))}"


def _mount_problems(container: Object, pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | set(pod.claims)
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"container {container['name']} mounts {mount['name']}, which is not a volume of the pod"


def _health_check_problems(container: Object) -> Iterator[str]:
    ports = {port.get("name") for port in container.get("ports", [])}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        check = container.get(kind) or {}
        for how in ("httpGet", "tcpSocket"):
            port = (check.get(how) or {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"container {container['name']}: {kind} uses port {port}, which the container does not have"


def _volume_problems(volume: Object, inside: list[Object], settings: Keys, secrets: Keys) -> Iterator[str]:
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]["claimName"]
        if claim not in {one["metadata"]["name"] for one in of_kind(inside, "PersistentVolumeClaim")}:
            yield f"PersistentVolumeClaim {claim} does not exist"
    sources = [volume, *(volume.get("projected") or {}).get("sources", [])]
    for source in sources:
        for key, available, kind, named in (
            ("configMap", settings, "ConfigMap", "name"),
            ("secret", secrets, "Secret", "secretName" if source is volume else "name"),
        ):
            if key in source:
                name, items = source[key][named], source[key].get("items", [])
                for wanted in [item["key"] for item in items] or [None]:
                    yield from _missing(kind, name, wanted, available)
