import re
from typing import Any

import pytest

from manifests.check.policies import policy_problems


def check(objects: list[dict[str, Any]], *parts: str) -> None:
    problems = policy_problems(objects)
    assert len(problems) == len(parts), problems
    assert [problem for problem, part in zip(problems, parts, strict=True) if not re.match(part, problem)] == []


def without(tree: Any, kind: str) -> list[dict[str, Any]]:
    return [one for one in tree.objects if one["kind"] != kind]


def test_a_valid_namespace_has_no_problem(tree: Any) -> None:
    check(tree.objects)


def test_the_restricted_standard_of_the_checked_version_is_required(tree: Any) -> None:
    tree["Namespace"]["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "baseline"}
    label = r"Namespace songs: pod-security.kubernetes.io/enforce"
    check(tree.objects, rf"{label} .*restricted", rf"{label}-version .*v1\.34")


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("ResourceQuota", "Namespace songs: .*ResourceQuota"),
        ("LimitRange", "Namespace songs: .*LimitRange"),
        ("NetworkPolicy", "Namespace songs: .*NetworkPolicy"),
        ("Namespace", ".*Namespace"),
    ],
)
def test_a_missing_object_is_named(tree: Any, kind: str, part: str) -> None:
    check(without(tree, kind), part)


def test_a_policy_with_an_exception_is_no_default(tree: Any) -> None:
    closed = next(one for one in tree.objects if one["metadata"]["name"] == "closed")
    closed["spec"]["ingress"] = [{}]
    check(tree.objects, "Namespace songs: .*NetworkPolicy")


def test_every_object_names_its_namespace(tree: Any) -> None:
    del tree["Service"]["metadata"]["namespace"]
    check(tree.objects, "Service web: ")
