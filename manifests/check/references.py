"""What a pod takes from elsewhere: settings, secrets, an account, volumes, a port of its own."""

from collections.abc import Iterator

from manifests.check.objects import Object, Pod, namespace_of, of_kind

Keys = dict[str, set[str]]  # name -> its keys


def reference_faults(pod: Pod, objects: list[Object]) -> list[str]:
    """Names in a pod that nothing in its namespace has."""
    inside = [one for one in objects if namespace_of(one) == pod.namespace]
    settings, secrets = _settings(inside), secret_keys(inside)
    faults = [*_account_faults(pod, inside)]
    for container in pod.containers:
        faults += _variable_faults(container, settings, secrets)
        faults += _mount_faults(container, pod)
        faults += _probe_faults(container)
    for volume in pod.spec.get("volumes", []):
        faults += _volume_faults(volume, inside, settings, secrets)
    return [f"{pod.owner}: {fault}" for fault in faults]


def _settings(objects: list[Object]) -> Keys:
    return {
        one["metadata"]["name"]: {*(one.get("data") or {}), *(one.get("binaryData") or {})}
        for one in of_kind(objects, "ConfigMap")
    }


def secret_keys(objects: list[Object]) -> Keys:
    """Secrets that are here, and those that an ExternalSecret will make."""
    found = {
        one["metadata"]["name"]: {*(one.get("data") or {}), *(one.get("stringData") or {})}
        for one in of_kind(objects, "Secret")
    }
    for one in of_kind(objects, "ExternalSecret"):
        found[one["spec"]["target"]["name"]] = {entry["secretKey"] for entry in one["spec"]["data"]}
    return found


def _account_faults(pod: Pod, inside: list[Object]) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account is None:
        yield "no serviceAccountName: it would run as `default`, which everybody shares"
    elif account not in {one["metadata"]["name"] for one in of_kind(inside, "ServiceAccount")}:
        yield f"ServiceAccount {account} is not there"


def _variable_faults(container: Object, settings: Keys, secrets: Keys) -> Iterator[str]:
    for source in container.get("envFrom", []):
        for key, known, kind in (("configMapRef", settings, "ConfigMap"), ("secretRef", secrets, "Secret")):
            if key in source:
                yield from _missing(kind, source[key]["name"], None, known)
    for variable in container.get("env", []):
        source = variable.get("valueFrom") or {}
        for key, known, kind in (("configMapKeyRef", settings, "ConfigMap"), ("secretKeyRef", secrets, "Secret")):
            if key in source:
                yield from _missing(kind, source[key]["name"], source[key]["key"], known)


def _missing(kind: str, name: str, key: str | None, known: Keys) -> Iterator[str]:
    if name not in known:
        external = "" if kind == "ConfigMap" else ", nor does an ExternalSecret make it"
        yield f"{kind} {name} is not there{external}"
    elif key is not None and key not in known[name]:
        yield f"{kind} {name} has no key {key}, but {', '.join(sorted(known[name]))}"


def _mount_faults(container: Object, pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | set(pod.claims)
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"container {container['name']} mounts {mount['name']}, which is no volume of the pod"


def _probe_faults(container: Object) -> Iterator[str]:
    ports = {port.get("name") for port in container.get("ports", [])}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(kind) or {}
        for how in ("httpGet", "tcpSocket"):
            port = (probe.get(how) or {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"container {container['name']}: {kind} asks port {port}, which it does not open"


def _volume_faults(volume: Object, inside: list[Object], settings: Keys, secrets: Keys) -> Iterator[str]:
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]["claimName"]
        if claim not in {one["metadata"]["name"] for one in of_kind(inside, "PersistentVolumeClaim")}:
            yield f"PersistentVolumeClaim {claim} is not there"
    sources = [volume, *(volume.get("projected") or {}).get("sources", [])]
    for source in sources:
        for key, known, kind, named in (
            ("configMap", settings, "ConfigMap", "name"),
            ("secret", secrets, "Secret", "secretName" if source is volume else "name"),
        ):
            if key in source:
                name, items = source[key][named], source[key].get("items", [])
                for wanted in [item["key"] for item in items] or [None]:
                    yield from _missing(kind, name, wanted, known)
