import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.encoders.pull import PUBLISHED
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
def carried_cache(tmp_path: Path, tiny_encoders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache as it lies on the disk after a pull of the published MuQ, and no network."""
    import huggingface_hub.constants as constants

    # What HF_HUB_OFFLINE=1 and HF_HUB_CACHE set in a fresh interpreter.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    repository = tmp_path / "hf" / f"models--{PUBLISHED['muq'].replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(tiny_encoders / "muq-small", repository / "snapshots" / COMMIT))


def test_folders_are_checked_and_hashed(config: Path) -> None:
    said = pull("--config", str(config), "--json")
    assert said.exit_code == 0
    muq, campplus = json.loads(said.stdout)["encoders"]
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


def test_text_names_licence_files_and_hashes(config: Path) -> None:
    said = pull("--config", str(config), "--only", "campplus")
    assert said.exit_code == 0
    folder = config.parent / "encoders" / "campplus-small"
    lines = said.stdout.splitlines()
    assert lines[0] == f"campplus  {folder}"
    assert lines[1] == "  licence   unknown"
    weights = json.loads((folder / "configuration.json").read_text())["model"]["pretrained_model"]
    assert lines[2] == f"  sha256    {sha256_of(folder / weights)}"
    assert [line.split()[1:] for line in lines[3:]] == [
        [sha256_of(folder / name), f"{(folder / name).stat().st_size:,}", "bytes", name]
        for name in ("configuration.json", weights)
    ]


def test_weights_other_than_the_configurations_pins_are_refused(config: Path) -> None:
    hashes = [row["sha256"] for row in json.loads(pull("--config", str(config), "--json").stdout)["encoders"]]
    muq, campplus = "{source: ./encoders/muq-small, layer: 2, sha256: %s}", "{source: ./encoders/campplus-small, %s}"
    config.write_text(f"encoders:\n  muq: {muq % hashes[0].upper()}\n  campplus: {campplus % f'sha256: {hashes[1]}'}\n")
    assert pull("--config", str(config)).exit_code == 0
    config.write_text(f"encoders:\n  muq: {muq % hashes[1]}\n  campplus: {campplus % 'sha256: null'}\n")
    said = pull("--config", str(config))
    assert said.exit_code == 3
    folder = config.parent / "encoders" / "muq-small"
    assert said.stderr == (
        f"error: {folder}: SHA-256 {hashes[0]}, but {hashes[1]} is pinned. "
        "Correct the pin, or get the pinned weights.\n"
    )


@pytest.mark.parametrize("pin", ["abc", "g" * 64, "a" * 65, "1234"])
def test_a_pin_that_is_no_sha256_is_refused(config: Path, pin: str) -> None:
    config.write_text(config.read_text().replace("layer: 2", f"layer: 2, sha256: {pin}"))
    said = pull("--config", str(config))
    assert isinstance(said.exception, UsageError)
    assert str(said.exception).startswith(f"{config}: 1 wrong: encoders.muq.sha256: ")


def test_the_published_muq_in_a_carried_cache_is_named_with_commit_and_licence(
    carried_cache: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"encoders:\n  muq: {{source: {PUBLISHED['muq']}, layer: 1}}\n  campplus: {{source: /nowhere}}\n")
    said = pull("--config", str(config), "--only", "muq")
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert lines[:4] == [
        "muq       OpenMuQ/MuQ-large-msd-iter",
        f"  revision  {COMMIT}",
        f"  folder    {carried_cache}",
        "  licence   CC BY-NC 4.0",
    ]
    assert lines[-1].startswith("  note      the hub could not be asked (")
    assert lines[-1].endswith("): this is what its cache holds")


def test_without_a_configuration_the_published_ones_are_meant(carried_cache: Path) -> None:
    """The small stand-in in the cache has two layers, and the published MuQ is read at the sixth."""
    said = pull("--only", "muq", "--json")
    assert isinstance(said.exception, ModelError)
    (row,) = json.loads(said.stdout)["encoders"]
    assert row == {"kind": "muq", "source": "OpenMuQ/MuQ-large-msd-iter", "error": str(said.exception)}
    assert row["error"].endswith("MuQ layer 6: this model has layers 1 to 2. Set encoders.muq.layer.")


def test_one_that_fails_does_not_keep_the_other_from_coming(config: Path) -> None:
    (config.parent / "encoders" / "muq-small" / "config.json").unlink()
    said = pull("--config", str(config), "--json")
    assert said.exit_code == 3
    muq, campplus = json.loads(said.stdout)["encoders"]
    assert "not a MuQ folder, config.json missing" in muq["error"]
    assert campplus["error"] is None
    assert said.stderr == f"error: {muq['error']}\n"
    assert pull("--config", str(config)).stdout.startswith("campplus  ")


def test_where_none_came_the_last_fault_ends_the_program(config: Path) -> None:
    shutil.rmtree(config.parent / "encoders")
    said = pull("--config", str(config))
    assert isinstance(said.exception, ModelError)
    assert said.exception.exit_code == 2
    assert "not a CAM++ snapshot" in str(said.exception)
    assert said.stderr.startswith("error: ")
    assert "not a MuQ folder" in said.stderr
    assert said.stdout == ""


def test_an_encoder_that_does_not_exist_is_refused() -> None:
    said = pull("--only", "wav2vec")
    assert isinstance(said.exception, UsageError)
    assert str(said.exception) == "--only wav2vec: no such encoder. Give muq or campplus."
