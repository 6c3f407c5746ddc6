"""compare and evaluate with real, untrained scorers on the tiny corpus: what is computed, and from which clips."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.data.labels import read_labels
from audioscore.data.sort import read_split, write_sorted
from audioscore.data.split import assign_splits
from audioscore.errors import DataError, UsageError
from audioscore.evaluation.predictions import read_predictions
from audioscore.files import read_json, sha256_of, write_json
from audioscore.scoring.checkpoint import load_scorer


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "data"
    shutil.copytree(tiny_corpus, folder)
    clips = [
        replace(clip, sha256=sha256_of(folder / clip.audio_file)) for clip in read_labels(folder / "labels.csv").clips
    ]
    write_sorted(folder, clips, assign_splits(clips, val=0.2, test=0.3, seed=7))
    return folder


@pytest.fixture(scope="module")
def other(scorer_directory: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another head for the same encoders, which was trained on two of the test clips."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("other") / "scorer"
    shutil.copytree(scorer_directory, folder)
    head = folder / "head.safetensors"
    generator = torch.Generator().manual_seed(3)
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in load_file(head).items()}
    save_file({name: value + 0.5 * noise[name].abs() for name, value in load_file(head).items()}, head)
    described = read_json(folder / "scorer.json")
    seen = [clip.sha256 for clip in read_split(data, "test")[:2]]
    write_json(folder / "scorer.json", {**described, "seen_clips": seen})
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "600"})


def test_figures_are_those_of_the_scorers_on_clips_that_neither_has_seen(
    scorer_directory: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    said = run("compare", scorer_directory, other, "--data", data, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    clips = read_split(data, "test")[2:]
    assert (found["clips"], found["dropped"], found["split"]) == (len(clips), 2, "test")
    human = [clip.score for clip in clips]
    values = []
    for folder in (scorer_directory, other):
        scorer = load_scorer(folder)
        raw = [scorer.score(data / clip.audio_file).raw for clip in clips]
        values.append(float(stats.spearmanr(human, raw).statistic))
        figure = found["models"][str(folder)]["spearman"]
        assert figure["value"] == pytest.approx(values[-1], abs=1e-6)
        assert figure["lo"] <= figure["value"] <= figure["hi"]
    difference = found["difference"]["spearman"]
    assert difference["delta"] == pytest.approx(values[1] - values[0], abs=1e-6)
    assert set(found["difference"]) == {"spearman", "spearman_within_source", "pairwise_accuracy"}
    back = json.loads(run("compare", other, scorer_directory, "--data", data, "--json").stdout)["difference"][
        "spearman"
    ]
    assert (back["delta"], back["lo"], back["hi"]) == pytest.approx(
        (-difference["delta"], -difference["hi"], -difference["lo"])
    )
    table = run("compare", scorer_directory, other, "--data", data).stdout
    assert "B - A" in table
    assert f"{len(clips)} clips of " in table
    assert "; 2 more left out, because a model had trained on them." in table


def test_an_evaluation_writes_what_its_figures_can_be_recomputed_from(
    scorer_directory: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = run("evaluate", scorer_directory, other, "--data", data, "--split", "all", "--out", out, "--json")
    assert said.exit_code == 0, said.output
    figures = json.loads(said.stdout)
    assert figures == read_json(out / "evaluation.json")
    rows = read_predictions(out / "predictions.csv")
    assert {row.split for row in rows} == {"train", "val", "test"}
    assert figures["counts"]["clips"] == len(rows) // 2 == 46
    for folder in (scorer_directory, other):
        of_model = [row for row in rows if row.plan == str(folder)]
        value = figures["plans"][str(folder)]["spearman"]["value"]
        if value is None:  # it gives every clip the same score
            assert len({row.predicted for row in of_model}) == 1
        else:
            again = stats.spearmanr([row.human for row in of_model], [row.predicted for row in of_model]).statistic
            assert value == pytest.approx(again)
        error = np.mean([abs(row.predicted - row.human) for row in of_model])
        assert figures["plans"][str(folder)]["mae"]["value"] == pytest.approx(error)
    table = run("evaluate", scorer_directory, "--data", data).stdout
    assert "MAE (points)" in table
    assert "95% intervals" in table


def test_bad_input_is_one_sentence(scorer_directory: Path, data: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[object], str]] = [
        (["compare", scorer_directory, scorer_directory, "--data", data], "named twice. Name each model once."),
        (["compare", scorer_directory, tmp_path / "gone", "--data", data], "gone: no such folder"),
        (["evaluate", scorer_directory, "--data", tmp_path / "gone"], "no such folder. Give a data folder"),
        (["evaluate", scorer_directory, "--data", tmp_path], "is not sorted, index/ missing"),
        (["evaluate", scorer_directory, "--data", data, "--split", "dev"], "--split dev: there are test, val, train"),
    ]
    for arguments, sentence in cases:
        found = run(*arguments)
        assert isinstance(found.exception, UsageError), arguments
        assert sentence in str(found.exception)


def test_a_file_in_the_way_is_said_before_anything_is_judged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = run("evaluate", tmp_path / "gone", "--data", tmp_path / "gone", "--out", tmp_path / "file" / "out")
    assert isinstance(found.exception, NotADirectoryError)
    assert found.exception.filename == str(tmp_path / "file")


def test_clips_that_were_all_trained_on_judge_nothing(scorer_directory: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scorer"
    shutil.copytree(scorer_directory, folder)
    seen = [clip.sha256 for clip in read_split(data, "test")]
    write_json(folder / "scorer.json", {**read_json(folder / "scorer.json"), "seen_clips": seen})
    found = run("evaluate", folder, "--data", data)
    assert isinstance(found.exception, DataError)
    assert f"of {len(seen)} scored clips in split test, {len(seen)} were trained on by a model" in str(found.exception)
