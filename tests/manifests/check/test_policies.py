from typing import Any

from manifests.check.policies import policy_faults


def without(tree: Any, kind: str) -> list[dict[str, Any]]:
    return [one for one in tree.objects if one["kind"] != kind]


def test_a_sound_namespace_has_no_fault(tree: Any) -> None:
    assert policy_faults(tree.objects) == []


def test_the_restricted_standard_is_enforced_at_the_version_that_is_checked(tree: Any) -> None:
    tree["Namespace"]["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "baseline"}
    assert policy_faults(tree.objects) == [
        "Namespace songs: pod-security.kubernetes.io/enforce must be restricted",
        "Namespace songs: pod-security.kubernetes.io/enforce-version must be v1.34, the version that is checked here",
    ]


def test_a_namespace_has_a_quota_a_range_and_a_closed_network(tree: Any) -> None:
    assert policy_faults(without(tree, "ResourceQuota")) == ["Namespace songs: has no ResourceQuota"]
    assert policy_faults(without(tree, "LimitRange")) == ["Namespace songs: has no LimitRange"]
    message = "Namespace songs: has no NetworkPolicy that denies everything by default"
    assert policy_faults(without(tree, "NetworkPolicy")) == [message]


def test_a_policy_that_lets_something_through_is_no_default(tree: Any) -> None:
    closed = next(one for one in tree.objects if one["metadata"]["name"] == "closed")
    closed["spec"]["ingress"] = [{}]
    assert policy_faults(tree.objects) == ["Namespace songs: has no NetworkPolicy that denies everything by default"]


def test_every_object_names_its_namespace(tree: Any) -> None:
    del tree["Service"]["metadata"]["namespace"]
    assert policy_faults(tree.objects) == ["Service web: names no namespace"]


def test_a_build_without_a_namespace_says_nothing_of_security(tree: Any) -> None:
    assert policy_faults(without(tree, "Namespace")) == ["no Namespace: nothing says which Pod Security Standard holds"]
