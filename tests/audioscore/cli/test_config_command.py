import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.config import DEMO, SMALL, load_config
from audioscore.errors import UsageError


def show(*options: str) -> str:
    said = CliRunner().invoke(app, ["config", "show", *options], catch_exceptions=False)
    assert said.exit_code == 0
    return said.stdout


def test_a_configuration_shows_the_keys_it_sets() -> None:
    values = yaml.safe_load(show())
    assert set(values) == {"encoders", "registry"}
    assert values["registry"] == {"model": "audioscore"}
    assert json.loads(show("--json")) == values


def test_resolved_shows_every_key() -> None:
    values = json.loads(show("--resolved", "--json"))
    assert values == load_config(SMALL).model_dump(mode="json")
    assert values["training"]["seeds"] == [1, 2, 3]
    assert yaml.safe_load(show("--resolved")) == values


def test_overrides_and_another_file() -> None:
    values = json.loads(show("--config", str(DEMO), "--set", "training.epochs=7", "--json"))
    assert values["training"] == {"epochs": 7}
    assert values["registry"]["model"] == "audioscore-demo"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "training.epoch=3"], r"training\.epoch: there is no such key"),
        (["--set", "training"], r"--set training: expected a\.b=value"),
        (
            ["--config", "gone.yaml"],
            r"gone\.yaml: no such configuration\. Shipped ones: demo\.yaml, full\.yaml, small",
        ),
    ],
)
def test_what_is_wrong_is_named(options: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        CliRunner().invoke(app, ["config", "show", *options], catch_exceptions=False)
