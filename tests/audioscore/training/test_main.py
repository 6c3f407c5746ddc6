"""One process of a training, as `python -m audioscore.training` runs it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from audioscore.scoring.checkpoint import read_description
from audioscore.scoring.trained_plan import read_trained
from audioscore.training import __main__ as program
from audioscore.training import distributed, launch
from audioscore.training.launch import REQUEST_FILE, TrainingRequest


@pytest.fixture
def config(corpus: Any, tmp_path: Path) -> Path:
    values = {**corpus.values, "training": {**corpus.values["training"], "epochs": 1}}
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    return tmp_path / "config.yaml"


def options(corpus: Any, config: Path, out: Path, *more: str) -> list[str]:
    inputs = ["--index", str(corpus.index), "--features", str(corpus.features)]
    return ["--config", str(config), *inputs, "--out", str(out), "--device", "cpu", *more]


def test_every_named_plan_is_written_once_below_the_folder(corpus: Any, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    named = [part for plan in ("baseline", "campplus_only", "baseline") for part in ("--plan", plan)]
    assert program.main(options(corpus, config, out, *named, "--data-digest", "d.dir", "--code-revision", "abc")) == 0
    assert sorted(path.name for path in out.iterdir()) == ["baseline", "campplus_only"]
    description = read_description(read_trained(out / "baseline").scorer_folder())
    assert (description.data_digest, description.code_revision) == ("d.dir", "abc")


def test_a_single_plan_is_written_to_the_folder_itself(corpus: Any, config: Path, tmp_path: Path) -> None:
    more = ["--plan", "hybrid", "--single", "--set", "training.seeds=[2]"]
    assert program.main(options(corpus, config, tmp_path / "plan", *more)) == 0
    expected = corpus.train("hybrid", tmp_path / "expected", seeds=[2], epochs=1, folds=None)
    found = read_trained(tmp_path / "plan")
    assert found.validation == expected.validation
    weights, wanted = (load_file(one.scorer_folder() / "head.safetensors") for one in (found, expected))
    assert all((weights[name] == value).all() for name, value in wanted.items())


def test_a_data_folder_is_extracted(corpus: Any, config: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus.data, tmp_path / "data")
    shutil.copytree(corpus.index / "index", tmp_path / "data" / "index")
    out = tmp_path / "out"
    more = ["--config", str(config), "--data", str(tmp_path / "data"), "--out", str(out), "--store", str(corpus.store)]
    assert program.main([*more, "--plan", "campplus_only", "--device", "cpu"]) == 0
    described = json.loads((out / "features" / "extraction.json").read_text())
    assert (described["clips"], described["reused"]) == (48, 48)
    assert read_description(read_trained(out / "campplus_only").scorer_folder()).data_digest.endswith(".dir")


def test_init_is_an_option(corpus: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--plan", "baseline", "--init", f"warm:{tmp_path / 'gone'}"]
    assert program.main(options(corpus, config, tmp_path / "out", *more)) == 2
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
    "set": (["--set", "training.epoch=3"], (" 1 ", ": training.epoch: ")),
    "device": (["--device", "tpu"], ("--device tpu: ", "auto, cpu, cuda")),
    "launcher": (
        ["--set", "training.launcher=trainjob", "--set", "training.trainjob.exchange=s3://bucket/x",
         "--set", "training.trainjob.image=r/i"],
        ("launcher trainjob", "training.launcher=torchrun"),
    ),
    "no features": (["--index", "i", "--features", "f"], ("f: ", "extraction.json")),
}  # fmt: skip


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


def test_unknown_and_missing_options_have_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for given, name in ((["--out", "x", "--plans", "y"], "--plans"), (["--plan", "hybrid"], "--out")):
        assert program.main(given) == 2
        assert name in capsys.readouterr().err


def test_the_help_lists_the_options_of_pipelines_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("--data", "--index", "--features", "--single", "--store", "--processes", "--code-revision"):
        assert name in text


def test_a_process_that_fails_after_another_prints_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "first_to_fail", lambda: False)
    assert program.main(["--config", str(config), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ""


def test_an_unwritable_target(corpus: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert program.main(options(corpus, config, tmp_path / "out", "--plan", "campplus_only")) == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainingRequest, int]]:
    """The calls of torchrun; it returns 5."""
    calls: list[tuple[TrainingRequest, int]] = []

    def run(request: TrainingRequest, processes: int) -> int:
        calls.append((request, processes))
        return 5

    for module in (launch, program):
        monkeypatch.setattr(module, "torchrun", run)
    return calls


@pytest.mark.parametrize("form", [["--processes", "2"], ["--processes=2"]])
def test_several_processes_get_the_other_options(
    corpus: Any, config: Path, torchrun: list[tuple[TrainingRequest, int]], form: list[str]
) -> None:
    assert program.main(options(corpus, config, Path("x"), "--plan", "hybrid", *form)) == 5
    ((request, processes),) = torchrun
    assert (request.plans, request.out, request.processes, processes) == (("hybrid",), Path("x"), None, 2)
    assert (request.index, request.features, request.device) == (corpus.index, corpus.features, "cpu")


def write_request(request: TrainingRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "request.json").write_text(json.dumps(request.to_json()))
    monkeypatch.setenv(REQUEST_FILE, str(tmp_path / "request.json"))
    monkeypatch.setattr("sys.argv", ["audioscore.training"])


def test_a_process_without_options_trains_its_request(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchrun: list[tuple[TrainingRequest, int]]
) -> None:
    request = TrainingRequest(
        corpus.config(seeds=[1], epochs=1), ("campplus_only",), tmp_path / "plan", "abc", index=corpus.index,
        features=corpus.features, single=True, data_digest="d.dir", device="cpu",
    )  # fmt: skip
    write_request(request, tmp_path, monkeypatch)
    assert program.main() == 0
    assert read_description(read_trained(tmp_path / "plan").scorer_folder()).data_digest == "d.dir"
    assert torchrun == []
    write_request(replace(request, processes=3), tmp_path, monkeypatch)
    assert program.main() == 5
    assert torchrun == [(request, 3)]
