from importlib.metadata import version

import pytest

from audioscore.tracking import register
from audioscore.tracking.register import pinned_requirements


def test_a_registered_scorer_names_what_it_needs_as_installed() -> None:
    pinned = dict(line.split("==") for line in pinned_requirements())
    assert pinned["torch"] == version("torch").split("+")[0]
    assert {"mlflow", "muq", "safetensors", "transformers", "av"} <= set(pinned)
    assert "great-expectations" not in pinned
    assert list(pinned) == sorted(pinned)


def test_what_is_not_installed_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "REQUIREMENTS", ("numpy", "no-such-package"))
    assert pinned_requirements() == [f"numpy=={version('numpy')}"]


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ({"value": 0.5, "lo": 0.25, "hi": 0.75}, "0.500 (0.250 to 0.750)"),
        ({"value": 0.5, "lo": None, "hi": None}, "undefined"),
        ({"value": None, "lo": None, "hi": None}, "undefined"),
    ],
)
def test_an_interval_in_words(figure: dict[str, float | None], text: str) -> None:
    assert register._interval_text(figure) == text
