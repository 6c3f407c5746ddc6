import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.encoders.download import PUBLISHED
from audioscore.errors import ModelError, UsageError
from audioscore.files import sha256_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pull(*options: str) -> Result:
    return CliRunner().invoke(app, ["encoders", "pull", *options])


@pytest.fixture
def config(tmp_path: Path, tiny_encoders: Path) -> Path:
    """A configuration whose encoders are folders beside it."""
    shutil.copytree(tiny_encoders, tmp_path / "encoders")
    path = tmp_path / "run.yaml"
    muq, campplus = "{source: ./encoders/muq-small, layer: 2}", "{source: ./encoders/campplus-small}"
    path.write_text(f"encoders:\n  muq: {muq}\n  campplus: {campplus}\n")
    return path


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_encoders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache after a pull of the published MuQ, without a network."""
    import huggingface_hub.constants as constants

    # What HF_HUB_OFFLINE=1 and HF_HUB_CACHE set in a fresh interpreter.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    repository = tmp_path / "hf" / f"models--{PUBLISHED['muq'].replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(tiny_encoders / "muq-small", repository / "snapshots" / COMMIT))


def test_folders_are_checked_and_hashed(config: Path) -> None:
    result = pull("--config", str(config), "--json")
    assert result.exit_code == 0
    muq, campplus = json.loads(result.stdout)["encoders"]
    assert [muq["kind"], campplus["kind"]] == ["muq", "campplus"]
    for row in (muq, campplus):
        folder = Path(row["folder"])
        assert folder == config.parent / "encoders" / f"{row['kind']}-small"
        assert {file["name"]: file["sha256"] for file in row["files"]} == {
            file["name"]: sha256_of(folder / file["name"]) for file in row["files"]
        }
        assert (row["id"], row["revision"], row["error"], row["notes"]) == (None, None, None, [])
    assert [file["name"] for file in muq["files"]] == ["config.json", "model.safetensors"]
    assert campplus["sha256"] == campplus["files"][1]["sha256"]


def test_text_lists_licence_files_and_hashes(config: Path) -> None:
    result = pull("--config", str(config), "--only", "campplus")
    assert result.exit_code == 0
    folder = config.parent / "encoders" / "campplus-small"
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["campplus", str(folder)]
    assert "unknown" in lines[1]
    weights = json.loads((folder / "configuration.json").read_text())["model"]["pretrained_model"]
    assert lines[2].split()[-1] == sha256_of(folder / weights)
    for line, name in zip(lines[3:], ("configuration.json", weights), strict=True):
        for part in (sha256_of(folder / name), f" {(folder / name).stat().st_size:,} ", name):
            assert part in line


def test_weights_other_than_the_configurations_pins_are_refused(config: Path) -> None:
    hashes = [row["sha256"] for row in json.loads(pull("--config", str(config), "--json").stdout)["encoders"]]
    muq, campplus = "{source: ./encoders/muq-small, layer: 2, sha256: %s}", "{source: ./encoders/campplus-small, %s}"
    config.write_text(f"encoders:\n  muq: {muq % hashes[0].upper()}\n  campplus: {campplus % f'sha256: {hashes[1]}'}\n")
    assert pull("--config", str(config)).exit_code == 0
    config.write_text(f"encoders:\n  muq: {muq % hashes[1]}\n  campplus: {campplus % 'sha256: null'}\n")
    result = pull("--config", str(config))
    assert result.exit_code == 3
    folder = config.parent / "encoders" / "muq-small"
    assert re.search(f"{folder}: .*{hashes[0]}.*{hashes[1]}", result.stderr)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("pin", ["abc", "g" * 64, "a" * 65, "1234"])
def test_an_invalid_pin_is_refused(config: Path, pin: str) -> None:
    config.write_text(config.read_text().replace("layer: 2", f"layer: 2, sha256: {pin}"))
    result = pull("--config", str(config))
    assert isinstance(result.exception, UsageError)
    assert re.search(rf"{config}: 1 .*encoders\.muq\.sha256", str(result.exception))


def test_the_published_muq_in_the_cache_is_listed_with_commit_and_licence(hub_cache: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"encoders:\n  muq: {{source: {PUBLISHED['muq']}, layer: 1}}\n  campplus: {{source: /nowhere}}\n")
    result = pull("--config", str(config), "--only", "muq")
    assert result.exit_code == 0, result.output
    for part in ("OpenMuQ/MuQ-large-msd-iter", COMMIT, str(hub_cache), "CC BY-NC 4.0", "cache"):
        assert part in result.stdout


def test_without_a_configuration_the_published_encoders_are_pulled(hub_cache: Path) -> None:
    """The stand-in in the cache has two layers, and the published MuQ is read at layer 6."""
    result = pull("--only", "muq", "--json")
    assert isinstance(result.exception, ModelError)
    (row,) = json.loads(result.stdout)["encoders"]
    assert row == {"kind": "muq", "source": "OpenMuQ/MuQ-large-msd-iter", "error": str(result.exception)}
    assert re.search(r"layer 6: .*1 to 2.*encoders\.muq\.layer", row["error"])


def test_one_failed_encoder_does_not_stop_the_other(config: Path) -> None:
    (config.parent / "encoders" / "muq-small" / "config.json").unlink()
    result = pull("--config", str(config), "--json")
    assert result.exit_code == 3
    muq, campplus = json.loads(result.stdout)["encoders"]
    assert "config.json" in muq["error"]
    assert campplus["error"] is None
    assert muq["error"] in result.stderr
    assert pull("--config", str(config)).stdout.startswith("campplus  ")


def test_without_any_encoder_the_last_error_ends_the_program(config: Path) -> None:
    shutil.rmtree(config.parent / "encoders")
    result = pull("--config", str(config))
    assert isinstance(result.exception, ModelError)
    assert result.exception.exit_code == 2
    assert "CAM++" in str(result.exception)
    assert "MuQ" in result.stderr
    assert result.stdout == ""


def test_an_unknown_encoder_is_refused() -> None:
    result = pull("--only", "wav2vec")
    assert isinstance(result.exception, UsageError)
    assert re.search("--only wav2vec: .*muq.*campplus", str(result.exception))
