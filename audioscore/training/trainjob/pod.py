"""A training as files: what the step puts into the exchange, and what a pod does with it."""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from audioscore.data.split.sort import SPLITS_FILE
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.errors import AudioscoreError
from audioscore.files import read_json, write_json
from audioscore.training.launch import TrainingRequest, print_error, torchrun
from audioscore.training.recipe import PlanData
from audioscore.training.trainjob.exchange import Exchange

FEATURES, INPUT, WORK, MODEL = "features", "input", "work", "model"
REQUEST = "request.json"
LONGEST_WAIT = 12 * 3600  # seconds for the machines to find each other: downloads can take hours
TORCHRUN_VARIABLES = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")


def pack(exchange: Exchange, job: str, request: TrainingRequest, data: PlanData) -> int:
    """Put everything that a training needs into the exchange, as `<job>/input`.

    That is the index, the description of the features, encoders that are not on a hub, the model to start from and the
    request. Features in a bucket stay there; others are put beside the jobs, once for all of them.

    Returns: the number of features that were not in the exchange yet.
    """
    assert request.index is not None
    assert request.features is not None
    store, sent = FeatureStore(read_extraction(request.features).store), 0
    if not store.is_bucket:
        files = {path.relative_to(store.root).as_posix(): path for path in _needed(request.features, data, store)}
        sent = exchange.put_missing(FEATURES, files)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        shutil.copytree(request.index / "index", package / "index")
        if (request.index / SPLITS_FILE).is_file():  # which singers have to be in one fold
            shutil.copyfile(request.index / SPLITS_FILE, package / SPLITS_FILE)
        shutil.copytree(request.features, package / "features")
        described = package / "features" / "extraction.json"
        location = store.uri if store.is_bucket else f"{exchange.uri}/{FEATURES}"
        write_json(described, {**read_json(described), "store": location})
        values = replace(request, index=Path(), features=Path("features"), out=Path(WORK)).to_json()
        for key in ("launcher", "trainjob"):  # a pod starts no TrainJob
            values["config"]["training"].pop(key, None)
        if data.warm is not None:
            shutil.copytree(data.warm, package / "init" / data.warm.name)
            values["config"]["training"]["init"] = f"warm:init/{data.warm.name}"
        write_json(package / REQUEST, {**values, "resume": True, "processes": request.config.training.processes})
        exchange.put_folder(package, f"{job}/{INPUT}")
    return sent


def _needed(features: Path, data: PlanData, store: FeatureStore) -> Iterator[Path]:
    """List the files of a store that `load_plan_data` and the fit read."""
    references: list[EncoderReference] = list(data.references.values())
    if data.recipe.tuning is not None:
        references.append(prefix_reference(data.references["muq"], data.recipe.tuning.from_layer))
    if data.recipe.adversary:
        extraction = read_extraction(features)
        own = data.settings.adversary.target == "campplus"
        speaker = extraction.encoders["campplus"] if own else extraction.speaker
        references += [] if speaker is None else [speaker]
    for clips in data.clips.values():
        for one in clips:
            yield from (store.path(reference, str(one.clip.sha256)) for reference in references)


def unpack(exchange: Exchange, job: str, scratch: Path) -> TrainingRequest:
    """Return the request of a packed training, with the paths of this machine.

    On a shared volume everything is read in place, and a restarted pod continues from the checkpoint that is there.

    Raises: DataError if the input is not complete.
    """
    package = exchange.get_folder(f"{job}/{INPUT}", scratch / INPUT)
    values = read_json(package / REQUEST)
    training = values["config"]["training"]
    if training["init"].startswith("warm:init/"):
        training["init"] = f"warm:{package / training['init'].removeprefix('warm:')}"
    out = (scratch if exchange.folder is None else exchange.folder / job) / values["out"]
    return TrainingRequest.from_json({**values, "index": package, "features": package / values["features"], "out": out})


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the input, train, and write the model back.

    Returns: the trainer's exit code; 2, after one error message, if this machine cannot take part.
    """
    parser = argparse.ArgumentParser(prog="python -m audioscore.training.trainjob.pod", allow_abbrev=False)
    parser.add_argument("--exchange", required=True, help="shared by the step and all pods: s3://BUCKET/PREFIX or PATH")
    parser.add_argument("--job", required=True, help="name of the TrainJob")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if missing := [name for name in TORCHRUN_VARIABLES if name not in os.environ]:
        parser.error(f"{', '.join(missing)}: not set. Use a TrainJob whose runtime has an mlPolicy of torch.")
    try:
        with tempfile.TemporaryDirectory(prefix="audioscore-") as scratch:
            exchange = Exchange(options.exchange)
            request = unpack(exchange, options.job, Path(scratch))
            code = torchrun(request, request.processes or 1, ["--rdzv-conf", f"timeout={LONGEST_WAIT}"])
            if code == 0 and int(os.environ["PET_NODE_RANK"]) == 0:
                exchange.put_folder(request.out, f"{options.job}/{MODEL}")
    except (AudioscoreError, OSError) as error:
        return print_error(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
