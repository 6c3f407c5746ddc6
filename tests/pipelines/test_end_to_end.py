"""The whole pipeline on a tiny corpus with tiny encoders: two runs in one home."""

import csv
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.data.split.sort import read_split
from audioscore.errors import AudioscoreError
from audioscore.evaluation.metrics import spearman
from audioscore.evaluation.predictions import read_predictions
from audioscore.scoring.checkpoint import load_scorer, read_description
from audioscore.tracking.connection import connect
from audioscore.tracking.find_scorer import find_scorer
from audioscore.tracking.registry import scorer_folder, version_by_alias, version_of
from audioscore.tracking.suggest import trained_in

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

PLANS = {"baseline", "hybrid", "muq_frozen"}
STEPS = [
    "fetch_data", "validate_data", "sort_data", "extract_shard", "extract_features", *["train_scorer"] * len(PLANS),
    "evaluate_scorers", "register_winner",
]  # fmt: skip
COLUMNS = "sha256,audio_file,split,singer_id,song_id,source,score,plan,seed,raw,predicted,lo,hi"
MODEL = "singers"


def mlflow_runs(first_run: Any) -> tuple["MlflowRun", dict[str, "MlflowRun"]]:
    """The parent MLflow run of a pipeline run, and its child runs by plan."""
    client = connect(first_run.home.tracking_uri)
    experiment = client.get_experiment_by_name(MODEL)
    found = client.search_runs([experiment.experiment_id], f"tags.run_id = '{first_run.result['run_id']}'")
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(found) == 1 + len(children)
    return parent, {run.data.tags["plan"]: run for run in children}


def test_the_json_document_has_the_documented_keys(first_run: Any) -> None:
    assert first_run.code == 0, first_run.err
    result = first_run.result
    for name, keys in {
        "data": {"digest", "clips", "train", "val", "test", "rejected"},
        "plans": {"baseline", "hybrid"},
        "decision": {"delta", "lo", "hi", "promoted", "reason"},
        "registered": {"name", "version", "aliases"},
    }.items():
        assert set(result[name]) == keys, name
    for figures in result["plans"].values():
        for name in ("spearman", "spearman_within_source", "pairwise_accuracy", "mae"):
            assert set(figures[name]) >= {"value", "lo", "hi"}
    assert "muq_frozen" in result["controls"]
    assert all("spearman" in figures for figures in result["controls"].values())
    assert set(result["comparison"]) >= {"delta", "lo", "hi"}
    assert result["winner"] in result["plans"]
    assert result["report"] == str(first_run.folder / "report.html")
    assert json.loads((first_run.folder / "result.json").read_text(encoding="utf-8")) == result


def test_the_counts_add_up_and_a_first_model_has_no_difference(first_run: Any) -> None:
    data, decision = first_run.result["data"], first_run.result["decision"]
    assert (data["clips"], data["rejected"]) == (45, 3)
    assert data["train"] + data["val"] + data["test"] == 45
    assert re.fullmatch(r"[0-9a-f]{32}\.dir", data["digest"])
    assert (decision["delta"], decision["lo"], decision["hi"]) == (None, None, None)
    assert f"on {data['test']} test clips" in decision["reason"]


def test_rejected_clips_are_listed_and_the_run_continues(first_run: Any) -> None:
    verdict = json.loads((first_run.step("validate-data") / "validated" / "validation.json").read_text())
    reasons = {rejected["audio_file"]: rejected["reason"] for rejected in verdict["rejected"]}
    assert set(reasons) == {"audio/c000.wav", "audio/c007.wav", "audio/c014.wav"}
    assert re.search(r"\d\.\d\d s.* \d\.\d\d s", reasons["audio/c000.wav"])
    assert "no such file" in reasons["audio/c007.wav"]
    assert "150" in reasons["audio/c014.wav"]
    page = (first_run.step("validate-data") / "report").read_text(encoding="utf-8")
    assert all(name in page for name in reasons)


def test_the_report_is_one_file(first_run: Any) -> None:
    page = Path(first_run.result["report"]).read_text(encoding="utf-8")
    outside = re.sub(r'xmlns(?::\w+)?="[^"]*"', "", page)
    assert re.findall(r"https?://[^\s\"'<]*", outside) == []
    assert not re.search(r"<(?:link|script)\b", page)
    assert first_run.result["data"]["digest"] in page


def test_the_page_can_be_rendered_again(first_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(first_run.home.folder))
    page, card = first_run.folder / "report.html", first_run.folder / "model_card.md"
    before = page.read_text(encoding="utf-8"), card.read_text(encoding="utf-8")
    page.write_text("spoiled", encoding="utf-8")
    shown = CliRunner().invoke(app, ["report", first_run.result["run_id"], "--render"])
    assert (shown.exit_code, shown.stdout) == (0, f"{page}\n"), shown.output
    assert (page.read_text(encoding="utf-8"), card.read_text(encoding="utf-8")) == before
    assert first_run.result["winner"] in before[1]


def test_the_page_shows_the_champion_beside_the_plans(second_run: Any) -> None:
    facts = json.loads((second_run.step("register-winner") / "outcome" / "page.json").read_text())
    assert facts["champion"]["plans"].keys() >= {"champion", "baseline", "hybrid"}
    assert "champion" in (second_run.folder / "report.html").read_text(encoding="utf-8")


def test_each_step_has_its_own_log(first_run: Any) -> None:
    logs = sorted((first_run.folder / "logs").iterdir())
    assert [path.name for path in logs] == [f"{number:02d}-{name}.log" for number, name in enumerate(STEPS, start=1)]
    assert all(path.stat().st_size for path in logs)
    done = re.findall(r"^  done  (\w+(?: \(\w+\))?) ", first_run.err, flags=re.MULTILINE)
    assert {f"train_scorer ({plan})" for plan in PLANS} <= set(done)
    assert len(done) == len(STEPS)


def test_predictions_have_every_clip_for_every_plan(first_run: Any) -> None:
    table = first_run.step("evaluate-scorers") / "evaluation" / "predictions.csv"
    with table.open(encoding="utf-8", newline="") as handle:
        assert ",".join(next(csv.reader(handle))) == COLUMNS
    rows = read_predictions(table)
    assert len(rows) == 45 * len(PLANS)
    assert {row.plan for row in rows} == PLANS
    assert len({(row.sha256, row.plan) for row in rows}) == len(rows)
    assert all(row.lo is not None and row.hi is not None and row.lo <= row.predicted <= row.hi for row in rows)
    assert all(0 <= row.predicted <= 100 for row in rows)
    singers = [{row.singer_id for row in rows if (row.split == "test") == test} for test in (True, False)]
    assert not singers[0] & singers[1]


def test_every_plan_scored_the_degraded_clips(first_run: Any) -> None:
    document = json.loads((first_run.step("evaluate-scorers") / "evaluation" / "probes.json").read_text())
    assert set(document["plans"]) == PLANS
    assert len(document["probed"]) == 3
    rows = read_predictions(first_run.step("evaluate-scorers") / "evaluation" / "predictions.csv")
    test_files = {row.audio_file for row in rows if row.split == "test"}
    assert {clip["audio_file"] for clip in document["probed"]} <= test_files
    for of_plan in document["plans"].values():
        assert all(figures["flagged"] in (True, False) for figures in of_plan["degradations"].values())
        assert len(of_plan["degradations"]) == 12
        assert of_plan["domain"]["balanced_accuracy"] is not None or of_plan["domain"]["reason"]


def test_figures_can_be_recomputed_from_the_predictions(first_run: Any) -> None:
    rows = read_predictions(first_run.step("evaluate-scorers") / "evaluation" / "predictions.csv")
    for plan, figures in first_run.result["plans"].items():
        test = [row for row in rows if row.plan == plan and row.split == "test"]
        again = spearman(np.array([row.score for row in test]), np.array([row.predicted for row in test]))
        expected = figures["spearman"]["value"]
        assert math.isnan(again) if expected is None else again == pytest.approx(expected)
        error = np.mean([abs(row.predicted - row.human) for row in test])
        assert figures["mae"]["value"] == pytest.approx(error)


def test_mlflow_has_a_parent_run_and_a_child_run_per_plan(first_run: Any) -> None:
    parent, children = mlflow_runs(first_run)
    assert set(children) == PLANS
    client = connect(first_run.home.tracking_uri)
    for run in (parent, *children.values()):
        tags = run.data.tags
        assert run.info.status == "FINISHED"
        assert tags["data_digest"] == first_run.result["data"]["digest"]
        assert tags["dvc_rev"] == "not under DVC"
        assert re.match(r"[0-9a-f]{40}|unknown", tags["code_rev"])
        assert run.data.params["training.epochs"] == "3"
        assert {entry.path for entry in client.list_artifacts(run.info.run_id)} >= {"report.html", "predictions.csv"}
    assert parent.data.tags["winner"] == first_run.result["winner"]
    for plan, figures in first_run.result["plans"].items():
        for part, name in (("value", "test_mae"), ("lo", "test_mae_lo"), ("hi", "test_mae_hi")):
            assert children[plan].data.metrics[name] == pytest.approx(figures["mae"][part])
    for plan, child in children.items():
        assert child.data.params["plan"] == plan
        assert "val_spearman_seed_1" in child.data.metrics
        for curve in ("curve_train_loss_seed_1", "curve_val_spearman_seed_1"):
            assert len(client.get_metric_history(child.info.run_id, curve)) == 3


def test_the_registered_version_has_its_figures_as_tags(first_run: Any) -> None:
    registered = first_run.result["registered"]
    assert (registered["name"], registered["version"]) == (MODEL, 1)
    promoted = first_run.result["decision"]["promoted"]
    assert registered["aliases"] == (["champion"] if promoted else ["challenger"])
    version = version_of(connect(first_run.home.tracking_uri), MODEL, 1)
    assert version.tags["plan"] == first_run.result["winner"]
    assert version.tags["decision"] == first_run.result["decision"]["reason"]
    assert version.tags["promoted"] == str(promoted).lower()
    assert version.tags["data_digest"] == first_run.result["data"]["digest"]
    assert version.tags["compared_with"] == "none"
    assert {"dvc_rev", "code_rev", "licence_of_weights", "test_spearman"} <= set(version.tags)
    assert version.run_id == mlflow_runs(first_run)[1][first_run.result["winner"]].info.run_id


def test_the_winners_flags_are_warnings(first_run: Any) -> None:
    registered = first_run.result["registered"]
    tags = version_of(connect(first_run.home.tracking_uri), MODEL, registered["version"]).tags
    flagged = json.loads(tags["probes"])["flagged"]
    assert all(any(name in text for text in first_run.result["warnings"]) for name in flagged)


def test_the_registered_scorer_lists_its_training_clips(first_run: Any) -> None:
    description = read_description(scorer_folder(first_run.home.tracking_uri, f"models:/{MODEL}/1"))
    index = first_run.step("sort-data") / "index"
    seen = {clip.sha256 for split in ("train", "val") for clip in read_split(index, split)}
    assert set(description.seen_clips) == seen
    assert not seen & {clip.sha256 for clip in read_split(index, "test")}
    assert description.data_digest == first_run.result["data"]["digest"]


def test_pyfunc_library_and_command_line_agree(
    first_run: Any, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow.pyfunc

    monkeypatch.setenv("AUDIOSCORE_HOME", str(first_run.home.folder))
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a model puts its own code first
    uri, recording = f"models:/{MODEL}/1", tiny_corpus / "audio" / "c021.wav"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    scored = load_scorer(scorer_folder(first_run.home.tracking_uri, uri)).score(recording)
    model = mlflow.pyfunc.load_model(uri)
    rows = model.predict(pd.DataFrame({"audio": [recording.read_bytes(), broken.read_bytes()]}))
    assert list(rows.columns) == ["score", "lo", "hi", "raw", "seconds", "error", "notes"]
    good, bad = rows.to_dict("records")
    assert (good["score"], good["lo"], good["hi"]) == pytest.approx((scored.score, *scored.interval), abs=1e-4)
    assert good["raw"] == pytest.approx(scored.raw, abs=1e-6)
    assert pd.isna(good["error"])
    assert pd.isna(bad["score"])
    assert "decoded" in bad["error"]
    shown = CliRunner().invoke(app, ["score", str(recording), "--model", uri, "--json"])
    assert shown.exit_code == 0
    document = json.loads(shown.stdout)
    assert document["model"] == uri
    assert document["results"][0]["score"] == pytest.approx(scored.score, abs=1e-4)
    assert document["results"][0]["raw"] == pytest.approx(scored.raw, abs=1e-6)


def test_unscored_recordings_are_suggested(
    first_run: Any, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(first_run.home.folder))
    (tmp_path / "labels.csv").write_text("audio_file,score\nnina_c003.wav,70\n", encoding="utf-8")
    for number, name in enumerate(("nina_1.wav", "nina_2.wav", "nina_c003.wav", "c004.wav"), 1):
        shutil.copyfile(tiny_corpus / "audio" / f"c{number:03d}.wav", tmp_path / name)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    run = first_run.result["run_id"]
    options = ["suggest", str(tmp_path), "-n", "2", "--run", run, "--singer-from", r"^(\w+?)_"]
    shown = CliRunner().invoke(app, [*options, "--json"])
    assert shown.exit_code == 3, shown.output
    document = json.loads(shown.stdout)
    assert (document["run"], document["models"]) == (run, 2)
    assert (document["scored"], document["unscored"]) == (1, 3)
    gains = [one["gain"] for one in document["suggestions"]]
    assert len(gains) == 2
    assert gains == sorted(gains, reverse=True)
    assert {one["singer_id"] for one in document["suggestions"]} <= {"nina", None}
    (refused,) = document["refused"]
    assert refused["audio_file"] == "broken.wav"
    table = CliRunner().invoke(app, options, env={"COLUMNS": "200"})
    assert re.search(r"\b2 of 3 .*\b2 models ", table.stdout)
    assert "broken.wav:" in table.stderr


@pytest.mark.parametrize(
    ("folder", "run", "named"),
    [("gone", None, "gone: "), ("", None, r"\b0.*\b0.*\b0\b"), ("", "nowhere", "nowhere: .*--run")],
)
def test_nothing_to_suggest_is_an_error(
    first_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, run: str | None, named: str
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(first_run.home.folder))
    ended = CliRunner().invoke(app, ["suggest", str(tmp_path / folder), *(["--run", run] if run else [])])
    assert isinstance(ended.exception, AudioscoreError)
    assert ended.exception.exit_code == 2
    assert re.search(named, str(ended.exception).replace(str(tmp_path), ""))


def test_models_lists_what_was_registered(second_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(second_run.home.folder))
    shown = CliRunner().invoke(app, ["models", "--json"])
    rows = json.loads(shown.stdout)
    versions = [(row["name"], row["version"], row["aliases"]) for row in rows]
    assert versions == [(MODEL, 2, ["challenger"]), (MODEL, 1, ["champion"])]
    assert {"plan", "decision", "test_spearman", "data_digest"} <= set(rows[0])
    table = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"}).stdout
    assert f"{MODEL} v2" in table


def test_a_second_run_reuses_every_feature(second_run: Any) -> None:
    log = (second_run.folder / "logs" / "05-extract_features.log").read_text(encoding="utf-8")
    assert re.search(r"45 of 45 clips.*\b0\b", log)
    assert "45 of 45 clips" in second_run.err


def test_a_second_run_has_the_same_splits_and_scores(first_run: Any, second_run: Any) -> None:
    for split in ("train", "val", "test"):
        before, after = (read_split(run.step("sort-data") / "index", split) for run in (first_run, second_run))
        assert before == after
    table = Path("evaluation") / "predictions.csv"
    first, second = (read_predictions(run.step("evaluate-scorers") / table) for run in (first_run, second_run))
    assert [(row.sha256, row.plan) for row in first] == [(row.sha256, row.plan) for row in second]
    assert [row.predicted for row in first] == pytest.approx([row.predicted for row in second], abs=1e-3)
    assert first_run.result["data"] == second_run.result["data"]
    assert first_run.result["run_id"] != second_run.result["run_id"]


def test_an_equal_challenger_does_not_replace_the_champion(second_run: Any) -> None:
    decision = second_run.result["decision"]
    assert not decision["promoted"]
    assert "same predictions" in decision["reason"]
    assert (decision["delta"], decision["lo"], decision["hi"]) == (0.0, 0.0, 0.0)
    assert second_run.result["registered"] == {"name": MODEL, "version": 2, "aliases": ["challenger"]}
    champion = version_by_alias(connect(second_run.home.tracking_uri), MODEL, "champion")
    assert champion is not None
    assert champion.version == 1
    assert version_of(connect(second_run.home.tracking_uri), MODEL, 2).tags["compared_with"] == "v1"


def test_a_missing_required_promotion_has_exit_code_1(second_run: Any) -> None:
    assert second_run.code == 1
    assert second_run.err.rstrip().splitlines()[-1] == f"not promoted: {second_run.result['decision']['reason']}"


def test_a_copied_home_with_any_name_scores_with_its_own_files(
    first_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "C#proj 新 %20?x '"
    shutil.copytree(first_run.home.folder, folder)
    monkeypatch.setenv("AUDIOSCORE_HOME", str(folder))
    version = first_run.result["registered"]["version"]
    _, copied = find_scorer(f"models:/{MODEL}/{version}")
    assert copied.is_relative_to(folder)
    assert read_description(copied) == read_description(
        scorer_folder(first_run.home.tracking_uri, f"models:/{MODEL}/{version}")
    )
    trained = trained_in(folder / "runs" / str(first_run.result["run_id"]))
    counts = first_run.result["data"]
    assert len(trained.train) == counts["train"] + counts["val"]  # both were trained on
    shown = CliRunner().invoke(app, ["report"])
    assert (shown.exit_code, Path(shown.stdout.strip()).is_relative_to(folder)) == (0, True)
