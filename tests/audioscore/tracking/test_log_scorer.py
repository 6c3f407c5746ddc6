from importlib.metadata import version

import pytest

from audioscore.tracking import runs
from audioscore.tracking.runs import pinned_requirements


def test_requirements_are_pinned_as_installed() -> None:
    pinned = dict(line.split("==") for line in pinned_requirements())
    assert pinned["torch"] == version("torch").split("+")[0]
    assert {"mlflow", "muq", "peft", "safetensors", "transformers", "av"} <= set(pinned)
    assert "great-expectations" not in pinned
    assert list(pinned) == sorted(pinned)


def test_missing_packages_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "REQUIREMENTS", ("numpy", "no-such-package"))
    assert pinned_requirements() == [f"numpy=={version('numpy')}"]
