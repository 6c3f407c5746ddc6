from typing import Any

import pytest

from manifests.check.schemas import schema_problems


def check(tree: Any, *expected: tuple[str, ...]) -> None:
    """The problems begin with the first part of each entry and contain the others."""
    problems = [problem for one in tree.objects for problem in schema_problems(one)]
    assert len(problems) == len(expected), problems
    for problem, (start, *parts) in zip(problems, expected, strict=True):
        assert problem.startswith(start), problem
        assert [part for part in parts if part not in problem] == [], problem


def test_valid_objects_have_no_problem(tree: Any) -> None:
    check(tree)


def test_an_unknown_field_of_kubernetes_is_named(tree: Any) -> None:
    tree.container["imagePullPolice"] = "Always"
    check(tree, ("Deployment songs/web: spec.template.spec.containers.0: ", "'imagePullPolice'"))


def test_a_wrong_type_is_named(tree: Any) -> None:
    tree["Service"]["spec"]["ports"][0]["port"] = "eighty"
    tree["TrainingRuntime"]["spec"]["mlPolicy"]["numNodes"] = "two"
    check(
        tree,
        ("Service songs/web: spec.ports.0.port: ", "'eighty'"),
        ("TrainingRuntime songs/torch: numNodes: ", "integer"),
    )


def test_an_unknown_api_or_kind_is_a_problem(tree: Any) -> None:
    tree["PodDisruptionBudget"]["apiVersion"] = "policy/v1beta1"
    tree["TrainingRuntime"]["kind"] = "TrainingRunTime"
    check(
        tree,
        ("PodDisruptionBudget songs/web: ", "policy/v1beta1 PodDisruptionBudget", "1.34"),
        ("TrainingRunTime songs/torch: ", "trainer.kubeflow.org/v1alpha1", "kind TrainingRunTime"),
    )


def test_fields_that_the_trainer_models_would_drop_are_named(tree: Any) -> None:
    runtime = tree["TrainingRuntime"]["spec"]
    runtime["mlPolicy"]["torch"]["numProcPerNode"] = "auto"
    job = runtime["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["containers"][0]["resources"]["limit"] = {"cpu": 1}
    path = "spec.template.spec.replicatedJobs.0.template.spec.template.spec.containers.0.resources.limit"
    start = "TrainingRuntime songs/torch: "
    check(tree, (f"{start}spec.mlPolicy.torch.numProcPerNode: ",), (f"{start}{path}: ",))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"refreshIntervall": "1h"}, ("spec: ", "'refreshIntervall'")),
        ({"refreshInterval": "hourly"}, ("spec.refreshInterval: ", "'hourly'")),
        ({"data": []}, ("spec.data: ",)),
    ],
)
def test_external_secrets_have_a_schema_of_this_repository(
    tree: Any, change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    tree["ExternalSecret"]["spec"].update(change)
    check(tree, (f"ExternalSecret songs/login: {parts[0]}", *parts[1:]))


def test_an_object_without_metadata_is_a_problem() -> None:
    (problem,) = schema_problems({"kind": "Pod"})
    assert problem.startswith("{'kind': 'Pod'}: ")
    assert "metadata" in problem
