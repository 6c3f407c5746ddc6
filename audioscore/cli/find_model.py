"""Which scorer a command means."""

import re
from pathlib import Path

import typer

from audioscore.errors import ModelError, UsageError
from audioscore.home import DEMO_MODEL, MODEL, home, home_of_model
from audioscore.tracking.registry import has_champion, scorer_folder

URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@[^/@]+|/\d+)$")


def find_model(model: str | None) -> tuple[str, Path]:
    """Name and scorer folder of a model: a folder, a `models:/…` URI, or the champion where None is given.

    Without a champion of one's own, the demo's is used, and that is said. Raises ModelError where there is neither.
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
        raise UsageError(
            f"--model {model}: is a predecessor's folder. Make a scorer of it by `audioscore convert {model} NEW`, "
            "with --data to have a scale, and score with NEW."
        )
    return model, Path(model)


def _registered(uri: str) -> tuple[str, Path]:
    found = URI.match(uri)
    if found is None:
        raise UsageError(f"--model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION.")
    return uri, scorer_folder(home_of_model(found["name"]).tracking_uri, uri)
