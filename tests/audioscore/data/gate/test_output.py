import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from audioscore.config import Config, parse_config
from audioscore.data.audio_checks import AudioLimits
from audioscore.data.clips import Clip
from audioscore.data.gate.output import (
    read_accepted,
    read_near_duplicates,
    read_ordered,
    read_stated_splits,
    run_gate,
    validation_settings,
)
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.index import write_index
from audioscore.data.versions.revision import folder_digest
from audioscore.errors import DataError, GateRefused, UsageError
from audioscore.files import sha256_of


def config(**validation: object) -> Config:
    encoders = {"muq": {"source": "m"}, "campplus": {"source": "c"}}
    return parse_config({"encoders": encoders, "validation": {"min_clips": 3, **validation}})


@pytest.fixture
def folder(tiny_corpus: Path, tmp_path: Path) -> Path:
    """Six clips of the tiny corpus, one of which is missing."""
    folder = tmp_path / "data"
    with (tiny_corpus / "labels.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))[:7]
    (folder / "audio").mkdir(parents=True)
    for row in rows[1:6]:
        shutil.copyfile(tiny_corpus / row[0], folder / row[0])
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return folder


def test_accepted_clips_read_back_with_their_measurements(folder: Path, tmp_path: Path) -> None:
    before = folder_digest(folder)
    progress: list[tuple[int, int]] = []
    page = tmp_path / "pages" / "report.html"
    result = run_gate(
        folder, tmp_path / "out", page, config(max_rejected_share=0.5), lambda *done: progress.append(done)
    )
    accepted = read_accepted(tmp_path / "out")
    assert accepted == result.accepted
    assert len(accepted) == 5
    assert progress == [(done, 6) for done in range(1, 7)]
    for clip in accepted:
        assert clip.sha256 == sha256_of(folder / clip.audio_file)
        assert 1.5 <= (clip.seconds or 0) <= 2.0
    verdict = json.loads((tmp_path / "out" / "validation.json").read_text(encoding="utf-8"))
    assert (verdict["valid"], verdict["clips"], verdict["accepted"]) == (True, 6, 5)
    assert verdict["report"] == str(page)
    assert verdict["rejected"][0]["audio_file"] in page.read_text(encoding="utf-8")
    assert folder_digest(folder) == before


def test_a_failed_gate_writes_its_page(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with pytest.raises(GateRefused) as refused:
        run_gate(folder, tmp_path / "out", page, config(max_rejected_share=0.1))
    message = str(refused.value)
    assert re.search(r"\b1 of 6\b.*\b17%", message)
    assert str(page) in message
    assert refused.value.exit_code == 1
    assert page.is_file()
    assert json.loads((tmp_path / "out" / "validation.json").read_text(encoding="utf-8"))["valid"] is False
    assert len(read_accepted(tmp_path / "out")) == 5


def test_an_unfinished_validation_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clips\.json"):
        read_accepted(tmp_path)


def test_the_default_configuration_has_the_default_limits() -> None:
    assert validation_settings(config()).limits == AudioLimits()
    assert validation_settings(config()).max_shift == ValidationSettings().max_shift


def test_the_configuration_reaches_the_gate() -> None:
    options = {"min_clips": 7, "min_per_source": 1, "min_per_band": 2, "min_singers": 3, "min_per_singer": 4}
    options |= {"max_shift": 0.5, "max_rejected_share": 0.3}
    severity = {"no_voice": False, "dc_offset": "error"}
    values = config(**options, min_seconds=2.0, max_seconds=9.0, allowed_sources=["ktv"], severity=severity)
    data = {"column_map": {"score": "points"}, "singer_from": "(.*)_"}
    settings = validation_settings(parse_config({**values.model_dump(), "data": data}))
    assert {name: getattr(settings, name) for name in options} == options
    assert (settings.limits.min_seconds, settings.limits.max_seconds) == (2.0, 9.0)
    assert (settings.column_map, settings.singer_from) == ({"score": "points"}, "(.*)_")
    assert (settings.severity_of("no_voice"), settings.severity_of("dc_offset")) == ("off", "error")
    assert (settings.sources, validation_settings(config()).sources) == (("ktv",), ())
    with pytest.raises(UsageError, match=r"validation\.severity.*\bhum\b.*no_voice"):
        validation_settings(config(severity={"hum": "error"}))


def test_near_duplicates_and_unscored_groups_read_back(folder: Path, tmp_path: Path) -> None:
    names = [line.split(",")[0] for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines()[1:]]
    shutil.copyfile(folder / names[0], folder / "best.wav")
    shutil.copyfile(folder / names[1], folder / "worst.wav")
    write_index(folder / "order.json", [[Clip("best.wav", song_id="x"), Clip("gone.wav"), Clip("worst.wav")]])
    result = run_gate(folder, tmp_path / "out", tmp_path / "r.html", config(max_rejected_share=0.5))
    [group] = read_ordered(tmp_path / "out")
    assert [group] == result.ordered
    assert [(clip.audio_file, clip.score, clip.song_id) for clip in group] == [
        ("best.wav", None, "x"),
        ("worst.wav", None, None),
    ]
    assert all(clip.seconds and clip.sha256 == sha256_of(folder / clip.audio_file) for clip in group)
    pairs = read_near_duplicates(tmp_path / "out")
    assert pairs == result.near_duplicates
    assert {(names[0], "best.wav"), (names[1], "worst.wav")} <= set(pairs)


def test_without_files_there_are_no_near_duplicates_and_groups(tmp_path: Path) -> None:
    assert read_near_duplicates(tmp_path) == []
    assert read_ordered(tmp_path) == []


def test_without_a_page_the_refusal_names_a_command(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GateRefused) as refused:
        run_gate(folder, tmp_path / "out", None, config(max_rejected_share=0.1))
    assert f"`audioscore data validate {folder}`" in str(refused.value)
    assert "html" not in str(refused.value)
    assert json.loads((tmp_path / "out" / "validation.json").read_text(encoding="utf-8"))["report"] is None


def test_stated_splits_read_back(folder: Path, tmp_path: Path) -> None:
    rows = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    (folder / "labels.csv").write_text("\n".join([f"{rows[0]},split", *(f"{row},test" for row in rows[1:])]), "utf-8")
    run_gate(folder, tmp_path / "out", None, config(max_rejected_share=0.5))
    assert set(read_stated_splits(tmp_path / "out").values()) == {"test"}
    assert read_stated_splits(tmp_path) == {}
