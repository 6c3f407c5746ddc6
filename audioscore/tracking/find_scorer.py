"""Which scorer is meant: a folder, a registered version, or the champion."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from audioscore.errors import ModelError, UsageError
from audioscore.home import DEMO_MODEL, MODEL, home, home_of_model

log = logging.getLogger(__name__)

PREDECESSOR_MUQ = "OpenMuQ/MuQ-large-msd-iter"  # what the predecessor was trained with
URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@[^/@]+|/\d+)$")

Note = Callable[[str], None]


def find_scorer(model: str | Path | None = None, note: Note = log.warning) -> tuple[str, Path]:
    """Name and scorer folder of a model: a folder, a `models:/…` URI, or the champion where None is given.

    Without a champion of one's own, the demo's is used, and `note` is told; a predecessor's folder is converted first.
    Raises ModelError where no scorer is found, or none can be made of what is there, UsageError for no model's name.
    """
    from audioscore.tracking.registry import has_champion

    if model is None:
        for name in (MODEL, DEMO_MODEL):
            if has_champion(home_of_model(name).tracking_uri, name):
                if name == DEMO_MODEL:
                    note(f"no {MODEL}@champion yet; scoring with the demo's champion")
                return _registered(f"models:/{name}@champion")
        raise ModelError(
            f"no champion is registered in {home().folder} yet. Run `audioscore run --data FOLDER`, or "
            "`audioscore demo`, or name a scorer; AUDIOSCORE_HOME names the home of runs made in another folder."
        )
    if str(model).startswith("models:"):
        return _registered(str(model))
    folder = Path(model)
    if not folder.is_dir():
        raise UsageError(f"{model}: no such folder. Give a scorer folder, or models:/NAME@ALIAS.")
    return str(model), _converted(folder, note) if (folder / "type.txt").is_file() else folder


def _converted(old: Path, note: Note) -> Path:
    """A predecessor's folder as a scorer folder in the home, made at its first use, anew when its weights change."""
    from audioscore.files import sha256_of
    from audioscore.scoring.legacy.convert import convert
    from audioscore.scoring.legacy.folder import HEAD, MUQ, read_files

    read_files(old)  # says what is missing before anything is hashed
    folder = home().converted / sha256_of(old / HEAD, old / MUQ)
    if not folder.is_dir():
        note(f"{old} is a predecessor's folder; converting it once, to {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(old, folder, PREDECESSOR_MUQ)
    note(
        f"its scores are 25 x generate_tag, not calibrated; for a scale of points, or another MuQ than "
        f"{PREDECESSOR_MUQ}, run `audioscore convert {old} NEW` and score with NEW"
    )
    return folder


def _registered(uri: str) -> tuple[str, Path]:
    from audioscore.tracking.registry import scorer_folder

    found = URI.match(uri)
    if found is None:
        raise UsageError(f"{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION.")
    return uri, scorer_folder(home_of_model(found["name"]).tracking_uri, uri)
