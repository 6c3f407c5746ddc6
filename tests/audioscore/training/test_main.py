import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.trained_plan import read_trained
from audioscore.training import __main__ as program
from audioscore.training import launch


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


def test_a_data_folder_is_extracted(ground: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ground.data, tmp_path / "data")
    shutil.copytree(ground.index / "index", tmp_path / "data" / "index")
    out = tmp_path / "out"
    more = ["--config", str(config), "--data", str(tmp_path / "data"), "--out", str(out), "--store", str(ground.store)]
    assert program.main([*more, "--plan", "campplus_only", "--device", "cpu"]) == 0
    described = json.loads((out / "features" / "extraction.json").read_text())
    assert (described["clips"], described["reused"]) == (48, 48)
    assert read_description(read_trained(out / "campplus_only").scorer_folder()).data_digest.endswith(".dir")


def test_init_is_an_option(ground: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--plan", "baseline", "--init", f"warm:{tmp_path / 'gone'}"]
    assert program.main(options(ground, config, tmp_path / "out", *more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "gone") in line
    assert "training.init" in line


WRONG = {
    "no data": ([], ("--data", "--index", "--features")),
    "half": (["--index", "i"], ("--data", "--index", "--features")),
    "both": (["--data", "d", "--index", "i"], ("--data and --index",)),
    "unsorted": (["--data", "d"], ("d: ", "index/train.json", "`audioscore data sort d`")),
    "plan": (["--plan", "x"], ("plan 'x'", "baseline, hybrid, campplus_only, muq_")),
    "single": (["--single"], ("--single", "4", "--plan")),
    "set": (["--set", "training.epoch=3"], ("1 wrong: training.epoch: ",)),
    "no features": (["--index", "i", "--features", "f"], ("f: ", "extraction.json")),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_and_exit_code_2(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given, names = WRONG[case]
    assert program.main(["--config", str(config), "--out", "out", *given]) == 2
    streams = capsys.readouterr()
    assert [name for name in names if name not in streams.err] == []
    assert ("--single" in streams.err, "and --index" in streams.err) == (case == "single", case == "both")
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert not (tmp_path / "out").exists()


def test_a_process_that_fails_after_another_prints_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audioscore.training import distributed as processes

    monkeypatch.setattr(processes, "first_to_fail", lambda: False)
    assert program.main(["--config", str(config), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ""


def test_an_unwritable_target(ground: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("in the way")
    assert program.main(options(ground, config, tmp_path / "out", "--plan", "campplus_only")) == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("form", [["--processes", "2"], ["--processes=2"]])
def test_several_processes_are_started_with_the_other_options(monkeypatch: pytest.MonkeyPatch, form: list[str]) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(launch, "torchrun", lambda given, processes: seen.append((list(given), processes)) or 5)
    assert program.main(["--plan", "hybrid", *form, "--out", "x"]) == 5
    assert seen == [(["--plan", "hybrid", "--out", "x"], 2)]
