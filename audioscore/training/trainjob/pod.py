"""A training as files: what the step puts into the exchange, and what a pod makes of it."""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.config import Plan
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.errors import AudioscoreError, describe_os_error
from audioscore.files import read_json, write_json
from audioscore.training.launch import torchrun
from audioscore.training.recipe import Ground
from audioscore.training.trainjob.exchange import Exchange

if TYPE_CHECKING:
    from audioscore.config import Config


FEATURES, INPUT, WORK, MODEL = "features", "input", "work", "model"


@dataclass(frozen=True)
class Asked:
    """A training by its inputs: what `launch_plan` is asked for."""

    plan: Plan
    index: Path
    features: Path
    config: "Config"
    data_digest: str
    code_revision: str
    device: str


def pack(exchange: Exchange, job: str, asked: Asked, ground: Ground) -> int:
    """Put what a training needs into the exchange, as `<job>/input`.

    The index, the description of the features, encoders that no hub holds, what training starts from, the resolved
    configuration. Features that lie in a bucket stay there; others are put beside the jobs, for all of them. Returns
    how many were not there yet.
    """
    store, sent = FeatureStore(read_extraction(asked.features).store), 0
    if not store.is_bucket:
        files = {path.relative_to(store.root).as_posix(): path for path in _needed(asked, ground, store)}
        sent = exchange.put_missing(FEATURES, files)
    with tempfile.TemporaryDirectory() as folder:
        parcel = Path(folder)
        shutil.copytree(asked.index / "index", parcel / "index")
        shutil.copytree(asked.features, parcel / "features")
        described = parcel / "features" / "extraction.json"
        there = store.uri if store.is_bucket else f"{exchange.uri}/{FEATURES}"
        write_json(described, {**read_json(described), "store": there})
        if ground.warm is not None:
            shutil.copytree(ground.warm, parcel / "init" / ground.warm.name)
        where = {"training": {"launcher", "trainjob"}}  # in a pod there is nothing more to launch
        values = asked.config.model_dump(mode="json", exclude=where, exclude_none=True)
        (parcel / "config.json").write_text(json.dumps(values), encoding="utf-8")
        training = {
            "plan": asked.plan, "data_digest": asked.data_digest, "code_revision": asked.code_revision,
            "device": asked.device, "processes": asked.config.training.processes,
            "init": None if ground.warm is None else ground.warm.name,
        }  # fmt: skip
        write_json(parcel / "training.json", training)
        exchange.put_folder(parcel, f"{job}/{INPUT}")
    return sent


def _needed(asked: Asked, ground: Ground, store: FeatureStore) -> Iterator[Path]:
    """The features that `read_ground` and the fit read of a store."""
    references: list[EncoderReference] = list(ground.references.values())
    if ground.recipe.tuning is not None:
        references.append(prefix_reference(ground.references["muq"], ground.recipe.tuning.from_layer))
    if ground.recipe.adversary:
        extraction = read_extraction(asked.features)
        own = ground.settings.adversary.target == "campplus"
        speaker = extraction.encoders["campplus"] if own else extraction.speaker
        references += [] if speaker is None else [speaker]
    for entries in ground.entries.values():
        for entry in entries:
            yield from (store.path(reference, str(entry.clip.sha256)) for reference in references)


def unpack(exchange: Exchange, job: str, scratch: Path) -> tuple[list[str], int, Path]:
    """Options of the trainer for a packed training, processes of each machine, and the folder that it writes.

    On a shared volume everything is read in place, and what a training under way leaves there lets the next pod go on.
    Raises DataError where the input is not whole.
    """
    parcel = exchange.get_folder(f"{job}/{INPUT}", scratch / INPUT)
    training = read_json(parcel / "training.json")
    out = (scratch if exchange.folder is None else exchange.folder / job) / WORK
    options = [
        "--config", str(parcel / "config.json"), "--plan", training["plan"], "--single", "--resume",
        "--index", str(parcel), "--features", str(parcel / "features"), "--out", str(out),
        "--data-digest", training["data_digest"], "--code-revision", training["code_revision"],
        "--device", training["device"],
    ]  # fmt: skip
    if training["init"] is not None:
        options += ["--init", f"warm:{parcel / 'init' / training['init']}"]
    return options, training["processes"], out


LONGEST_WAIT = 12 * 3600  # seconds for the machines to find each other: some fetch longer than others
PLACE = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch, train, write back. The trainer's exit code; 2 and one sentence where this machine cannot take part."""
    parser = argparse.ArgumentParser(prog="python -m audioscore.training.trainjob.pod", allow_abbrev=False)
    parser.add_argument("--exchange", required=True, help="what the step and all pods see: s3://BUCKET/PREFIX, or PATH")
    parser.add_argument("--job", required=True, help="name of the TrainJob")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if missing := [name for name in PLACE if name not in os.environ]:
        parser.error(f"{', '.join(missing)} are not set. A TrainJob whose runtime has an mlPolicy of torch sets them.")
    try:
        with tempfile.TemporaryDirectory(prefix="audioscore-") as scratch:
            exchange = Exchange(options.exchange)
            trainer, processes, out = unpack(exchange, options.job, Path(scratch))
            code = torchrun(trainer, processes, ["--rdzv-conf", f"timeout={LONGEST_WAIT}"])
            if code == 0 and int(os.environ["PET_NODE_RANK"]) == 0:
                exchange.put_folder(out, f"{options.job}/{MODEL}")
    except (AudioscoreError, OSError) as fault:
        told = str(fault) if isinstance(fault, AudioscoreError) else describe_os_error(fault)
        sys.stderr.write(f"error: {told}\n")
        return fault.exit_code if isinstance(fault, AudioscoreError) else AudioscoreError.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
