"""Components are thin entry points with the inputs and outputs of the golden pipeline."""

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.dsl.base_component import BaseComponent

import components
from components.base import IMAGE
from pipelines.compile import GOLDEN

NAMES = (
    "fetch_data", "validate_data", "sort_data", "extract_shard", "extract_features", "train_scorer", "evaluate_scorers",
    "register_winner",
)  # fmt: skip
FOLDER = Path(components.__file__).parent


def definition(name: str) -> BaseComponent:
    found = getattr(importlib.import_module(f"components.{name}"), name)
    assert isinstance(found, BaseComponent)
    return found


def test_each_file_is_one_component() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*NAMES, "__init__", "base"}


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_outputs_are_the_golden_files(name: str) -> None:
    golden: dict[str, Any] = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))["components"]
    expected = golden[f"comp-{name.replace('_', '-')}"]
    spec = definition(name).component_spec

    def names(part: str) -> set[str]:
        listed = expected.get(part, {})
        return {*listed.get("artifacts", {}), *listed.get("parameters", {})}

    assert set(spec.inputs or {}) == names("inputDefinitions")
    assert set(spec.outputs or {}) == names("outputDefinitions")


@pytest.mark.parametrize("name", NAMES)
def test_a_component_is_a_thin_function_of_the_image(name: str) -> None:
    """One function without classes and branches that imports the library inside: it runs alone in the image."""
    container = definition(name).component_spec.implementation.container
    assert container.image == IMAGE
    assert "pip install" not in json.dumps([container.command, container.args])
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert function.name == name
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.If | ast.For | ast.While)]
    outside = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert outside <= {"typing", "kfp", "components.base"}


class Artifact:
    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()


def test_fetching_returns_the_digest(tiny_corpus: Path, tmp_path: Path) -> None:
    from audioscore.data.versions.revision import folder_digest
    from components.fetch_data import fetch_data

    digest, revision = tmp_path / "digest", tmp_path / "revision"
    fetch_data.python_func(str(tiny_corpus), Artifact(tmp_path / "data"), str(digest), str(revision))
    assert digest.read_text(encoding="utf-8") == folder_digest(tiny_corpus) == folder_digest(tmp_path / "data")
    assert revision.read_text(encoding="utf-8") == ""


def test_sorting_groups_clips_without_a_singer_by_voice(tiny_corpus: Path, tiny_encoders: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    from audioscore.data.clips import Clip
    from audioscore.data.split.sort import read_split
    from audioscore.files import sha256_of, write_json
    from components.sort_data import sort_data

    files = sorted(tiny_corpus.glob("audio/*.wav"))[:12]
    clips = [
        Clip(f"audio/{path.name}", 60.0 + number, "a" if number < 2 else None, sha256=sha256_of(path))
        for number, path in enumerate(files)
    ]
    write_json(tmp_path / "validated" / "clips.json", [asdict(clip) for clip in clips])
    encoders = {name: {"source": str(tiny_encoders / f"{name}-small")} for name in ("muq", "campplus")}
    settings = {"encoders": encoders, "split": {"same_voice_cosine": 0.99999}}
    index = Artifact(tmp_path / "index")
    sort_data.python_func(
        Artifact(tiny_corpus), Artifact(tmp_path / "validated"), "digest", "code", settings,
        str(tmp_path / "features"), index,
    )  # fmt: skip
    report = json.loads((tmp_path / "index" / "split_report.json").read_text(encoding="utf-8"))
    assert sorted(report["pseudo_singers"]) == [clip.audio_file for clip in clips[2:]]
    assert len(list((tmp_path / "features").glob("campplus-*/*/*.safetensors"))) == 12
    assert sum(len(read_split(tmp_path / "index", split)) for split in ("train", "val", "test")) == 12
    assert index.metadata == {"data_digest": "digest"}
