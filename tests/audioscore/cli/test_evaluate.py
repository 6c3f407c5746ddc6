"""compare and evaluate with untrained scorers on the tiny corpus."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.data.split.sort import read_split
from audioscore.errors import DataError, UsageError
from audioscore.evaluation.predictions import read_predictions
from audioscore.files import read_json, write_json
from audioscore.scoring.checkpoint import load_scorer


@pytest.fixture(scope="module")
def data(sorted_corpus: Callable[..., Path]) -> Path:
    return sorted_corpus(test=0.3)


@pytest.fixture(scope="module")
def other(scorer_directory: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another head for the same encoders, with two test clips among its training clips."""
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


def test_comparison_figures_match_scipy_on_clips_that_neither_model_trained_on(
    scorer_directory: Path, other: Path, data: Path
) -> None:
    result = run("compare", scorer_directory, other, "--data", data, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    clips = read_split(data, "test")[2:]
    assert (document["clips"], document["dropped"], document["split"]) == (len(clips), 2, "test")
    human = [clip.score for clip in clips]
    values = []
    for folder in (scorer_directory, other):
        scorer = load_scorer(folder)
        raw = [scorer.score(data / clip.audio_file).raw for clip in clips]
        values.append(float(stats.spearmanr(human, raw).statistic))
        figure = document["models"][str(folder)]["spearman"]
        assert figure["value"] == pytest.approx(values[-1], abs=1e-6)
        assert figure["lo"] <= figure["value"] <= figure["hi"]
    difference = document["difference"]["spearman"]
    assert difference["delta"] == pytest.approx(values[1] - values[0], abs=1e-6)
    assert set(document["difference"]) == {"spearman", "spearman_within_source", "pairwise_accuracy"}
    swapped = json.loads(run("compare", other, scorer_directory, "--data", data, "--json").stdout)
    back = swapped["difference"]["spearman"]
    assert (back["delta"], back["lo"], back["hi"]) == pytest.approx(
        (-difference["delta"], -difference["hi"], -difference["lo"])
    )
    table = run("compare", scorer_directory, other, "--data", data).stdout
    assert "B - A" in table
    assert f"{len(clips)} clips" in table
    assert "2 clips excluded" in table


def test_evaluation_figures_match_the_written_predictions(
    scorer_directory: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("evaluate", scorer_directory, other, "--data", data, "--split", "all", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures == read_json(out / "evaluation.json")
    rows = read_predictions(out / "predictions.csv")
    assert {row.split for row in rows} == {"train", "val", "test"}
    assert figures["counts"]["clips"] == len(rows) // 2 == 46
    for folder in (scorer_directory, other):
        of_model = [row for row in rows if row.plan == str(folder)]
        value = figures["plans"][str(folder)]["spearman"]["value"]
        if value is None:  # all scores are equal
            assert len({row.predicted for row in of_model}) == 1
        else:
            again = stats.spearmanr([row.human for row in of_model], [row.predicted for row in of_model]).statistic
            assert value == pytest.approx(again)
        error = np.mean([abs(row.predicted - row.human) for row in of_model])
        assert figures["plans"][str(folder)]["mae"]["value"] == pytest.approx(error)
    table = run("evaluate", scorer_directory, "--data", data).stdout
    assert "MAE" in table
    assert "95%" in table


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("compare {scorer} {scorer} --data {data}", "twice"),
        ("compare {scorer} {tmp}/gone --data {data}", "gone"),
        ("evaluate {scorer} --data {tmp}/gone", "gone"),
        ("evaluate {scorer} --data {tmp}", "index/"),
        ("evaluate {scorer} --data {data} --split dev", "--split dev"),
    ],
)
def test_wrong_arguments_are_named(
    scorer_directory: Path, data: Path, tmp_path: Path, arguments: str, part: str
) -> None:
    result = run(*arguments.format(scorer=scorer_directory, data=data, tmp=tmp_path).split())
    assert isinstance(result.exception, UsageError)
    assert part in str(result.exception)


def test_an_unusable_output_folder_is_reported_before_the_input_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("evaluate", tmp_path / "gone", "--data", tmp_path / "gone", "--out", tmp_path / "file" / "out")
    assert isinstance(result.exception, NotADirectoryError)
    assert result.exception.filename == str(tmp_path / "file")


def test_a_split_of_training_clips_alone_is_refused(scorer_directory: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scorer"
    shutil.copytree(scorer_directory, folder)
    seen = [clip.sha256 for clip in read_split(data, "test")]
    write_json(folder / "scorer.json", {**read_json(folder / "scorer.json"), "seen_clips": seen})
    result = run("evaluate", folder, "--data", data)
    assert isinstance(result.exception, DataError)
    assert f" 0 of {len(seen)} " in str(result.exception)
    assert "test" in str(result.exception)
