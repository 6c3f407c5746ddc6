"""The compiled pipeline equals the golden file and uses only features that every platform supports."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from audioscore.platforms import IMAGE, ClusterSection, SecretSection, TolerationSection, VolumeSection
from pipelines.compile import GOLDEN, compile_pipeline, main
from pipelines.platform import GPU_STEPS, Platform, on_cluster
from pipelines.request import CompileRequest

IMAGE_INPUT = "{{$.inputs.parameters['pipelinechannel--image']}}"
UNCACHED = {"fetch-data", "register-winner"}
STEPS = {
    "fetch-data", "validate-data", "sort-data", "extract-shard", "extract-features", "train-scorer",
    "evaluate-scorers", "register-winner",
}  # fmt: skip


def compiled(target: Path, *platform: Platform) -> dict[str, Any]:
    compile_pipeline(target, *platform)
    document: dict[str, Any] = yaml.safe_load(target.read_text(encoding="utf-8"))
    return document


@pytest.fixture
def golden() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))
    return document


def tasks(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of the root and of the loops, by name."""
    dags = [document["root"]["dag"], *(part["dag"] for part in document["components"].values() if "dag" in part)]
    for dag in dags:
        yield from dag["tasks"].items()


def steps(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tasks that run a component."""
    return {name: task for name, task in tasks(document) if not name.startswith("for-loop")}


def test_the_code_compiles_to_the_golden_file(tmp_path: Path) -> None:
    """After a change of the pipeline, run: python -m pipelines.compile."""
    target = tmp_path / "pipeline.yaml"
    command = [sys.executable, "-m", "pipelines", "compile", json.dumps({"out": str(target)})]
    subprocess.run(command, check=True, capture_output=True)
    assert target.read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


def test_every_step_runs_in_the_pipelines_image(golden: dict[str, Any]) -> None:
    executors = golden["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors} == STEPS == set(steps(golden))
    for executor in executors.values():
        assert executor["container"]["image"] == IMAGE_INPUT
        assert "pip install" not in str(executor)
    image = golden["root"]["inputDefinitions"]["parameters"]["image"]
    assert (image["defaultValue"], image["isOptional"]) == (IMAGE, True)


def test_code_and_data_are_inputs_of_every_step_after_the_first(golden: dict[str, Any]) -> None:
    loops = {
        inner: task
        for name, task in tasks(golden)
        if name.startswith("for-loop")
        for inner in golden["components"][task["componentRef"]["name"]]["dag"]["tasks"]
    }
    for name, task in steps(golden).items():
        inputs = task["inputs"]["parameters"]
        if name == "fetch-data":
            assert "code_rev" not in inputs
            continue
        code, data = inputs["code_rev"]["componentInputParameter"], inputs["data_digest"]
        source = data.get("taskOutputParameter") or loops[name]["inputs"]["parameters"][data["componentInputParameter"]]
        source = source.get("taskOutputParameter", source)
        assert code in {"code_rev", "pipelinechannel--code_rev"}
        assert source == {"outputParameterKey": "data_digest", "producerTask": "fetch-data"}


def test_only_fetching_and_registering_are_never_cached(golden: dict[str, Any]) -> None:
    cached = {name: task["cachingOptions"].get("enableCache", False) for name, task in steps(golden).items()}
    assert {name for name, on in cached.items() if not on} == UNCACHED


def test_the_pipeline_uses_only_common_features(golden: dict[str, Any]) -> None:
    executors = golden["deploymentSpec"]["executors"].values()
    assert all(set(executor) == {"container"} for executor in executors)  # no importers
    for executor in executors:
        assert not {"resources", "env"} & set(executor["container"])
    for _, task in tasks(golden):
        assert "triggerPolicy" not in task  # no conditions, no exit handlers
        assert "artifactIterator" not in task
    assert "platforms" not in golden


IMAGE_BY_DIGEST = "registry.example/audioscore-python@sha256:" + "a" * 64
CLUSTER = ClusterSection(
    image=IMAGE_BY_DIGEST, feature_store="s3://features/audioscore", tracking_uri="https://mlflow.example", gpus=4,
    node_selector={"pool": "gpu"}, tolerations=[TolerationSection(key="nvidia.com/gpu", effect="NoSchedule")],
    secrets=[SecretSection(name="object-store", env={"key": "AWS_ACCESS_KEY_ID"})],
    volume=VolumeSection(claim="encoders"), env={"HF_HUB_OFFLINE": "1"}, labels={"team": "scoring"},
    pull_secrets=["registry"], hours={"train_scorer": 30}, retries=3,
)  # fmt: skip


def without_platform(document: dict[str, Any]) -> dict[str, Any]:
    """The pipeline without what a platform may set: resources, variables, retries and parallelism."""
    for executor in document["deploymentSpec"]["executors"].values():
        for name in ("resources", "env"):
            executor["container"].pop(name, None)
    for _, task in tasks(document):
        task.pop("retryPolicy", None)
        task.pop("iteratorPolicy", None)
    return document


def test_platforms_differ_only_in_their_constants(tmp_path: Path, golden: dict[str, Any]) -> None:
    target = tmp_path / "cluster.yaml"
    compile_pipeline(target, on_cluster(CLUSTER))
    pipeline, platform = yaml.safe_load_all(target.read_text(encoding="utf-8"))
    assert without_platform(pipeline) == without_platform(golden)
    assert set(platform) == {"platforms"}
    other = tmp_path / "other.yaml"
    compile_pipeline(other, on_cluster(CLUSTER.model_copy(update={"gpus": 1, "volume": None, "retries": 0})))
    again, _ = yaml.safe_load_all(other.read_text(encoding="utf-8"))
    assert without_platform(again) == pipeline
    assert compiled(tmp_path / "free.yaml", Platform(parallel_trainings=0)) == golden


def test_pods_have_the_settings_of_the_cluster_section(tmp_path: Path) -> None:
    target = tmp_path / "cluster.yaml"
    compile_pipeline(target, on_cluster(CLUSTER))
    pipeline, platform = yaml.safe_load_all(target.read_text(encoding="utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors} == STEPS
    for name, pod in executors.items():
        step = name.removeprefix("exec-").replace("-", "_")
        container = pipeline["deploymentSpec"]["executors"][name]["container"]
        heavy = step in GPU_STEPS
        resources = container["resources"]
        limits = resources["resourceCpuLimit"], resources["resourceMemoryLimit"]
        assert limits == (("8", "48Gi") if heavy else ("2", "8Gi"))
        assert ("accelerator" in resources) == heavy
        assert ("nodeSelector" in pod) == ("tolerations" in pod) == heavy
        mounts = {mount["mountPath"] for mount in pod["emptyDirMounts"]}
        assert mounts == ({"/state", "/dev/shm"} if heavy else {"/state"})  # /cache is the volume
        assert pod["pvcMount"][0]["mountPath"] == "/cache"
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert int(pod["activeDeadlineSeconds"]) == (30 if step == "train_scorer" else 6) * 3600
        assert pod["secretAsEnv"][0]["keyToEnv"][0] == {"secretKey": "key", "envVar": "AWS_ACCESS_KEY_ID"}
        assert pod["podMetadata"]["labels"]["team"] == "scoring"
        assert pod["podMetadata"]["labels"]["audioscore/step"] == step
        assert container["env"] == [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    for name, task in steps(pipeline).items():
        assert task["retryPolicy"]["maxRetryCount"] == 3, name


SETTINGS = (
    f"cluster.image={IMAGE_BY_DIGEST}", "cluster.feature_store=s3://features/audioscore",
    "cluster.tracking_uri=https://mlflow.example", "cluster.namespace=scoring", "cluster.shards=3",
    "data.uri=s3://corpus/songs", "encoders.muq.source=OpenMuQ/MuQ-large-msd-iter",
    "encoders.campplus.source=iic/speech_campplus_sv_zh-cn_16k-common",
)  # fmt: skip


def test_a_cluster_pipeline_has_defaults_for_all_parameters_but_run_id(tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    assert main(CompileRequest(str(target), overrides=SETTINGS)) == 0
    pipeline, _ = yaml.safe_load_all(target.read_text(encoding="utf-8"))
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert {name for name, value in parameters.items() if "defaultValue" not in value} == {"run_id"}
    assert parameters["shards"]["defaultValue"] == ["0/3", "1/3", "2/3"]
    assert parameters["image"]["defaultValue"] == IMAGE_BY_DIGEST
    assert not {"cluster", "containers"} & set(parameters["settings"]["defaultValue"])


def test_kubernetes_resources_hold_the_same_pipeline(tmp_path: Path) -> None:
    target = tmp_path / "resources.yaml"
    assert main(CompileRequest(str(target), overrides=SETTINGS, kubernetes=True)) == 0
    documents = list(yaml.safe_load_all(target.read_text(encoding="utf-8")))
    assert [document["kind"] for document in documents] == ["Pipeline", "PipelineVersion"]
    assert {document["metadata"]["namespace"] for document in documents} == {"scoring"}
    executors = documents[1]["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]
    assert set(executors) == {f"exec-{step}" for step in STEPS}


@pytest.mark.parametrize(
    ("config", "overrides", "names"),
    [
        (None, ["cluster.gpus=1"], ("cluster.image", "digest")),
        (None, ["cluster.image=registry.example/a:latest"], ("registry.example/a:latest", "digest")),
        (None, ["cluster.shm=lots"], ("cluster.shm: ", "lots")),
        (None, ["cluster.gpu=1"], ("cluster.gpu: ",)),
        ("gone.yaml", [], ("gone.yaml: ",)),
    ],
)
def test_wrong_settings_write_no_file(
    config: str | None, overrides: list[str], names: tuple[str, ...], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    target = tmp_path / "pipeline.yaml"
    assert main(CompileRequest(str(target), config, overrides)) == 2
    err = capsys.readouterr().err
    assert [name for name in names if name not in err] == []
    assert not target.exists()


def test_a_target_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(CompileRequest(str(tmp_path / "pipeline.json"))) == 2
    assert ".yaml" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(CompileRequest(str(tmp_path / "file" / "pipeline.yaml"))) == 2
    assert capsys.readouterr().err.startswith("error: ")
