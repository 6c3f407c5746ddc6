import json

import pytest
import yaml
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.config import DEMO, SMALL, load_config
from audioscore.errors import UsageError


def show(*options: str) -> str:
    result = CliRunner().invoke(app, ["config", "show", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_configuration_shows_the_keys_it_sets() -> None:
    values = yaml.safe_load(show())
    assert set(values) == {"encoders", "registry"}
    assert json.loads(show("--json")) == values


def test_resolved_shows_every_key() -> None:
    values = json.loads(show("--resolved", "--json"))
    assert values == load_config(SMALL).model_dump(mode="json")
    assert yaml.safe_load(show("--resolved")) == values


def test_overrides_and_another_file() -> None:
    values = json.loads(show("--config", str(DEMO), "--set", "training.epochs=7", "--json"))
    assert values["training"] == {"epochs": 7}
    assert values["registry"]["model"] == "audioscore-demo"


def test_a_wrong_override_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"training\.epoch\b"):
        show("--set", "training.epoch=3")
