"""Find the scorer that a command names: a folder, a registered version, or the champion."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from audioscore.errors import ModelError, UsageError
from audioscore.home import DEMO_MODEL, MODEL, home, home_of_model

log = logging.getLogger(__name__)

LEGACY_MUQ = "OpenMuQ/MuQ-large-msd-iter"  # the MuQ that legacy models were trained with
URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@[\w-]{1,255}|/[0-9]{1,9})")

Note = Callable[[str], None]


def find_scorer(model: str | Path | None = None, note: Note = log.warning) -> tuple[str, Path]:
    """Return name and scorer folder of a model: a folder, a `models:/…` URI, or the champion for None.

    If only the demo has a champion, that one is used and `note` reports it. A legacy folder is converted first.

    Raises:
        ModelError: no scorer was found, or the folder cannot be converted.
        UsageError: `model` is neither a folder nor a model URI.
    """
    from audioscore.tracking.registry import has_champion, newest_version

    if model is None:
        for name in (MODEL, DEMO_MODEL):
            if has_champion(home_of_model(name).tracking_uri, name):
                if name == DEMO_MODEL:
                    note(f"no {MODEL}@champion is registered; using the demo's champion")
                return _registered(f"models:/{name}@champion")
        if version := newest_version(home().tracking_uri, MODEL):
            raise ModelError(
                f"{MODEL}: no version is champion. Promote one, or pass --model {version.uri}, the newest."
            )
        raise ModelError(
            f"{home().folder}: no champion is registered. Run `audioscore run --data FOLDER` or `audioscore demo`, "
            "pass --model, or set AUDIOSCORE_HOME to the home of runs made in another folder."
        )
    if str(model).startswith("models:"):
        return _registered(str(model))
    folder = Path(model)
    if not folder.is_dir():
        raise UsageError(f"{model}: no such folder. Give a scorer folder, or models:/NAME@ALIAS.")
    return str(model), _converted(folder, note) if (folder / "type.txt").is_file() else folder


def _converted(old: Path, note: Note) -> Path:
    """Convert a legacy folder to a scorer folder in the home, once for each version of its weights."""
    from audioscore.files import sha256_of
    from audioscore.scoring.legacy.convert import convert
    from audioscore.scoring.legacy.folder import HEAD, MUQ, read_files

    read_files(old)  # reports missing files before anything is hashed
    folder = home().converted / sha256_of(old / HEAD, old / MUQ)
    if not folder.is_dir():
        note(f"{old}: legacy model; converting it once, to {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(old, folder, LEGACY_MUQ)
    note(
        f"its scores are 25 x generate_tag, not calibrated; to calibrate them, or for a MuQ other than {LEGACY_MUQ}, "
        f"run `audioscore convert {old} NEW` and score with NEW"
    )
    return folder


def registered_name(name: str) -> str:
    """Return the name of a registered model. Raises UsageError if no model can have it."""
    from audioscore.config import check_model_name

    try:
        return check_model_name(name)
    except ValueError as error:
        raise UsageError(f"--model {error}. `audioscore models` lists the models.") from error


def _registered(uri: str) -> tuple[str, Path]:
    from audioscore.tracking.registry import scorer_folder

    found = URI.fullmatch(uri)
    if found is None:
        raise UsageError(f"{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION. `audioscore models` lists them.")
    registered_name(found["name"])
    return uri, scorer_folder(home_of_model(found["name"]).tracking_uri, uri)
