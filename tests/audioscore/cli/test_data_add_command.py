import contextlib
import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.cli.data_options import DEMO_CORPUS
from audioscore.config import SMALL
from audioscore.data.versioning import data_revision, folder_digest
from audioscore.errors import DataError, GateRefused, UsageError
from audioscore.files import read_json, sha256_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty git and DVC repository as the working folder."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    root = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of DVC's own, about its pygtrie
        from dvc.repo import Repo

        with contextlib.closing(Repo.init(str(root))):
            pass
        monkeypatch.chdir(root)
        yield root


@pytest.fixture
def delivery(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The tiny corpus' labels as an editor would send them: every clip of 16 singers, headers in Chinese."""
    text = (tiny_corpus / "labels.csv").read_text(encoding="utf-8")
    path = tmp_path / "八月.csv"
    path.write_text(text.replace("audio_file,score", "录音,标记分数", 1), encoding="gb18030")
    return path


def invoke(*arguments: str) -> tuple[int, str]:
    said = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)
    return said.exit_code, said.stdout


def add(delivery: Path, corpus: Path, *options: str) -> tuple[int, str]:
    return invoke("add", str(delivery), "--audio", str(corpus), "--data", "songs", *options)


def test_a_delivery_becomes_a_version(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    code, out = add(delivery, tiny_corpus)
    assert code == 0
    assert "column    录音 is read as audio_file\n" in out
    assert "added     48: audio/" in out
    assert "folder    songs: 48 clips accepted, 0 rejected\n" in out
    assert data_revision(repository / "songs") == folder_digest(repository / "songs")
    train, val, test = (read_json(repository / "songs" / "index" / f"{name}.json") for name in ("train", "val", "test"))
    assert len(train) == len(val) == len(test) == 1
    assert sum(len(part[0]) for part in (train, val, test)) == 48
    scores = [clip["score"] for clip in train[0]]
    assert scores == sorted(scores, reverse=True)
    before = (repository / "songs.dvc").read_text(), (repository / "songs.dvc").stat().st_mtime_ns
    code, out = add(delivery, tiny_corpus, "--json")
    document = json.loads(out)
    assert (code, document["delivery"]["added"], document["delivery"]["unchanged"]) == (0, [], 48)
    assert document["version"]["changed"] is False
    assert before == ((repository / "songs.dvc").read_text(), (repository / "songs.dvc").stat().st_mtime_ns)


def test_a_second_batch_moves_nobody(repository: Path, delivery: Path, tiny_corpus: Path, tmp_path: Path) -> None:
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


def splits(folder: Path) -> dict[str, str]:
    indexes = {split: read_json(folder / "index" / f"{split}.json") for split in ("train", "val", "test")}
    return {clip["audio_file"]: split for split, groups in indexes.items() for clip in groups[0]}


def test_some_bad_rows_are_exit_code_3_and_many_are_1(
    repository: Path, delivery: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    header, *rows = delivery.read_text(encoding="gb18030").splitlines()
    some = tmp_path / "some.csv"
    some.write_text("\n".join([header, *rows[:20], "gone.wav,70,,,"]), encoding="gb18030")
    code, out = add(some, tiny_corpus, "--no-version")
    assert code == 3
    assert f"refused   row 21  gone.wav: no such file under {tiny_corpus}" in out
    assert not (repository / "songs.dvc").exists()
    many = tmp_path / "many.csv"
    many.write_text("\n".join([header, *rows[20:24], "gone.wav,70,,,"]), encoding="gb18030")
    with pytest.raises(GateRefused, match=r"1 of 5 rows cannot be used \(20%\)"):
        add(many, tiny_corpus, "--no-version")


def test_a_dry_run_says_what_would_change(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    code, out = add(delivery, tiny_corpus, "--dry-run")
    assert code == 0
    assert "added     48: " in out
    assert out.endswith("dry run   nothing was changed\n")
    assert not (repository / "songs").exists()


def test_status_removal_and_purge(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    add(delivery, tiny_corpus)
    assert "is what songs.dvc records" in invoke("status", "songs")[1]
    cached = {path for path in (repository / ".dvc" / "cache").rglob("*") if path.is_file()}
    code, out = invoke("remove", "audio/c000.wav", "--data", "songs", "--purge")
    assert code == 0
    assert "removed   1 recordings: audio/c000.wav\n" in out
    assert "purged    1 objects from DVC, " in out
    assert "no feature store in S3 was looked at: --config names none" in out
    assert not (repository / "songs" / "audio" / "c000.wav").exists()
    assert "audio/c000.wav" not in splits(repository / "songs")
    left = {path for path in (repository / ".dvc" / "cache").rglob("*") if path.is_file()}
    assert len(cached - left) == 1
    assert json.loads(invoke("status", "songs", "--json")[1])["clean"] is True
    with pytest.raises(DataError, match=r"1 of 1 are not in songs \(audio/c000\.wav\): nothing was removed"):
        invoke("remove", "audio/c000.wav", "--data", "songs")


def test_without_a_dvc_repository_nothing_is_begun(
    tmp_path: Path, delivery: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(DataError, match=r"there is no DVC repository at .*`dvc init`.*--no-version"):
            add(delivery, tiny_corpus)
    assert list((tmp_path / "plain").iterdir()) == []


def test_the_demo_corpus_is_not_added_to(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    assert data_revision(ROOT / "data") == DEMO_CORPUS
    (repository / "songs.dvc").write_text(f"outs:\n- md5: {DEMO_CORPUS}\n  path: songs\n")
    with pytest.raises(UsageError, match=r"songs is the demo corpus.*--data songs"):
        add(delivery, tiny_corpus)


def test_an_index_may_be_sorted_by_itself(tmp_path: Path) -> None:
    index = tmp_path / "train.json"
    index.write_text('[[{"audio_file": "a", "score": 70,}, {"audio_file": "b", "score": 80},],]')
    with pytest.raises(DataError, match=r"a \(score 70, position 1\) stands above b \(score 80, position 2\)"):
        invoke("sort", str(index))
    assert invoke("sort", str(index), "--resort")[0] == 0
    assert [entry["audio_file"] for entry in json.loads(index.read_text())[0]] == ["b", "a"]


def test_the_deliverys_headers_are_not_the_folders(
    repository: Path, delivery: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    text = delivery.read_text(encoding="gb18030").replace("标记分数", "Points", 1)
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    code, out = add(tmp_path / "points.csv", tiny_corpus, "--map", "score=Points")
    assert code == 0
    assert "column    Points is read as score\n" in out
    assert "version   " in out


def test_what_is_not_pulled_is_not_forgotten(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    add(delivery, tiny_corpus)
    (repository / "songs" / "splits.json").unlink()
    with pytest.raises(
        DataError, match=r"lacks 1 files of its recorded version \(splits\.json\).*audioscore data pull"
    ):
        add(delivery, tiny_corpus)
    assert invoke("pull", ".")[1] == "songs: up to date, 1 files fetched\n"
    (repository / "songs" / "audio" / "c001.wav").unlink()
    one = repository / "one.csv"
    one.write_text(f"audio_file,score\n{tiny_corpus / 'audio' / 'c000.wav'},70\n")
    with pytest.raises(DataError, match=r"1 recordings of its recorded version .*\(audio/c001\.wav\)"):
        invoke("add", str(one), "--data", "songs")
    assert add(delivery, tiny_corpus)[1].splitlines()[2] == "restored  1: audio/c001.wav"


def test_consent_does_not_wait_for_new_singers(repository: Path, delivery: Path, tiny_corpus: Path) -> None:
    add(delivery, tiny_corpus)
    index = read_json(repository / "songs" / "index" / "val.json")
    singers = {clip["singer_id"] for clip in index[0]}
    options = [option for singer in sorted(singers) for option in ("--singer", singer)]
    code, out = invoke("remove", "--data", "songs", "--purge", *options)
    assert code == 0
    assert "splits    none: no clip is left for val" in out
    assert f"purged    {len(index[0])} objects from DVC" in out
    assert invoke("remove", "--data", "songs", "--purge")[0] == 0


def test_every_refused_row_is_listed_before_the_refusal(
    repository: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = repository / "bad.csv"
    bad.write_text("audio_file,score\n" + "".join(f"gone{number}.wav,70\n" for number in range(9)))
    said = CliRunner().invoke(app, ["data", "add", str(bad), "--data", "songs", "--no-version"])
    assert isinstance(said.exception, GateRefused)
    assert said.stdout.count("refused   row") == 9
    as_json = CliRunner().invoke(app, ["data", "add", str(bad), "--data", "songs", "--no-version", "--json"])
    document = json.loads(as_json.stdout)
    assert (len(document["delivery"]["refused"]), document["delivery"]["added"]) == (9, [])
    assert "9 of 9 rows cannot be used" in document["error"]


def test_a_purge_reaches_every_shared_store_that_it_can_and_names_the_others(
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
    assert "note      /gone/features was not purged: /gone/features: no such folder on this machine. Purge" in out
    assert f"purged    2 features from {exchange}/features\n" in out
    assert [path.exists() for path in (*features, other)] == [False, False, True]
    told = json.loads(invoke("remove", *options, "--json")[1])["purged"]["features"]
    assert told[f"{exchange}/features"] == {"removed": 0, "still_versions": 0, "failed": None}
    assert told["/gone/features"]["failed"].startswith("/gone/features: no such folder")
