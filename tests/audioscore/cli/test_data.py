import contextlib
import csv
import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.errors import DataError, GateRefused, UsageError

KEYS = {"valid", "clips", "accepted", "rejected", "warnings", "expectations", "notes", "report"}
GATE = """
validation: {{min_clips: 5, max_rejected_share: {share}}}
encoders: {{muq: {{source: m}}, campplus: {{source: c}}}}
"""


@pytest.fixture
def folder(tiny_corpus: Path, tmp_path: Path) -> Path:
    """Eight clips of the tiny corpus."""
    folder = tmp_path / "data"
    folder.mkdir()
    with (tiny_corpus / "labels.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))[:9]
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(rows)
    for row in rows[1:]:
        (folder / row[0]).parent.mkdir(exist_ok=True)
        shutil.copyfile(tiny_corpus / row[0], folder / row[0])
    return folder


def validate(folder: Path, *options: str, share: float = 0.2) -> tuple[int, str]:
    config = folder.parent / "gate.yaml"
    config.write_text(GATE.format(share=share), encoding="utf-8")
    arguments = ["data", "validate", str(folder), "--config", str(config), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return result.exit_code, result.stdout


def test_a_valid_folder_passes(folder: Path) -> None:
    code, out = validate(folder, "--json")
    document = json.loads(out)
    assert code == 0
    assert set(document) == KEYS
    assert (document["valid"], document["clips"], document["accepted"], document["rejected"]) == (True, 8, 8, [])
    assert document["report"] is None
    text = validate(folder)[1]
    assert "8 of 8" in text
    assert "0 rejected" in text


def test_an_unusable_report_path_is_an_error(folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"labels\.csv"):
        validate(folder, "--report", str(folder / "labels.csv" / "report.html"))
    with pytest.raises(IsADirectoryError, match="audio"):
        validate(folder, "--report", str(folder / "audio"))
    arguments = ["data", "sort", str(folder), "--report", str(folder / "audio")]
    with pytest.raises(IsADirectoryError, match="audio"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_bad_clip_is_rejected_and_the_gate_passes(folder: Path) -> None:
    bad = sorted((folder / "audio").iterdir())[0]
    bad.write_bytes(b"")
    report = folder.parent / "page" / "report.html"
    code, out = validate(folder, "--json", "--report", str(report))
    document = json.loads(out)
    assert (code, document["valid"], document["accepted"]) == (0, True, 7)
    (rejected,) = document["rejected"]
    assert set(rejected) == {"audio_file", "row", "reason", "severity"}
    assert rejected["audio_file"] == f"audio/{bad.name}"
    assert "0 bytes" in rejected["reason"]
    assert document["report"] == str(report)
    assert bad.name in report.read_text(encoding="utf-8")
    code, out = validate(folder)
    assert code == 0
    assert f"row {rejected['row']}  audio/{bad.name}: " in out
    assert "7 of 8" in out
    assert "1 rejected" in out


def test_too_many_bad_clips_fail_the_gate(folder: Path) -> None:
    sorted((folder / "audio").iterdir())[0].unlink()
    code, out = validate(folder, "--json", share=0.1)
    assert (code, json.loads(out)["valid"]) == (1, False)
    assert validate(folder, share=0.1)[0] == 1


def test_a_folder_without_labels_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gone"):
        validate(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty") as fault:
        validate(tmp_path / "empty")
    assert fault.value.exit_code == 2


def test_sorting_writes_the_index_and_stores_the_splits(folder: Path) -> None:
    config = folder.parent / "gate.yaml"
    config.write_text(GATE.format(share=0.2), encoding="utf-8")
    options = ["data", "sort", str(folder), "--config", str(config)]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["train", "val", "test"]
    assert sum(int(line.split()[1]) for line in result.stdout.splitlines()) == 8
    splits = (folder / "splits.json").read_bytes()
    assert {path.name for path in (folder / "index").iterdir()} == {"train.json", "val.json", "test.json"}
    assert CliRunner().invoke(app, options, catch_exceptions=False).stdout == result.stdout
    assert (folder / "splits.json").read_bytes() == splits


def test_columns_and_singers_may_be_named(folder: Path) -> None:
    labels = folder / "labels.csv"
    text = labels.read_text(encoding="utf-8")
    labels.write_text(text.replace("score", "Points", 1).replace("singer_id", "who", 1), encoding="utf-8")
    code, out = validate(folder, "--map", "score=Points", "--singer-from", r"(c\d\d)", "--json")
    assert (code, json.loads(out)["accepted"]) == (0, 8)
    with pytest.raises(UsageError, match=r"--map scoer=Points: .*audio_file"):
        validate(folder, "--map", "scoer=Points")


@pytest.fixture
def clone(repository: Path) -> Path:
    """A repository whose data is in a local DVC remote and not in the working tree."""
    for name in ("labels.csv", "audio/a.m4a", "audio/b.m4a"):
        (repository / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "data" / name).write_text(f"content of {name}", encoding="utf-8")
    with contextlib.closing(Repo(str(repository))) as repo:
        with repo.config.edit() as settings:
            settings["remote"]["store"] = {"url": str(repository.parent / "store")}
            settings["core"]["remote"] = "store"
        repo.add([str(repository / "data")])
        repo.push()
    shutil.rmtree(repository / "data")
    shutil.rmtree(repository / ".dvc" / "cache")
    return repository


def pull(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of DVC's own, about its pygtrie
        result = CliRunner().invoke(app, ["data", "pull", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_pulling_fetches_the_recorded_files(clone: Path) -> None:
    assert re.fullmatch(r"data: .*\b3 files.*\n", pull(clone))
    found = {path.relative_to(clone / "data").as_posix() for path in (clone / "data").rglob("*") if path.is_file()}
    assert found == {"labels.csv", "audio/a.m4a", "audio/b.m4a"}
    assert (clone / "data" / "audio" / "a.m4a").read_text(encoding="utf-8") == "content of audio/a.m4a"
    assert re.fullmatch(r"data: .*\b0 files.*\n", pull(clone))


def test_pulling_never_overwrites_a_change(clone: Path) -> None:
    pull(clone)
    changed = clone / "data" / "labels.csv"
    changed.unlink()
    changed.write_text("new labels", encoding="utf-8")
    with pytest.raises(DataError, match=r"^data\.dvc: .*`dvc remote list`"):
        pull(clone)
    assert changed.read_text(encoding="utf-8") == "new labels"


def test_a_remote_without_the_data_is_an_error(clone: Path) -> None:
    shutil.rmtree(clone.parent / "store")
    with pytest.raises(DataError, match=r"^data\.dvc: "):
        pull(clone)


def test_a_folder_without_records_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.dvc file"):
        pull(tmp_path)


def test_a_refused_sort_names_what_exists(folder: Path) -> None:
    sorted((folder / "audio").iterdir())[0].unlink()
    config = folder.parent / "gate.yaml"
    config.write_text(GATE.format(share=0.05), encoding="utf-8")
    arguments = ["data", "sort", str(folder), "--config", str(config)]
    with pytest.raises(GateRefused) as refused:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert f"`audioscore data validate {folder}`" in str(refused.value)
    assert re.search(r"\S+\.html", str(refused.value)) is None
    report = folder.parent / "page.html"
    with pytest.raises(GateRefused, match=str(report)):
        CliRunner().invoke(app, [*arguments, "--report", str(report)], catch_exceptions=False)
    assert report.is_file()


def test_contradictions_of_an_index_are_printed(tmp_path: Path) -> None:
    path = tmp_path / "index" / "train.json"
    path.parent.mkdir()
    path.write_text('[[{"audio_file": "a"}, {"audio_file": "b"}], [{"audio_file": "b"}, {"audio_file": "a"}]]', "utf-8")
    for target in (path, tmp_path):
        result = CliRunner().invoke(app, ["data", "sort", str(target)], catch_exceptions=False)
        assert result.exit_code == 0
        assert len(re.findall(r"^note .*train\.json: ", result.stderr, re.MULTILINE)) == 2
