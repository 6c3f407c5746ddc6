"""A training as files: what the step puts into the exchange, and what a pod makes of it."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.config import Plan
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.files import read_json, write_json
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
