"""Make `state.tar.xz`: the state that a user of commit 1bcff8a has, at the smallest size.

It was run once, with the code of commit 1bcff8a, and is kept as the description of the archive. It uses that commit's
modules and need not work with later code:

    python tests/compat/make_fixture.py tests/compat/state.tar.xz

The archive holds one folder:

    home/        $AUDIOSCORE_HOME after two runs of `audioscore run`: mlflow.db, mlartifacts/ with the registered model
                 `audioscore` in two versions, features/, probes.db, runs/
    data/        a data folder after `audioscore data sort`: labels.csv, audio/, index/, splits.json
    encoders/    the MuQ and CAM++ of both runs: published layouts, random weights of few distinct values
    scorers/     scorer folders: baseline and hybrid (frozen encoders), tuned (LoRA, mixed layers, SongEval-style head)
    legacy/      a model folder of QwenFeat-Vocal-Score and the MuQ it needs
    clips/       two recordings to score
    configs/     run.yaml, which both runs used, and every.yaml, which sets every key
    expected.json  what commit 1bcff8a printed for all of this
    documents.json the same for keys: one JSON document of each command

Absolute paths are written as /FIXTURE; tests/compat/conftest.py replaces them, in mlflow.db too.
"""

import argparse
import csv
import importlib.util
import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PLACEHOLDER = "/FIXTURE"
SINGERS, CLIPS, RATE = 16, 3, 24_000
RANK, ALPHA = 2, 3
REPOSITORY = Path(importlib.util.find_spec("audioscore").origin).parents[1]
TEXT = {".json", ".yaml", ".yml", ".txt", ".md", ".html", ".csv", ".log", ""}

RUN = {
    "data": {"uri": "../data"},
    "validation": {"min_clips": 10, "max_rejected_share": 0.6},
    "split": {"val": 0.25, "test": 0.3, "seed": 7},
    "encoders": {
        "muq": {"source": "../encoders/muq", "layer": 2},
        "campplus": {"source": "../encoders/campplus"},
    },
    "training": {
        "plans": ["baseline", "hybrid"], "seeds": [1], "epochs": 3, "width": 8, "hidden": 8, "batch_clips": 12,
    },
    "evaluation": {"resamples": 200, "probes": {"clips": 2}},
    "registry": {"model": "audioscore", "margin": -1.0, "min_spearman": -1.0, "slice_margin": 2.0},
}  # fmt: skip

# Every key, each with a value that is not its default; numbers occur once where that is possible.
EVERY = {
    "data": {"uri": "../data", "column_map": {"score": "Points"}, "singer_from": "(s[0-9]+)"},
    "validation": {
        "max_rejected_share": 0.11, "min_clips": 13, "min_seconds": 1.01, "max_seconds": 1201.0,
        "allowed_sources": ["ktv", "acapella"], "max_dc_offset": 0.021, "min_mono_loss_db": -14.5,
        "min_bandwidth_hz": 8101.0, "min_voiced_share": 0.16, "min_per_source": 4, "min_per_band": 1, "min_singers": 5,
        "min_per_singer": 2, "max_shift": 0.22,
        "severity": {"narrow_band": "error", "no_voice": False, "near_duplicate": "off", "few_clips": "warning"},
    },
    "split": {"val": 0.23, "test": 0.27, "seed": 17, "pseudo_singers": False, "same_voice_cosine": 0.61},
    "encoders": {
        "muq": {"source": "../encoders/muq", "revision": "r1", "layer": 2, "sha256": "AB" * 32},
        "campplus": {"source": "../encoders/campplus", "revision": "r2", "layer": None, "sha256": "cd" * 32},
        "precision": "bf16",
    },
    "training": {
        "plans": ["hybrid", "baseline", "muq_frozen", "campplus_only"], "seeds": [19, 23],
        "init": "warm:../scorers/tuned",
        "head": "songeval", "fusion": "pooled", "layers": "mix", "width": 24, "hidden": 28, "attention_heads": 12,
        "attention_layers": 3, "dropout": 0.21, "tuning": "lora", "tune_from": 1,
        "lora": {"rank": 126, "alpha": 47, "dropout": 0.03}, "head_epochs": 6, "gradient_checkpointing": True,
        "loss": "list_mle", "margin_per_point": 0.12, "order_margin": 0.51, "absolute_weight": 0.04,
        "absolute_beta": 2.1,
        "adversary": {"weight": 0.31, "target": "ge2e", "source": "../encoders/ge2e", "hidden": 255},
        "epochs": 59, "patience": 14, "batch_clips": 33, "micro_clips": 9, "learning_rate": 0.0011,
        "encoder_learning_rate": 0.00012, "weight_decay": 0.051, "schedule": "cosine", "warmup_share": 0.06,
        "clip_norm": 1.1, "precision": "fp16", "launcher": "trainjob", "processes": 8,
        "trainjob": {
            "exchange": "s3://bucket/exchange", "image": "registry.example/audioscore@sha256:" + "0" * 64,
            "runtime": "torch", "namespace": "singing", "num_nodes": 10,
            "resources_per_node": {"gpu": 8, "memory": "64Gi"}, "env": {"NCCL_DEBUG": "INFO"}, "hours": 25.0,
        },
        "checkpoint_steps": 201, "save": "full",
    },
    "evaluation": {
        "resamples": 2001, "confidence": 0.94, "seed": 29,
        "probes": {
            "clips": 26, "tolerance_points": 0.52,
            "refuse": [
                "noise_30db", "noise_20db", "noise_10db", "clipping", "low_pass", "detune_25", "detune_50",
                "detune_100", "gain_up", "gain_down", "trailing_silence", "reencoding",
            ],
        },
    },
    "registry": {
        "model": "singers", "margin": 0.013, "min_spearman": 0.32, "slice_margin": 0.053, "slice_clips": 21,
        "slice_singers": 7,
    },
    "containers": {"image": "localhost/mine:1", "gpus": True, "memory": "15g", "shm": "3g"},
    "cluster": {
        "host": "https://kfp.example", "namespace": "kfp", "experiment": "singing", "service_account": "runner",
        "pipeline_root": "s3://bucket/root", "image": "registry.example/audioscore@sha256:" + "1" * 64,
        "feature_store": "s3://bucket/features", "tracking_uri": "https://mlflow.example",
        "artifact_root": "s3://bucket/mlflow", "accelerator": "example.com/gpu", "gpus": 11,
        "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}],
        "shm": "9Gi",
        "light": {"cpu": "3", "memory": "6Gi", "cpu_limit": "4", "memory_limit": "7Gi"},
        "heavy": {"cpu": "16", "memory": "96Gi", "cpu_limit": "18", "memory_limit": "97Gi"},
        "secrets": [{"name": "s3", "env": {"id": "AWS_ACCESS_KEY_ID"}}],
        "volume": {"claim": "encoders", "path": "/weights"}, "env": {"HF_HUB_OFFLINE": "1"},
        "labels": {"team": "singing"}, "pull_secrets": ["registry"], "shards": 15, "parallel_trainings": 20,
        "retries": 22, "hours": {"train_scorer": 49, "register_winner": 27.5}, "default_hours": 6.5,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("--work", type=Path, help="keep what was made in this folder, and use what is there")
    options = parser.parse_args()
    archive = options.archive.resolve()
    with tempfile.TemporaryDirectory() as folder:
        made = (options.work or Path(folder)).resolve() / "made"
        if not made.is_dir():
            make(made)
        root = made.with_name("state")
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(made, root)
        move(root, made)
        record(root)
        seal(root)
        pack(root, archive)
    print(f"{archive}: {archive.stat().st_size:,} bytes")  # noqa: T201


def move(root: Path, before: Path) -> None:
    """Make a copy of a state usable at its new path."""
    rewrite(root, {str(before): str(root)})


def make(root: Path) -> None:
    root.mkdir(parents=True)
    write_encoders(root)
    write_recordings(root)
    write_configs(root)
    run_yaml = str(root / "configs/run.yaml")
    audioscore(root, "data", "sort", "data", "--config", run_yaml)
    first = document(root, "run", "--config", run_yaml, "--json")
    second = document(
        root, "run", "--config", run_yaml, "--set", "training.seeds=[2]", "--set", "training.epochs=5", "--json"
    )
    for plan in ("baseline", "hybrid"):
        (source,) = [
            one.parent
            for one in (root / "home/runs" / second["run_id"] / "steps").glob("**/seed-2/scorer.json")
            if json.loads(one.read_text())["plan"] == plan
        ]
        shutil.copytree(source, root / "scorers" / plan)
    documents: dict[str, Any] = {"run": second}
    documents["train"] = document(
        root, "train", "--data", "data", "--config", run_yaml, "--out", "training", "--plan", "hybrid", "--json",
        *(part for setting in (
            "tuning=lora", "lora.rank=2", "lora.alpha=3", "layers=mix", "head=songeval", "attention_heads=4",
            "attention_layers=1", "head_epochs=1", "epochs=2",
        ) for part in ("--set", f"training.{setting}")),
    )  # fmt: skip
    shutil.copytree(root / "training/hybrid/seed-1", root / "scorers/tuned")
    documents["plan.json"] = json.loads((root / "training/hybrid/plan.json").read_text())
    shutil.rmtree(root / "training")
    documents["runs"] = [first["run_id"], second["run_id"]]
    (root / "documents.json").write_text(json.dumps(documents, indent=1))


def write_encoders(root: Path) -> None:
    import torch

    from audioscore.demo.pretrain import build_campplus, build_muq, muq_config, save_campplus, save_muq

    config = muq_config(dim=16, depth=2, conv_dim=4, codebook=16)
    muq = build_muq(config, seed=1)
    campplus = build_campplus(dim=16, growth=2, channels=4, seed=1)
    for model in (muq, campplus):
        for parameter in model.parameters():
            if parameter.ndim > 1:  # few distinct values: the archive is a quarter as large
                step = parameter.data.abs().max() / 7
                parameter.data = (parameter.data / step).round() * step
    save_muq(muq, config, root / "encoders/muq")
    save_campplus(campplus, root / "encoders/campplus", dim=16)

    spec = importlib.util.spec_from_file_location("builders", REPOSITORY / "tests/audioscore/conftest.py")
    builders = importlib.util.module_from_spec(spec)
    sys.modules["builders"] = builders
    spec.loader.exec_module(builders)
    with tempfile.TemporaryDirectory() as folder:
        config = muq_config(dim=16, depth=8, conv_dim=4, codebook=16)
        made = builders.make_judge(Path(folder), config, hidden=16, rank=RANK, alpha=ALPHA)
        shutil.copytree(made.muq, root / "legacy/muq")
        shutil.copytree(made.adapters, root / "legacy/adapters")
    torch.manual_seed(0)


def voice(score: float, pitch: float, seconds: float, rng: np.random.Generator) -> Any:
    """A held voice which wavers and hisses more the lower its score is."""
    time = np.arange(round(seconds * RATE)) / RATE
    fault = (100.0 - score) / 50.0
    wander = np.interp(time, np.linspace(0, seconds, 7), rng.normal(0, 1.5 * fault, 7))
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (wander / 12)) / RATE
    wave = sum(np.sin(k * phase) / k for k in range(1, 12)) + 0.5 * fault * rng.normal(0, 1, len(time))
    return np.asarray(0.08 * wave / np.sqrt(np.mean(wave**2)), dtype=np.float32)


def write_recordings(root: Path) -> None:
    from audioscore.data.audio import encode

    rng = np.random.default_rng(11)
    rows = []
    for index in range(SINGERS * CLIPS):
        singer, number = divmod(index, CLIPS)
        source, (low, high) = (("ktv", (50, 85)), ("acapella", (85, 99)))[singer % 2]
        score = round(float(low + (high - low) * (number + rng.random()) / CLIPS), 1)
        name = f"audio/c{index:03d}.m4a"
        (root / "data/audio").mkdir(parents=True, exist_ok=True)
        encode(voice(score, 180 + 12 * singer, 1.3, rng), RATE, root / "data" / name, bit_rate=32_000)
        rows.append((name, score, f"singer{singer:02d}", f"song{index % 5}", source))
    with (root / "data/labels.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("audio_file", "score", "singer_id", "song_id", "source"))
        writer.writerows(rows[i] for i in rng.permutation(len(rows)))
    (root / "clips").mkdir()
    for name, score, pitch in (("good", 95.0, 261.6), ("poor", 55.0, 196.0)):
        encode(voice(score, pitch, 1.5, rng), RATE, root / f"clips/{name}.flac", codec="flac")


def write_configs(root: Path) -> None:
    import yaml

    (root / "configs").mkdir()
    for name, values in (("run", RUN), ("every", EVERY)):
        (root / f"configs/{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def audioscore(root: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """Standard output of a command in `root`; `run` ends its process, the others run in this one."""
    started = time.monotonic()
    os.environ |= {"AUDIOSCORE_HOME": str(root / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    os.chdir(root)
    if arguments[0] == "run":
        done = subprocess.run(
            [Path(sys.executable).with_name("audioscore"), *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        from typer.testing import CliRunner

        from audioscore.cli.app import app

        result = CliRunner().invoke(app, list(arguments))
        code, out, err = result.exit_code, result.stdout, f"{result.stderr}\n{result.exception!r}"
    sys.stderr.write(f"{time.monotonic() - started:6.1f} s  {' '.join(arguments)}\n")
    if code not in codes:
        raise SystemExit(f"exit code {code}\n{err}")
    return out


def document(root: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> Any:
    return json.loads(audioscore(root, *arguments, codes=codes))


def record(root: Path) -> None:
    """What commit 1bcff8a answers for this state."""
    documents = json.loads((root / "documents.json").read_text())
    runs = documents.pop("runs")
    make_history(root)
    clips = ["clips/good.flac", "clips/poor.flac"]
    expected: dict[str, Any] = {"runs": runs, "scores": {}}
    for model in (
        "models:/audioscore@champion", "models:/audioscore/1", "models:/audioscore/2", "scorers/baseline",
        "scorers/hybrid", "scorers/tuned",
    ):  # fmt: skip
        found = document(root, "score", *clips, "--model", model, "--json")
        expected["scores"][model] = {
            row["file"]: {key: row[key] for key in ("score", "interval", "raw", "seconds")} for row in found["results"]
        }
    timeline = document(root, "score", clips[0], "--model", "scorers/hybrid", "--timeline", "--json")
    documents["score"] = timeline
    documents["models"] = document(root, "models", "--json")
    documents["models --history"] = document(root, "models", "--history", "--json")
    expected["models"] = [
        {key: row[key] for key in ("name", "version", "aliases", "plan")} for row in documents["models"]
    ]
    expected["history"] = [
        {key: row[key] for key in ("champion", "kind", "beaten", "carried_out")}
        for row in documents["models --history"]
    ]
    run_yaml = str(root / "configs/run.yaml")
    documents["evaluate"] = document(
        root, "evaluate", "scorers/hybrid", "--data", "data", "--config", run_yaml, "--json"
    )
    documents["compare"] = document(
        root, "compare", "scorers/baseline", "scorers/hybrid", "--data", "data", "--config", run_yaml, "--json"
    )
    expected["evaluate"] = {
        key: documents["evaluate"]["plans"]["scorers/hybrid"][key]["value"] for key in ("spearman", "mae")
    }
    documents["data validate"] = document(root, "data", "validate", "data", "--config", run_yaml, "--json")
    documents["data status"] = document(root, "data", "status", "data", "--json")
    documents["doctor"] = document(root, "doctor", "--json", codes=(0, 1))
    documents["suggest"] = document(root, "suggest", "clips", "--run", runs[1], "--json", codes=(0, 3))
    documents["run --dry-run"] = document(root, "run", "--config", run_yaml, "--dry-run", "--json")
    copy = root / "copy"
    shutil.copytree(root / "data", copy / "data")
    shutil.copytree(root / "clips", copy / "new")
    (copy / "new/labels.csv").write_text(
        "audio_file,score,singer_id,song_id,source\ngood.flac,90,new1,song1,ktv\nmissing.flac,80,new1,song1,ktv\n"
    )
    documents["data add"] = document(
        root, "data", "add", "copy/new/labels.csv", "--data", "copy/data", "--no-version", "--config", run_yaml,
        "--json", codes=(0, 3),
    )  # fmt: skip
    documents["data remove"] = document(
        root, "data", "remove", "audio/c000.m4a", "--data", "copy/data", "--no-version", "--config", run_yaml, "--json"
    )
    shutil.rmtree(copy)
    documents["convert"] = document(
        root, "convert", "legacy/adapters", "converted", "--muq", "legacy/muq", "--lora-r", str(RANK), "--lora-alpha",
        str(ALPHA), "--json",
    )  # fmt: skip
    expected["scores"]["converted"] = {
        row["file"]: {key: row[key] for key in ("score", "raw")}
        for row in document(root, "score", *clips, "--model", "converted", "--json")["results"]
    }
    shutil.rmtree(root / "converted")
    documents["config show"] = document(root, "config", "show", "--resolved", "--config", run_yaml, "--json")

    documents["encoders pull"] = document(root, "encoders", "pull", "--config", run_yaml, "--json")
    audioscore(root, "evaluate", "scorers/hybrid", "--data", "data", "--config", run_yaml, "--out", "evaluation")
    documents["evaluation.json"] = json.loads((root / "evaluation/evaluation.json").read_text())
    documents["predictions.csv"] = (root / "evaluation/predictions.csv").read_text().splitlines()[0].split(",")
    shutil.rmtree(root / "evaluation")
    documents["score --csv"] = (
        audioscore(root, "score", clips[0], "--model", "scorers/hybrid", "--csv").splitlines()[0].split(",")
    )
    shutil.copyfile(root / "home/mlflow.db", root / "mlflow.db")
    documents["promote"] = document(root, "promote", "1", "--data", "data", "--json", codes=(0, 1))
    shutil.copyfile(root / "mlflow.db", root / "home/mlflow.db")
    documents["rollback"] = document(root, "rollback", "--json")
    (root / "mlflow.db").replace(root / "home/mlflow.db")

    from audioscore.model import SongEvalGenerator_audio_lora

    model = SongEvalGenerator_audio_lora(lora_r=RANK, lora_alpha=ALPHA, muq=root / "legacy/muq")
    model.load_model(root / "legacy/adapters")
    expected["generate_tag"] = {name: model.generate_tag(root / name) for name in clips}

    with (root / "data/splits.json").open() as handle:
        expected["splits"] = json.load(handle)
    expected["index"] = {
        split: names_in(json.loads((root / f"data/index/{split}.json").read_text()))
        for split in ("train", "val", "test")
    }
    expected["features"] = sorted(
        str(path.relative_to(root / "home/features")) for path in (root / "home/features").glob("*/*/*.safetensors")
    )
    (root / "expected.json").write_text(json.dumps(expected, indent=1))
    (root / "documents.json").write_text(json.dumps(documents, indent=1))


def make_history(root: Path) -> None:
    """Version 1 becomes champion by hand, which its gate refused, and is rolled back: `previous` is 1."""
    from audioscore.tracking.connection import connect
    from audioscore.tracking.registry import promote

    promote(connect(f"sqlite:///{root / 'home/mlflow.db'}"), "audioscore", 1, expected=2, why="trial in production")
    audioscore(root, "rollback", "--why", "version 2 is better")


def names_in(index: Any) -> list[str]:
    """Every recording that an index names, in its order."""
    return [row["audio_file"] for group in index for row in group]


def seal(root: Path) -> None:
    """Leave out what is there twice, or only takes space, and write no path of this machine."""
    expected = json.loads((root / "expected.json").read_text())
    for folder in [
        *root.rglob("__pycache__"),
        *(root / "home/mlartifacts").glob("*/models/*/artifacts/code/*/serving/page/vendor"),
    ]:
        shutil.rmtree(folder)
    for page in [*(root / "home/mlartifacts").rglob("report.html"), *(root / "home/runs").glob("*/steps/**/report*")]:
        if page.is_file():
            page.unlink()
    for name in ("cache", "logs"):
        for folder in (root / "home/runs").glob(f"*/{name}"):
            shutil.rmtree(folder)
    shutil.rmtree(root / "home/runs" / expected["runs"][0])
    (root / f"home/runs/{expected['runs'][1]}/report.html").write_text("<!doctype html><title>left out</title>")
    names = {str(root): PLACEHOLDER, str(REPOSITORY): "/REPOSITORY", str(Path(sys.prefix)): "/VENV"}
    names = dict(sorted(names.items(), key=lambda item: -len(item[0])))
    rewrite(root, names)


def rewrite(root: Path, names: dict[str, str]) -> None:
    """Replace paths in every text file and in the database."""
    for path in root.rglob("*"):
        if path.is_file() and (path.suffix in TEXT or path.name == "MLmodel"):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            changed = text
            for old, new in names.items():
                changed = changed.replace(old, new)
            if changed != text:
                path.write_text(changed, encoding="utf-8")
    rewrite_database(root / "home/mlflow.db", names)


def rewrite_database(file: Path, names: dict[str, str]) -> None:
    database = sqlite3.connect(file)
    tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for column in [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]:
            for old, new in names.items():
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) '
                    f'WHERE typeof("{column}") = \'text\' AND instr("{column}", ?)',
                    (old, new, old),
                )
    database.commit()
    database.execute("VACUUM")
    database.close()


def pack(root: Path, archive: Path) -> None:
    """One tar.xz in a fixed order, without owners and times."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    with lzma.open(archive, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root).as_posix(), recursive=False, filter=plain)


if __name__ == "__main__":
    main()
