"""Links between objects: every selector, port, role and scaling target that is named must exist."""

from collections.abc import Iterator

from manifests.check.objects import Object, Pod, made_namespaces, namespace_of, of_kind, pods, selects, title
from manifests.check.references import reference_problems

WITH_REPLICAS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")


def link_problems(objects: list[Object]) -> list[str]:
    """Problems of names without an object, in objects and in their pods."""
    found = pods(objects)
    problems = []
    for one in objects:
        namespace = namespace_of(one)
        inside = [pod for pod in found if pod.namespace == namespace]
        match one["kind"]:
            case "Service":
                problems += _titled(one, _service_problems(one["spec"], inside))
            case "NetworkPolicy":
                problems += _titled(one, _network_problems(one["spec"], inside))
            case "PodDisruptionBudget":
                problems += _titled(one, _selector_problems(one["spec"].get("selector"), inside, "selector"))
            case "HorizontalPodAutoscaler":
                problems += _titled(one, _target_problems(one, objects))
            case "RoleBinding" | "ClusterRoleBinding":
                problems += _titled(one, _binding_problems(one, objects))
            case kind if kind in WITH_REPLICAS:
                problems += _titled(one, _own_selector_problems(one, objects))
    for pod in found:
        problems += reference_problems(pod, objects)
    return problems + _image_problems(objects)


def _titled(one: Object, problems: Iterator[str]) -> list[str]:
    return [f"{title(one)}: {problem}" for problem in problems]


def _selector_problems(selector: Object | None, inside: list[Pod], where: str) -> Iterator[str]:
    """A selector that selects no pod, or that lists a value which no pod has."""
    if not any(selects(selector, pod.labels) for pod in inside):
        yield f"{where} {_text(selector)} selects no pod"
        return
    for one in (selector or {}).get("matchExpressions") or []:
        for value in one.get("values") or []:
            if not any(pod.labels.get(one["key"]) == value for pod in inside):
                yield f"{where} names {one['key']}={value}, which no pod has"


def _text(selector: Object | None) -> str:
    selector = selector or {}
    pairs = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    pairs += [
        f"{one['key']} {one['operator']} {one.get('values', [])}" for one in selector.get("matchExpressions") or []
    ]
    return ", ".join(pairs)


def _service_problems(spec: Object, inside: list[Pod]) -> Iterator[str]:
    selected = [pod for pod in inside if selects({"matchLabels": spec.get("selector")}, pod.labels)]
    if not selected:
        yield f"selector {_text({'matchLabels': spec.get('selector')})} selects no pod"
        return
    for port in spec["ports"]:
        target = port.get("targetPort", port["port"])
        yield from (f"port {port['port']}: {problem}" for problem in _port_problems(target, selected))


def _port_problems(target: str | int, selected: list[Pod]) -> Iterator[str]:
    """A port, by name or number, that a selected pod does not have."""
    for pod in selected:
        ports = [port for container in pod.containers for port in container.get("ports", [])]
        if target not in {port.get("name") for port in ports} | {port["containerPort"] for port in ports}:
            yield f"{pod.owner} has no container port {target}"


def _network_problems(spec: Object, inside: list[Pod]) -> Iterator[str]:
    yield from _selector_problems(spec.get("podSelector"), inside, "podSelector")
    own = [pod for pod in inside if selects(spec.get("podSelector"), pod.labels)]
    for direction, peer in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(direction, []):
            here = [one for one in rule.get(peer, []) if "podSelector" in one and "namespaceSelector" not in one]
            for one in here:
                yield from _selector_problems(one["podSelector"], inside, f"{direction}.{peer}.podSelector")
            others = [pod for pod in inside if any(selects(one["podSelector"], pod.labels) for one in here)]
            named = [port["port"] for port in rule.get("ports", []) if isinstance(port.get("port"), str)]
            for name in named:  # named ports of other namespaces cannot be checked
                yield from _port_problems(name, own if direction == "ingress" else others)


def _own_selector_problems(one: Object, objects: list[Object]) -> Iterator[str]:
    spec, labels = one["spec"], one["spec"]["template"]["metadata"]["labels"]
    if not selects(spec["selector"], labels):
        yield f"selector {_text(spec['selector'])} does not select its own pods"
    others = [
        pod.owner
        for pod in pods(objects)
        if pod.namespace == namespace_of(one) and pod.owner != title(one) and selects(spec["selector"], pod.labels)
    ]
    for other in others:
        yield f"selector {_text(spec['selector'])} also selects the pods of {other}"
    for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
        if not selects(spread.get("labelSelector"), labels):
            yield "topologySpreadConstraints select pods other than its own"
    if one["kind"] == "StatefulSet" and not _exists(objects, "Service", spec["serviceName"], namespace_of(one)):
        yield f"serviceName {spec['serviceName']} is not a Service"


def _target_problems(one: Object, objects: list[Object]) -> Iterator[str]:
    target = one["spec"]["scaleTargetRef"]
    if not _exists(objects, target["kind"], target["name"], namespace_of(one)):
        yield f"scales {target['kind']} {target['name']}, which does not exist"
    scaled = [
        found for found in of_kind(objects, target["kind"])
        if found["metadata"]["name"] == target["name"] and namespace_of(found) == namespace_of(one)
    ]  # fmt: skip
    if any("replicas" in found["spec"] for found in scaled):
        yield f"{target['kind']} {target['name']} also sets replicas: every apply would undo the scaling"


def _binding_problems(one: Object, objects: list[Object]) -> Iterator[str]:
    role = one["roleRef"]
    if not _exists(objects, role["kind"], role["name"], namespace_of(one) if role["kind"] == "Role" else ""):
        yield f"roleRef {role['kind']} {role['name']} does not exist"
    for subject in one.get("subjects", []):
        if subject["kind"] != "ServiceAccount" or subject.get("namespace") not in made_namespaces(objects):
            continue  # accounts of other namespaces are not in this build
        if not _exists(objects, "ServiceAccount", subject["name"], subject["namespace"]):
            yield f"subject {subject['name']} is not a ServiceAccount of {subject['namespace']}"


def _exists(objects: list[Object], kind: str, name: str, namespace: str) -> bool:
    return any(one["metadata"]["name"] == name and namespace_of(one) == namespace for one in of_kind(objects, kind))


def _image_problems(objects: list[Object]) -> list[str]:
    """AUDIOSCORE_IMAGE must be the container's own image, so that an overlay sets each image once."""
    return [
        f"{pod.owner}: AUDIOSCORE_IMAGE is {variable.get('value')}, not {container['image']}"
        for pod in pods(objects)
        for container in pod.containers
        for variable in container.get("env", [])
        if variable["name"] == "AUDIOSCORE_IMAGE" and variable.get("value") != container["image"]
    ]
