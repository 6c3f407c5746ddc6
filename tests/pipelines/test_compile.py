"""The compiled pipeline: the golden file is what the code compiles to, and it keeps to what runs everywhere."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.base import IMAGE
from pipelines.compile import GOLDEN, compile_pipeline
from pipelines.platform import Platform

IMAGE_INPUT = "{{$.inputs.parameters['pipelinechannel--image']}}"
UNCACHED = {"fetch-data", "register-winner"}
STEPS = {
    "fetch-data", "validate-data", "sort-data", "extract-features", "train-scorer", "evaluate-scorers",
    "register-winner",
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
    """The tasks that run something."""
    return {name: task for name, task in tasks(document) if not name.startswith("for-loop")}


def test_the_golden_file_is_what_the_code_compiles_to(tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    compile_pipeline(target)
    assert target.read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8"), (
        "compile again with `python -m pipelines.compile`"
    )


def test_compiling_is_a_program(tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    subprocess.run([sys.executable, "-m", "pipelines.compile", str(target)], check=True, capture_output=True)
    assert target.read_bytes() == GOLDEN.read_bytes()


def test_every_step_runs_in_the_pipelines_image(golden: dict[str, Any]) -> None:
    executors = golden["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors} == STEPS == set(steps(golden))
    for executor in executors.values():
        assert executor["container"]["image"] == IMAGE_INPUT
        assert "pip install" not in str(executor)
    image = golden["root"]["inputDefinitions"]["parameters"]["image"]
    assert (image["defaultValue"], image["isOptional"]) == (IMAGE, True)


def test_code_and_data_are_inputs_of_every_step_after_the_first(golden: dict[str, Any]) -> None:
    loops = [task for name, task in tasks(golden) if name.startswith("for-loop")]
    for name, task in steps(golden).items():
        inputs = task["inputs"]["parameters"]
        if name == "fetch-data":
            assert "code_rev" not in inputs
            continue
        code, data = inputs["code_rev"]["componentInputParameter"], inputs["data_digest"]
        source = data.get("taskOutputParameter") or loops[0]["inputs"]["parameters"][data["componentInputParameter"]]
        source = source.get("taskOutputParameter", source)
        assert code in {"code_rev", "pipelinechannel--code_rev"}
        assert source == {"outputParameterKey": "data_digest", "producerTask": "fetch-data"}


def test_only_fetching_and_registering_are_never_cached(golden: dict[str, Any]) -> None:
    cached = {name: task["cachingOptions"].get("enableCache", False) for name, task in steps(golden).items()}
    assert {name for name, on in cached.items() if not on} == UNCACHED


def test_the_pipeline_uses_only_what_runs_everywhere(golden: dict[str, Any]) -> None:
    executors = golden["deploymentSpec"]["executors"].values()
    assert all(set(executor) == {"container"} for executor in executors)  # no importers
    for executor in executors:
        assert not {"resources", "env"} & set(executor["container"])
    for _, task in tasks(golden):
        assert "triggerPolicy" not in task  # no conditions, no exit handlers
        assert "artifactIterator" not in task
    assert "platforms" not in golden


def test_platforms_differ_in_nothing_but_their_constants(tmp_path: Path, golden: dict[str, Any]) -> None:
    other = compiled(tmp_path / "other.yaml", Platform(parallel_trainings=3))
    limit = golden["root"]["dag"]["tasks"]["for-loop-1"].pop("iteratorPolicy")
    assert limit == {"parallelismLimit": 1}
    assert other["root"]["dag"]["tasks"]["for-loop-1"].pop("iteratorPolicy") == {"parallelismLimit": 3}
    assert other == golden
    free = compiled(tmp_path / "free.yaml", Platform(parallel_trainings=0))
    assert "iteratorPolicy" not in free["root"]["dag"]["tasks"]["for-loop-1"]
    assert free == golden
