import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.cli.find_model import find_model
from audioscore.errors import ModelError, UsageError
from audioscore.model import SongEvalGenerator_audio_lora
from audioscore.scoring.checkpoint import load_scorer


def test_good_recordings_are_scored_though_one_is_bad(
    scorer_directory: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    good = [tiny_corpus / "audio" / "c003.wav", tiny_corpus / "audio" / "c004.wav"]
    files = [str(good[0]), str(bad), str(good[1])]
    said = CliRunner().invoke(app, ["score", *files, "--model", str(scorer_directory), "--json"])
    assert said.exit_code == 3
    document = json.loads(said.stdout)
    assert document["model"] == str(scorer_directory)
    assert [row["file"] for row in document["results"]] == files
    scorer = load_scorer(scorer_directory)
    for path, row in zip(good, (document["results"][0], document["results"][2]), strict=True):
        expected = scorer.score(path)
        assert set(row) == {"file", "score", "interval", "raw", "seconds", "error"}
        assert row["score"] == pytest.approx(expected.score, abs=1e-4)
        assert row["interval"] == pytest.approx(expected.interval, abs=1e-4)
        assert row["raw"] == pytest.approx(expected.raw, abs=1e-6)
        assert row["seconds"] == pytest.approx(expected.seconds, abs=1e-3)
        assert row["error"] is None
    failed = document["results"][1]
    assert [failed[name] for name in ("score", "interval", "raw", "seconds")] == [None] * 4
    assert failed["error"].startswith(f"{bad}: cannot be decoded")


def test_a_table_for_people(scorer_directory: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    good, missing = str(tiny_corpus / "audio" / "c003.wav"), str(tmp_path / "gone[1].wav")
    options = ["score", good, missing, "--model", str(scorer_directory)]
    said = CliRunner().invoke(app, options, env={"COLUMNS": "400"})
    assert said.exit_code == 3
    assert "90 % interval" in said.stdout
    assert f"{missing}: no such file" in said.stdout
    assert f"scored by {scorer_directory}" in said.stdout
    narrow = CliRunner().invoke(app, options, env={"COLUMNS": "60"})
    assert f"\n{missing}: no such file. Check the path" in narrow.stdout  # a sentence in one piece, below the table
    fine = CliRunner().invoke(app, [*options[:2], *options[3:]], env={"COLUMNS": "400"})
    assert fine.exit_code == 0


def test_what_changes_nothing_is_said_or_refused(scorer_directory: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    options = ["score", str(tiny_corpus / "audio" / "c003.wav"), "--model", str(scorer_directory), "--device", "cpu"]
    said = CliRunner().invoke(app, [*options, "--fast"])
    assert said.exit_code == 0
    assert "note: --fast changes nothing here" in said.stderr
    refused = CliRunner().invoke(app, [*options, "--pictures", str(tmp_path)])
    assert isinstance(refused.exception, UsageError)
    assert "there are pictures of a timeline alone. Add --timeline." in str(refused.exception)


def test_csv_a_folder_a_list_and_a_timeline(
    scorer_directory: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = tmp_path / "takes"
    takes.mkdir()
    for name in ("c003.wav", "c004.wav"):
        shutil.copy(tiny_corpus / "audio" / name, takes)
    model = ["--model", str(scorer_directory)]
    said = CliRunner().invoke(app, ["score", str(takes), *model, "--csv"])
    assert said.exit_code == 0, said.output
    header, *rows = said.stdout.splitlines()
    assert header == "file,score,lo,hi,raw,seconds,error"
    assert [row.split(",")[0] for row in rows] == [str(takes / "c003.wav"), str(takes / "c004.wav")]
    options = ["score", "-", *model, "--json", "--timeline", "--pictures", str(tmp_path / "pictures")]
    listed = CliRunner().invoke(app, options, input=f"{takes}/c004.wav\n{takes}/gone.wav\n")
    assert listed.exit_code == 3, listed.output
    found, gone = json.loads(listed.stdout)["results"]
    assert found["score"] == float(rows[1].split(",")[1])
    assert [one["score"] for one in found["timeline"]] == [pytest.approx(found["score"], abs=1e-4)]
    assert gone["timeline"] is None
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["c004.wav.timeline.png"]
    assert "shows the timeline of" in listed.stderr


def test_what_is_asked_for_wrongly_is_one_sentence(scorer_directory: Path) -> None:
    for options, sentence in (
        (["a.wav", "--json", "--csv"], "--json and --csv: only one of them"),
        (["nowhere*"], r"nowhere\*: no file matches this pattern"),
    ):
        with pytest.raises(UsageError, match=sentence):
            CliRunner().invoke(app, ["score", *options, "--model", str(scorer_directory)], catch_exceptions=False)


def test_without_a_model_the_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    with pytest.raises(ModelError, match=r"no champion is registered in .*home yet\. Run `audioscore run") as fault:
        find_model(None)
    assert fault.value.exit_code == 2
    assert not (tmp_path / "home").exists()


def test_a_model_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"^gone: no such folder"):
        find_model("gone")
    for uri in ("models:/audioscore", "models:/audioscore/latest", "models:audioscore@champion"):
        with pytest.raises(UsageError, match=rf"^{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION"):
            find_model(uri)
    for uri in ("models:/audioscore@champion", "models:/audioscore/3"):
        with pytest.raises(ModelError, match="no model has been registered there yet"):
            find_model(uri)
    assert os.listdir(tmp_path) == []


def test_a_predecessors_folder_is_converted_once(
    judge: Any, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("audioscore.tracking.find_scorer.PREDECESSOR_MUQ", str(judge.muq))
    clip = tiny_corpus / "audio" / "c003.wav"
    said = [CliRunner().invoke(app, ["score", str(clip), "--model", str(judge.adapters), "--json"]) for _ in range(2)]
    assert [run.exit_code for run in said] == [0, 0], said[0].output
    assert "is a predecessor's folder; converting it once, to " in said[0].stderr
    assert "converting" not in said[1].stderr
    assert all("its scores are 25 x generate_tag, not calibrated" in run.stderr for run in said)
    document, again = (json.loads(run.stdout) for run in said)
    assert document == again
    assert document["model"] == str(judge.adapters)
    model = SongEvalGenerator_audio_lora(muq=str(judge.muq))
    model.load_model(judge.adapters)
    assert document["results"][0]["score"] == pytest.approx(25 * model.generate_tag(clip), abs=0.03)


def test_a_damaged_predecessors_folder_is_refused_and_leaves_nothing(
    judge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    shutil.copytree(judge.adapters, tmp_path / "old")
    (tmp_path / "old" / "muq_lora.pt").unlink()
    with pytest.raises(ModelError, match=r"old: muq_lora\.pt missing"):
        find_model(str(tmp_path / "old"))
    assert not (tmp_path / "home").exists()


def test_a_folder_is_its_own_name(scorer_directory: Path) -> None:
    assert find_model(str(scorer_directory)) == (str(scorer_directory), scorer_directory)


@pytest.fixture
def champions(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The models that have a champion; the registry is not asked."""
    found: set[str] = set()
    monkeypatch.setattr("audioscore.tracking.registry.has_champion", lambda _uri, name: name in found)
    monkeypatch.setattr("audioscore.tracking.registry.scorer_folder", lambda tracking_uri, _uri: Path(tracking_uri))
    return found


def test_the_demos_champion_stands_in_and_that_is_said(champions: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    champions.add("audioscore-demo")
    uri, folder = find_model(None)
    assert uri == "models:/audioscore-demo@champion"
    assert folder.parent.name == "demo"
    assert capsys.readouterr().err == "note: no audioscore@champion yet; scoring with the demo's champion\n"
    champions.add("audioscore")
    assert find_model(None)[0] == "models:/audioscore@champion"
    assert capsys.readouterr().err == ""


def test_a_champion_that_cannot_be_loaded_is_not_passed_over(
    champions: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    champions.update({"audioscore", "audioscore-demo"})

    def broken(_tracking_uri: str, uri: str) -> Path:
        raise ModelError(f"{uri}: cannot be loaded")

    monkeypatch.setattr("audioscore.tracking.registry.scorer_folder", broken)
    with pytest.raises(ModelError, match="models:/audioscore@champion: cannot be loaded"):
        find_model(None)
