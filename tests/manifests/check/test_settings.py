import re
from typing import Any

import pytest

from manifests.check.settings import settings_problems

DIGEST = f"sha256:{'1' * 64}"
RUN = """
encoders: {muq: {source: a/b}, campplus: {source: c/d}}
cluster:
  namespace: songs
  secrets: [{name: login, env: {word: WORD}}]
  env: {AWS_ENDPOINT_URL: "http://s3", AWS_DEFAULT_REGION: here}
"""


@pytest.fixture
def running(tree: Any) -> Any:
    """The tree, whose pod starts a run with settings from a ConfigMap."""
    metadata = {"name": "settings", "namespace": "songs"}
    store = {"AWS_ENDPOINT_URL": "http://s3", "AWS_DEFAULT_REGION": "here", "bucket": "songs"}
    tree["ConfigMap"]["data"] = store
    tree.objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"run.yaml": RUN}})
    tree.container.update(
        command=["audioscore", "run", "--on", "cluster"],
        args=["--config=/etc/audioscore/run.yaml", "--set=cluster.image=$(AUDIOSCORE_IMAGE)"],
        env=[{"name": "AUDIOSCORE_IMAGE", "value": f"web@{DIGEST}"}],
        volumeMounts=[{"name": "settings", "mountPath": "/etc/audioscore"}],
    )
    tree.pod["volumes"] = [{"name": "settings", "configMap": {"name": "settings"}}]
    return tree


def check(running: Any, text: str, *parts: str) -> None:
    """With these settings there is one problem of the pod, with these parts in order."""
    running["ConfigMap"]["data"]["run.yaml"] = text
    (problem,) = settings_problems(running.objects)
    assert re.search(".*".join(("^Deployment songs/web: ", *map(re.escape, parts))), problem), problem


def test_valid_settings(running: Any) -> None:
    assert settings_problems(running.objects) == []


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("env: {AWS", "gpu: 4\n  env: {AWS", ["1 ", "cluster.gpu: ", "gpus"]),
        ("word: WORD", "wort: WORD", ["cluster.secrets: songs/login ", "wort"]),
        ("namespace: songs", "namespace: kubeflow", ["cluster.secrets: kubeflow/login ", "word"]),
        ("http://s3", "http://s4", ["cluster.env.AWS_ENDPOINT_URL ", "http://s4", "songs/storage", "http://s3"]),
    ],
)
def test_a_wrong_setting_is_named(running: Any, old: str, new: str, parts: list[str]) -> None:
    check(running, RUN.replace(old, new), *parts)


def test_an_image_without_a_digest_is_refused(running: Any) -> None:
    running.container["env"][0]["value"] = "web:1.2"
    check(running, RUN, "cluster.image: ", "web:1.2")


def test_a_run_without_settings(running: Any) -> None:
    running.pod["volumes"] = []
    check(running, RUN, "--config")
