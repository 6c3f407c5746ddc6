import json
import re
import warnings
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.cli.options import DEMO_CORPUS
from audioscore.config import SMALL
from audioscore.data.versions.revision import data_revision, folder_digest
from audioscore.errors import DataError, UsageError
from audioscore.files import read_json, sha256_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def delivery(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The labels of the tiny corpus with Chinese headers, in GB 18030."""
    text = (tiny_corpus / "labels.csv").read_text(encoding="utf-8")
    path = tmp_path / "八月.csv"
    path.write_text(text.replace("audio_file,score", "录音,标记分数", 1), encoding="gb18030")
    return path


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout


def add(delivery: Path, corpus: Path, *options: str) -> tuple[int, str]:
    return invoke("add", str(delivery), "--audio", str(corpus), "--data", "songs", *options)


def splits(folder: Path) -> dict[str, str]:
    indexes = {split: read_json(folder / "index" / f"{split}.json") for split in ("train", "val", "test")}
    return {clip["audio_file"]: split for split, groups in indexes.items() for clip in groups[0]}


def test_a_delivery_becomes_a_version(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    code, out = add(delivery, tiny_corpus)
    assert code == 0
    for part in ("录音", "audio_file", "added     48: audio/", "songs: 48 clips", " 0 rejected"):
        assert part in out
    assert data_revision(repository / "songs") == folder_digest(repository / "songs")
    train, val, test = (read_json(repository / "songs" / "index" / f"{name}.json") for name in ("train", "val", "test"))
    assert len(train) == len(val) == len(test) == 1
    assert sum(len(part[0]) for part in (train, val, test)) == 48
    scores = [clip["score"] for clip in train[0]]
    assert scores == sorted(scores, reverse=True)
    record = repository / "songs.dvc"
    before = record.read_text(), record.stat().st_mtime_ns
    code, out = add(delivery, tiny_corpus, "--json")
    document = json.loads(out)
    assert (code, document["delivery"]["added"], document["delivery"]["unchanged"]) == (0, [], 48)
    assert document["version"]["changed"] is False
    assert before == (record.read_text(), record.stat().st_mtime_ns)


def test_a_second_delivery_keeps_the_splits(
    repository: Path, delivery: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    header, *rows = delivery.read_text(encoding="gb18030").splitlines()
    for name, part in (("first.csv", rows[:24]), ("second.csv", rows[24:])):
        (tmp_path / name).write_text("\n".join([header, *part]), encoding="gb18030")
    add(tmp_path / "first.csv", tiny_corpus)
    before = splits(repository / "songs")
    code, _ = add(tmp_path / "second.csv", tiny_corpus)
    after = splits(repository / "songs")
    assert code == 0
    assert len(after) == 48
    assert {name: after[name] for name in before} == before


def test_a_dry_run_changes_nothing(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    code, out = add(delivery, tiny_corpus, "--dry-run")
    assert code == 0
    assert " 48: " in out
    assert "dry run" in out
    assert not (repository / "songs").exists()


def test_status_removal_and_purge(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    add(delivery, tiny_corpus)
    assert "songs.dvc" in invoke("status", "songs")[1]
    cached = {path for path in (repository / ".dvc" / "cache").rglob("*") if path.is_file()}
    code, out = invoke("remove", "audio/c000.wav", "--data", "songs", "--purge")
    assert code == 0
    for part in ("audio/c000.wav", " 1 objects", "S3", "--config"):
        assert part in out
    assert not (repository / "songs" / "audio" / "c000.wav").exists()
    assert "audio/c000.wav" not in splits(repository / "songs")
    left = {path for path in (repository / ".dvc" / "cache").rglob("*") if path.is_file()}
    assert len(cached - left) == 1
    assert json.loads(invoke("status", "songs", "--json")[1])["clean"] is True
    with pytest.raises(DataError, match=r"songs: 1 of 1 .*audio/c000\.wav"):
        invoke("remove", "audio/c000.wav", "--data", "songs")


def test_without_a_dvc_repository_nothing_is_written(
    tmp_path: Path, delivery: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(DataError, match=r"`dvc init`.*--no-version"):
            add(delivery, tiny_corpus)
    assert list((tmp_path / "plain").iterdir()) == []


def test_the_demo_corpus_is_not_added_to(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    assert data_revision(ROOT / "data") == DEMO_CORPUS
    (repository / "songs.dvc").write_text(f"outs:\n- md5: {DEMO_CORPUS}\n  path: songs\n")
    with pytest.raises(UsageError, match=r"songs: .*demo corpus.*--data songs"):
        add(delivery, tiny_corpus)


def test_sorting_an_index(tmp_path: Path) -> None:
    index = tmp_path / "train.json"
    index.write_text('[[{"audio_file": "a", "score": 70,}, {"audio_file": "b", "score": 80},],]')
    with pytest.raises(DataError, match=r"a \(score 70, position 1\).* b \(score 80, position 2\)"):
        invoke("sort", str(index))
    assert invoke("sort", str(index), "--resort")[0] == 0
    assert [entry["audio_file"] for entry in json.loads(index.read_text())[0]] == ["b", "a"]


def test_mapped_headers_of_a_delivery(repository: Path, delivery: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    text = delivery.read_text(encoding="gb18030").replace("标记分数", "Points", 1)
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    code, out = add(tmp_path / "points.csv", tiny_corpus, "--map", "score=Points", "--json")
    document = json.loads(out)
    assert (code, len(document["delivery"]["added"])) == (0, 48)
    assert "Points" in str(document["delivery"]["columns"])
    assert document["version"]


def test_missing_files_of_the_recorded_version(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    add(delivery, tiny_corpus)
    (repository / "songs" / "splits.json").unlink()
    with pytest.raises(DataError, match=r"1 files .*splits\.json.*audioscore data pull"):
        add(delivery, tiny_corpus)
    assert re.search(r"^songs: .*\b1 files", invoke("pull", ".")[1])
    (repository / "songs" / "audio" / "c001.wav").unlink()
    one = repository / "one.csv"
    one.write_text(f"audio_file,score\n{tiny_corpus / 'audio' / 'c000.wav'},70\n")
    with pytest.raises(DataError, match=r"1 recordings .*audio/c001\.wav"):
        invoke("add", str(one), "--data", "songs")
    assert json.loads(add(delivery, tiny_corpus, "--json")[1])["delivery"]["restored"] == ["audio/c001.wav"]


def test_removal_of_every_singer_of_a_split(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    add(delivery, tiny_corpus)
    index = read_json(repository / "songs" / "index" / "val.json")
    singers = {clip["singer_id"] for clip in index[0]}
    options = [option for singer in sorted(singers) for option in ("--singer", singer)]
    code, out = invoke("remove", "--data", "songs", "--purge", *options)
    assert code == 0
    assert "val split: " in out
    assert f" {len(index[0])} objects" in out
    assert invoke("remove", "--data", "songs", "--purge")[0] == 0


def test_a_purge_covers_every_reachable_feature_store_and_names_the_others(
    repository: Path, delivery: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    add(delivery, tiny_corpus)
    content = sha256_of(repository / "songs" / "audio" / "c000.wav")
    exchange = tmp_path / "exchange"
    features = [exchange / "features" / encoder / content[:2] / f"{content}.safetensors" for encoder in ("muq", "cam")]
    other = features[0].with_name(f"{'0' * 64}.safetensors")
    for path in (*features, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    config = yaml.safe_load(SMALL.read_text(encoding="utf-8"))
    config["cluster"] = {"feature_store": "/gone/features"}
    config.setdefault("training", {})["trainjob"] = {"exchange": f"{exchange}/"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--data", "songs", "--purge", "--config", str(tmp_path / "run.yaml")]
    code, out = invoke("remove", "audio/c000.wav", *options)
    assert code == 0
    assert "/gone/features" in out
    assert f" 2 features from {exchange}/features\n" in out
    assert [path.exists() for path in (*features, other)] == [False, False, True]
    purged = json.loads(invoke("remove", *options, "--json")[1])["purged"]["features"]
    assert purged[f"{exchange}/features"] == {"removed": 0, "still_versions": 0, "failed": None}
    assert "/gone/features" in purged["/gone/features"]["failed"]
