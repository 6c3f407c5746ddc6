import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.trained import read_trained
from audioscore.training import __main__ as program
from audioscore.training import launch


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    logger = logging.getLogger("audioscore")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def config(ground: Any, tmp_path: Path) -> Path:
    values = {**ground.values, "training": {**ground.values["training"], "epochs": 1}}
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    return tmp_path / "config.yaml"


def options(ground: Any, config: Path, out: Path, *more: str) -> list[str]:
    where = ["--index", str(ground.index), "--features", str(ground.features)]
    return ["--config", str(config), *where, "--out", str(out), "--device", "cpu", *more]


def test_every_plan_that_is_named_is_written_once_below_the_folder(ground: Any, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    named = [part for plan in ("baseline", "campplus_only", "baseline") for part in ("--plan", plan)]
    assert program.main(options(ground, config, out, *named, "--data-digest", "d.dir", "--code-revision", "abc")) == 0
    assert sorted(path.name for path in out.iterdir()) == ["baseline", "campplus_only"]
    said = read_description(read_trained(out / "baseline").scorer_folder())
    assert (said.data_digest, said.code_revision) == ("d.dir", "abc")


def test_one_plan_into_the_folder_itself_is_what_train_plan_makes(ground: Any, config: Path, tmp_path: Path) -> None:
    more = ["--plan", "hybrid", "--single", "--set", "training.seeds=[2]"]
    assert program.main(options(ground, config, tmp_path / "plan", *more)) == 0
    ours, theirs = read_trained(tmp_path / "plan"), ground.train("hybrid", tmp_path / "judge", seeds=[2], epochs=1)
    assert ours.validation == theirs.validation
    weights, wanted = (load_file(one.scorer_folder() / "head.safetensors") for one in (ours, theirs))
    assert all((weights[name] == value).all() for name, value in wanted.items())


def test_a_data_folder_is_extracted_first_and_reused_then(
    ground: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(ground.data, tmp_path / "data")
    shutil.copytree(ground.index / "index", tmp_path / "data" / "index")
    out = tmp_path / "out"
    more = ["--config", str(config), "--data", str(tmp_path / "data"), "--out", str(out), "--store", str(ground.store)]
    assert program.main([*more, "--plan", "campplus_only", "--device", "cpu"]) == 0
    described = json.loads((out / "features" / "extraction.json").read_text())
    assert (described["clips"], described["reused"]) == (48, 48)
    assert read_description(read_trained(out / "campplus_only").scorer_folder()).data_digest.endswith(".dir")


def test_a_warm_start_is_an_option(
    ground: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--plan", "baseline", "--init", f"warm:{tmp_path / 'gone'}"]
    assert program.main(options(ground, config, tmp_path / "out", *more)) == 2
    assert capsys.readouterr().err.endswith("missing. Correct training.init.\n")


WRONG = {
    "no data": ([], "error: no data: pass --data FOLDER, or --index and --features of a pipeline's steps."),
    "half": (["--index", "i"], "error: no data: pass --data FOLDER, or --index and --features of a pipeline's steps."),
    "both": (
        ["--data", "d", "--index", "i"],
        "error: --data and --index name two things to train on. Give one of them.",
    ),
    "unsorted": (["--data", "d"], "error: d: has no index/train.json. Run `audioscore data sort d` first."),
    "plan": (
        ["--plan", "x"],
        "error: plan 'x': there is no such plan; there are baseline, hybrid, campplus_only, muq_",
    ),
    "single": (["--single"], "error: --single writes one plan; got 4. Name it with --plan."),
    "set": (["--set", "training.epoch=3"], "1 wrong: training.epoch: there is no such key"),
    "no features": (["--index", "i", "--features", "f"], "error: f: holds no extraction.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given, sentence = WRONG[case]
    assert program.main(["--config", str(config), "--out", "out", *given]) == 2
    streams = capsys.readouterr()
    assert sentence in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert not (tmp_path / "out").exists()


def test_who_fails_after_another_leaves_the_talking_to_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audioscore.training import processes

    monkeypatch.setattr(processes, "first_to_fail", lambda: False)
    assert program.main(["--config", str(config), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_written_is_one_sentence(
    ground: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("in the way")
    assert program.main(options(ground, config, tmp_path / "out", "--plan", "campplus_only")) == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("form", [["--processes", "2"], ["--processes=2"]])
def test_several_processes_are_started_with_the_other_options(monkeypatch: pytest.MonkeyPatch, form: list[str]) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(launch, "torchrun", lambda given, processes: seen.append((list(given), processes)) or 5)
    assert program.main(["--plan", "hybrid", *form, "--out", "x"]) == 5
    assert seen == [(["--plan", "hybrid", "--out", "x"], 2)]
