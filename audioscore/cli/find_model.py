"""Which scorer a command means."""

import re
from pathlib import Path

import typer

from audioscore.errors import ModelError, UsageError
from audioscore.home import DEMO_MODEL, MODEL, home, home_of_model
from audioscore.tracking.registry import has_champion, scorer_folder

PREDECESSOR_MUQ = "OpenMuQ/MuQ-large-msd-iter"  # what the predecessor was trained with
URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@[^/@]+|/\d+)$")


def find_model(model: str | None) -> tuple[str, Path]:
    """Name and scorer folder of a model: a folder, a `models:/…` URI, or the champion where None is given.

    Without a champion of one's own, the demo's is used, and that is said; a predecessor's folder is converted first.
    Raises ModelError where no scorer is found, or none can be made of what is there.
    """
    if model is None:
        for name in (MODEL, DEMO_MODEL):
            if has_champion(home_of_model(name).tracking_uri, name):
                if name == DEMO_MODEL:
                    typer.echo(f"note: no {MODEL}@champion yet; scoring with the demo's champion", err=True)
                return _registered(f"models:/{name}@champion")
        raise ModelError(
            f"no champion is registered in {home().folder} yet. Run `audioscore run --data FOLDER`, or "
            "`audioscore demo`, or name a scorer with --model."
        )
    if model.startswith("models:"):
        return _registered(model)
    if not Path(model).is_dir():
        raise UsageError(f"--model {model}: no such folder. Give a scorer folder, or models:/NAME@ALIAS.")
    if (Path(model) / "type.txt").is_file():
        return model, _converted(Path(model))
    return model, Path(model)


def _converted(old: Path) -> Path:
    """A predecessor's folder as a scorer folder in the home, made at its first use, anew when its weights change."""
    from audioscore.files import sha256_of
    from audioscore.scoring.convert import convert
    from audioscore.scoring.predecessor_folder import HEAD, MUQ, read_files

    read_files(old)  # says what is missing before anything is hashed
    folder = home().converted / sha256_of(old / HEAD, old / MUQ)
    if not folder.is_dir():
        typer.echo(f"note: {old} is a predecessor's folder; converting it once, to {folder}", err=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(old, folder, PREDECESSOR_MUQ)
    typer.echo(
        f"note: its scores are 25 x generate_tag, not calibrated; for a scale of points, or another MuQ than "
        f"{PREDECESSOR_MUQ}, run `audioscore convert {old} NEW` and score with NEW",
        err=True,
    )
    return folder


def _registered(uri: str) -> tuple[str, Path]:
    found = URI.match(uri)
    if found is None:
        raise UsageError(f"--model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION.")
    return uri, scorer_folder(home_of_model(found["name"]).tracking_uri, uri)
