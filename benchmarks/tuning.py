"""The effect of tuning MuQ and of a speaker adversary, on the demo corpus with its small encoders.

`python benchmarks/tuning.py [--quick] [--jobs N] [--out FOLDER]` trains baseline and hybrid with MuQ frozen, with LoRA
and with fully tuned layers, both also after a head warm-up, and with LoRA and adversaries of several weights and
targets. Split, training and evaluation are those of a run: the seed is selected on validation, the test split is read
once. It prints the Markdown table of docs/training.md. With `--out` an interrupted benchmark continues; `--quick` uses
one seed and few epochs, to check that it works.
"""

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from audioscore.config import DEMO, Plan, TrainingSection, load_config
from audioscore.data.gate.output import run_gate
from audioscore.data.split.sort import sort_folder
from audioscore.encoders.extract import extract_folder
from audioscore.evaluation.predict import evaluate_plans
from audioscore.files import read_json, write_json
from audioscore.scoring.trained_plan import Outcome, read_trained
from audioscore.training.train import train_plan

DATA = Path(__file__).resolve().parents[1] / "data"
PLANS: tuple[Plan, ...] = ("baseline", "hybrid")
# Not optimised. Fewer epochs than by default, and smaller batches for the same number of steps, to take half an hour.
COMMON: dict[str, Any] = {
    "epochs": 15,
    "patience": 5,
    "batch_clips": 16,
    "encoder_learning_rate": 3e-4,
    "lora": {"rank": 16, "alpha": 16},
}
WARMUP_EPOCHS = 5  # of the head warm-up, in rows that have one
FULL_RUN, SHORT_RUN = {"seeds": [1, 2]}, {"seeds": [1], "epochs": 3, "patience": 3}


@dataclass(frozen=True)
class Variant:
    """A row of the table: the tuning of MuQ, and the adversary."""

    tuning: str
    weight: float = 0.0
    target: str = "campplus"
    head_warmup_epochs: int = 0

    @property
    def name(self) -> str:
        after = f"-after-{self.head_warmup_epochs}" if self.head_warmup_epochs else ""
        return self.tuning + after + (f"-{self.target}-{self.weight:g}" if self.weight else "")

    def settings(self, source: str | None, size: dict[str, Any]) -> TrainingSection:
        """Return the settings; `source` is the file of an external speaker encoder."""
        adversary = {"weight": self.weight, "target": self.target, "source": source}
        own = {"tuning": self.tuning, "head_warmup_epochs": self.head_warmup_epochs, "adversary": adversary}
        return TrainingSection.model_validate({**own, **COMMON, **size})


def variants(ge2e: str | None) -> list[Variant]:
    """Return the rows; those with GE2E targets only if its weights are installed."""
    rows = [
        *(Variant(tuning) for tuning in ("frozen", "lora", "full")),
        *(Variant(tuning, head_warmup_epochs=WARMUP_EPOCHS) for tuning in ("lora", "full")),
        *(Variant("lora", weight) for weight in (0.3, 1.0)),
    ]
    return rows if ge2e is None else [*rows, Variant("lora", 1.0, "ge2e")]


def main(folder: Path, jobs: int, size: dict[str, Any]) -> None:
    """Prepare, train and evaluate what is missing, and print the table."""
    started, source = time.monotonic(), ge2e_weights()
    prepare(folder, source, size)
    rows = [(plan, variant) for variant in variants(source) for plan in PLANS]
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that start now
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = []
        for (plan, variant), line in zip(
            rows, pool.map(partial(measure, folder=folder, source=source, size=size), rows), strict=True
        ):
            sys.stderr.write(f"{time.monotonic() - started:6.0f} s  {plan}, {variant.name}\n")
            found.append(line)
    clips = read_json(folder / rows[0][1].name / rows[0][0] / "line.json")["clips"]
    print(
        f"{len(size['seeds'])} seeds, at most {({**COMMON, **size})['epochs']} epochs; {clips['test']} test clips of "
        f"{clips['test_singers']} singers; {time.monotonic() - started:.0f} s in {jobs} processes\n"
    )
    print(
        "| plan | MuQ | adversary | trained parameters | validation, mean (range) | test Spearman | within source "
        "| singer probe before | after | chance |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for line in found:
        print(line)


def ge2e_weights() -> str | None:
    """Return the weights file of the resemblyzer package, if it is installed."""
    found = importlib.util.find_spec("resemblyzer")
    weights = None if found is None or found.origin is None else Path(found.origin).parent / "pretrained.pt"
    return None if weights is None or not weights.is_file() else str(weights)


def prepare(folder: Path, source: str | None, size: dict[str, Any]) -> None:
    """Validate, sort and split the corpus, and extract its features once for all rows."""
    if (folder / "features" / "extraction.json").is_file():
        return
    config = load_config(DEMO)
    run_gate(DATA, folder / "validated", folder / "validated" / "report.html", config)
    sort_folder(DATA, folder / "validated", folder, config.split)
    most = Variant("lora") if source is None else Variant("lora", 1.0, "ge2e")
    training = most.settings(source, size)
    extract_folder(DATA, folder, folder / "features", folder / "store", config.encoders, training, device="cpu")


def measure(row: tuple[Plan, Variant], folder: Path, source: str | None, size: dict[str, Any]) -> str:
    """Train, evaluate and return one line of the table; finished rows are not repeated."""
    plan, variant = row
    target = folder / variant.name / plan
    if not (target / "line.json").is_file():
        features, settings = folder / "features", variant.settings(source, size)
        train_plan(
            plan, folder, features, target, settings, data_digest="demo", code_revision="", device="cpu", resume=True
        )
        evaluation = evaluate_plans([target], folder, features, target / "evaluation", load_config(DEMO).evaluation)
        counts = evaluation.figures["counts"]
        line = _line(plan, variant, list(read_trained(target).outcomes.values()), evaluation.figures["plans"][plan])
        write_json(
            target / "line.json", {"line": line, "clips": {"test": counts["clips"], "test_singers": counts["singers"]}}
        )
    return str(read_json(target / "line.json")["line"])


def _line(plan: str, variant: Variant, outcomes: list[Outcome], figures: dict[str, Any]) -> str:
    validation = [outcome.validation_spearman for outcome in outcomes]
    singers = [outcome.speakers for outcome in outcomes if outcome.speakers is not None]
    before, after = (
        float(np.mean(values)) for values in zip(*((one.before, one.after) for one in singers), strict=True)
    )
    overall, within = (
        f"{one['value']:.3f} [{one['lo']:.3f}, {one['hi']:.3f}]"
        for one in (figures["spearman"], figures["spearman_within_source"])
    )
    adversary = f"{variant.target}, {variant.weight:g}" if variant.weight else "none"
    warmup = f", after {variant.head_warmup_epochs} epochs of head warm-up" if variant.head_warmup_epochs else ""
    return (
        f"| {plan} | {variant.tuning}{warmup} | {adversary} | {outcomes[0].parameters:,} "
        f"| {np.mean(validation):.3f} ({min(validation):.3f} - {max(validation):.3f}) | {overall} | {within} "
        f"| {before:.2f} | {after:.2f} | {1 / singers[0].singers:.2f} |"
    )


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", dest="short", action="store_true", help="one seed, three epochs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, help="keep results there, and continue from them")
    options = parser.parse_args()
    with _folder(options.out) as folder:
        main(folder, options.jobs, SHORT_RUN if options.short else FULL_RUN)
