import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import audioscore
from audioscore.cli.app import app
from audioscore.cli.options import find_model
from audioscore.cli.score import csv_lines, json_row, timeline_figure, write_picture
from audioscore.data.audio import decode, encode
from audioscore.errors import AudioscoreError, ModelError, UsageError
from audioscore.model import SongEvalGenerator_audio_lora
from audioscore.scoring.checkpoint import load_scorer
from audioscore.scoring.results import ClipScore, TimelineSegment


def test_good_recordings_are_scored_though_one_is_bad(
    scorer_directory: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    good = [tiny_corpus / "audio" / "c003.wav", tiny_corpus / "audio" / "c004.wav"]
    files = [str(good[0]), str(bad), str(good[1])]
    result = CliRunner().invoke(app, ["score", *files, "--model", str(scorer_directory), "--json"])
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["model"] == str(scorer_directory)
    assert [row["file"] for row in document["results"]] == files
    scorer = load_scorer(scorer_directory)
    for path, row in zip(good, (document["results"][0], document["results"][2]), strict=True):
        expected = scorer.score(path)
        assert list(row) == ["file", "score", "interval", "raw", "seconds", "notes", "error"]
        assert row["score"] == pytest.approx(expected.score, abs=1e-4)
        assert row["interval"] == pytest.approx(expected.interval, abs=1e-4)
        assert row["raw"] == pytest.approx(expected.raw, abs=1e-6)
        assert row["seconds"] == pytest.approx(expected.seconds, abs=1e-3)
        assert row["error"] is None
    failed = document["results"][1]
    assert [failed[name] for name in ("score", "interval", "raw", "seconds")] == [None] * 4
    assert failed["error"].startswith(f"{bad}: cannot be decoded")


def test_the_table(scorer_directory: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    good, missing = str(tiny_corpus / "audio" / "c003.wav"), str(tmp_path / "gone[1].wav")
    options = ["score", good, missing, "--model", str(scorer_directory)]
    result = CliRunner().invoke(app, options, env={"COLUMNS": "400"})
    assert result.exit_code == 3
    for part in ("90 %", f"{missing}: no such file", str(scorer_directory)):
        assert part in result.stdout
    narrow = CliRunner().invoke(app, options, env={"COLUMNS": "60"})
    assert f"\n{missing}: no such file" in narrow.stdout  # below the table, in one line
    fine = CliRunner().invoke(app, [*options[:2], *options[3:]], env={"COLUMNS": "400"})
    assert fine.exit_code == 0


def test_a_recording_outside_of_the_validated_range_has_notes(
    scorer_directory: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    recording = decode(tiny_corpus / "audio" / "c003.wav")
    wave = np.pad(recording.at(8_000), (0, 10 * 8_000))
    encode(wave, 8_000, tmp_path / "phone[1].wav", codec="pcm_s16le")
    options = ["score", str(tmp_path / "phone[1].wav"), "--model", str(scorer_directory)]
    document = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
    (row,) = document["results"]
    assert (row["error"], row["score"] is None) == (None, False)
    assert [re.findall(r"\d+ Hz|\d+%", note)[-1] for note in row["notes"]] == ["7000 Hz", "40%"]
    table = CliRunner().invoke(app, options, env={"COLUMNS": "400"}).stdout
    lines = CliRunner().invoke(app, [*options, "--csv"]).stdout.splitlines()
    for note in row["notes"]:
        assert f"phone[1].wav: {note}" in table
        assert note in next(csv.DictReader(lines))["notes"]
    assert load_scorer(scorer_directory).score(tmp_path / "phone[1].wav").notes == tuple(row["notes"])


def test_options_without_effect_give_a_note_or_an_error(
    scorer_directory: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    options = ["score", str(tiny_corpus / "audio" / "c003.wav"), "--model", str(scorer_directory), "--device", "cpu"]
    result = CliRunner().invoke(app, [*options, "--fast"])
    assert result.exit_code == 0
    assert "--fast" in result.stderr
    refused = CliRunner().invoke(app, [*options, "--pictures", str(tmp_path)])
    assert isinstance(refused.exception, UsageError)
    assert "--timeline" in str(refused.exception)


def test_csv_a_folder_a_list_and_a_timeline(scorer_directory: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for name in ("c003.wav", "c004.wav"):
        shutil.copy(tiny_corpus / "audio" / name, recordings)
    model = ["--model", str(scorer_directory)]
    result = CliRunner().invoke(app, ["score", str(recordings), *model, "--csv"])
    assert result.exit_code == 0, result.output
    header, *rows = result.stdout.splitlines()
    assert header == "file,score,lo,hi,raw,seconds,error,notes"
    assert [row.split(",")[0] for row in rows] == [str(recordings / "c003.wav"), str(recordings / "c004.wav")]
    options = ["score", "-", *model, "--json", "--timeline", "--pictures", str(tmp_path / "pictures")]
    listed = CliRunner().invoke(app, options, input=f"{recordings}/c004.wav\n{recordings}/gone.wav\n")
    assert listed.exit_code == 3, listed.output
    found, gone = json.loads(listed.stdout)["results"]
    assert found["score"] == float(rows[1].split(",")[1])
    assert [one["score"] for one in found["timeline"]] == [pytest.approx(found["score"], abs=1e-4)]
    assert gone["timeline"] is None
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["c004.wav.timeline.png"]
    assert "c004.wav.timeline.png" in listed.stderr


@pytest.mark.parametrize(
    ("options", "part"), [(["a.wav", "--json", "--csv"], "--json and --csv"), (["nowhere*"], r"nowhere\*")]
)
def test_wrong_arguments_are_named(scorer_directory: Path, options: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        CliRunner().invoke(app, ["score", *options, "--model", str(scorer_directory)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        (None, ModelError, "home.*champion.*`audioscore run"),
        ("gone", UsageError, "^gone: no such folder"),
        *(
            (uri, UsageError, f"^{uri}: .*models:/NAME@ALIAS .*models:/NAME/VERSION")
            for uri in ("models:/audioscore", "models:/audioscore/latest", "models:audioscore@champion")
        ),
        *((uri, ModelError, "registered") for uri in ("models:/audioscore@champion", "models:/audioscore/3")),
    ],
)
def test_a_missing_model_is_named_and_no_home_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, kind: type[AudioscoreError], part: str
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    with pytest.raises(kind, match=part) as fault:
        find_model(name)
    assert fault.value.exit_code == 2
    assert not (tmp_path / "home").exists()


def test_a_legacy_folder_is_converted_once(
    legacy: Any, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("audioscore.tracking.find_scorer.LEGACY_MUQ", str(legacy.muq))
    clip = tiny_corpus / "audio" / "c003.wav"
    results = [
        CliRunner().invoke(app, ["score", str(clip), "--model", str(legacy.adapters), "--json"]) for _ in range(2)
    ]
    assert [run.exit_code for run in results] == [0, 0], results[0].output
    assert str(tmp_path / "home") in results[0].stderr
    assert str(tmp_path / "home") not in results[1].stderr
    assert all("25 x generate_tag" in run.stderr for run in results)
    document, again = (json.loads(run.stdout) for run in results)
    assert document == again
    assert document["model"] == str(legacy.adapters)
    model = SongEvalGenerator_audio_lora(muq=str(legacy.muq))
    model.load_model(legacy.adapters)
    assert document["results"][0]["score"] == pytest.approx(25 * model.generate_tag(clip), abs=0.03)


def test_a_damaged_legacy_folder_is_refused_and_writes_nothing(
    legacy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    shutil.copytree(legacy.adapters, tmp_path / "old")
    (tmp_path / "old" / "muq_lora.pt").unlink()
    with pytest.raises(ModelError, match=r"old: muq_lora\.pt"):
        find_model(str(tmp_path / "old"))
    assert not (tmp_path / "home").exists()


def test_a_folder_is_named_by_its_path(scorer_directory: Path) -> None:
    assert find_model(str(scorer_directory)) == (str(scorer_directory), scorer_directory)


@pytest.fixture
def champions(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The models that have a champion, without a registry."""
    found: set[str] = set()
    monkeypatch.setattr("audioscore.tracking.registry.has_champion", lambda _uri, name: name in found)
    monkeypatch.setattr("audioscore.tracking.registry.scorer_folder", lambda tracking_uri, _uri: Path(tracking_uri))
    return found


def test_the_champion_of_the_demo_is_the_fallback(champions: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    champions.add("audioscore-demo")
    uri, folder = find_model(None)
    assert uri == "models:/audioscore-demo@champion"
    assert folder.parent.name == "demo"
    assert "audioscore@champion" in capsys.readouterr().err
    champions.add("audioscore")
    assert find_model(None)[0] == "models:/audioscore@champion"
    assert capsys.readouterr().err == ""


def test_a_champion_that_cannot_be_loaded_is_an_error(champions: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    champions.update({"audioscore", "audioscore-demo"})

    def broken(_tracking_uri: str, uri: str) -> Path:
        raise ModelError(f"{uri}: broken")

    monkeypatch.setattr("audioscore.tracking.registry.scorer_folder", broken)
    with pytest.raises(ModelError, match="models:/audioscore@champion: broken"):
        find_model(None)


GOOD = ClipScore(
    "a, b.wav", 81.234567, (76.1, 86.400049), -0.123456789, 12.34567, None, (TimelineSegment(0, 10, 80.00004),),
    ("much silence: 70%.", "skipped packets: 3."),
)  # fmt: skip
BAD = ClipScore("c.wav", error='c.wav: "silent".')


def test_csv_round_trips() -> None:
    header, *rows = csv.reader(io.StringIO("\n".join(csv_lines([GOOD, BAD]))))
    assert header == ["file", "score", "lo", "hi", "raw", "seconds", "error", "notes"]
    assert rows[0] == ["a, b.wav", "81.2346", "76.1", "86.4", "-0.123456789", "12.346", "", " ".join(GOOD.notes)]
    assert rows[1] == ["c.wav", "", "", "", "", "", 'c.wav: "silent".', ""]


@pytest.mark.parametrize("name", ["a\nb.wav", "a\rb.wav", "a\r\nb.wav", '"a,b".wav', "\udcb8.wav"])
def test_csv_quotes_names(name: str) -> None:
    text = "\n".join(csv_lines([ClipScore(name, error="x")]))
    _, row = csv.reader(io.StringIO(text, newline=""))
    assert row[0] == name


def test_json_keys_and_optional_timeline() -> None:
    row = json_row(GOOD, timeline=True)
    assert list(row) == ["file", "score", "interval", "raw", "seconds", "notes", "error", "timeline"]
    assert row["notes"] == list(GOOD.notes)
    assert row["timeline"] == [{"start": 0, "end": 10, "score": 80.0}]
    assert "timeline" not in json_row(GOOD, timeline=False)
    assert json_row(BAD, timeline=True)["timeline"] is None


SEGMENTS = tuple(TimelineSegment(2.5 * step, 2.5 * step + 10, 70.0 + step) for step in range(9))
ROW = ClipScore("in/歌$1.wav", 75.0, (70.0, 80.0), 0.1, 30.0, None, SEGMENTS)


def test_a_second_picture_of_one_name_is_numbered(tmp_path: Path) -> None:
    first, second = write_picture(ROW, tmp_path / "new"), write_picture(ROW, tmp_path / "new")
    assert [first.name, second.name] == ["歌$1.wav.timeline.png", "歌$1.wav.timeline-2.png"]
    assert first.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_every_segment_is_drawn_at_its_centre() -> None:
    axes = timeline_figure(ROW).axes[0]
    line = axes.lines[-1]
    assert list(line.get_xdata()) == [5 + 2.5 * step for step in range(9)]
    assert list(line.get_ydata()) == [70.0 + step for step in range(9)]
    assert axes.get_ylim() == (67.0, 83.0)


def test_a_file_instead_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"--pictures .*file"):
        write_picture(ROW, tmp_path / "file")


def test_a_folder_is_loaded_and_gives_the_same_score(scorer_directory: Path, tiny_corpus: Path) -> None:
    clip = tiny_corpus / "audio" / "c003.wav"
    expected = load_scorer(scorer_directory).score(clip)
    assert audioscore.load_scorer(scorer_directory, device="cpu").score(clip) == expected
    assert audioscore.load_scorer(str(scorer_directory), device="cpu").score(clip) == expected


def test_the_fast_mode_is_close(scorer_directory: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audioscore.muq_cpu.matmul.MIN_WIDTH", 1)  # as for layers of the published width
    monkeypatch.setattr("audioscore.encoders.inference.fast_dtype", lambda device: "int16")
    clip = tiny_corpus / "audio" / "c003.wav"
    exact, fast = (
        audioscore.load_scorer(scorer_directory, device="cpu", fast=fast).score(clip) for fast in (False, True)
    )
    assert fast.raw != exact.raw
    assert fast.score == pytest.approx(exact.score, abs=0.5)


def test_a_model_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="champion"):
        audioscore.load_scorer()
    with pytest.raises(UsageError, match="nowhere"):
        audioscore.load_scorer("nowhere")
    with pytest.raises(ModelError, match=r"scorer\.json missing"):
        audioscore.load_scorer(tmp_path)
