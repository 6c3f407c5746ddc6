"""Which scorer a command means."""

import re
from pathlib import Path

import typer

from audioscore.errors import ModelError, UsageError
from audioscore.home import DEMO_MODEL, home, home_of_model

MODEL = "audioscore"
URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@[^/@]+|/\d+)$")


def find_model(model: str | None) -> tuple[str, Path]:
    """Name and scorer folder of a model: a folder, a `models:/…` URI, or the champion where None is given.

    Without a champion of one's own, the demo's is used, and that is said. Raises ModelError where there is neither.
    """
    if model is None:
        try:
            return _registered(f"models:/{MODEL}@champion")
        except ModelError:
            if not (home_of_model(DEMO_MODEL).folder / "mlflow.db").is_file():
                raise ModelError(
                    f"no model is registered in {home().folder} yet. Run `audioscore run --data FOLDER`, or "
                    "`audioscore demo`, or name a scorer folder with --model."
                ) from None
        typer.echo("note: no audioscore@champion yet; scoring with the demo's champion", err=True)
        return _registered(f"models:/{DEMO_MODEL}@champion")
    if model.startswith("models:"):
        return _registered(model)
    if not Path(model).is_dir():
        raise UsageError(f"--model {model}: no such folder. Give a scorer folder, or models:/NAME@ALIAS.")
    return model, Path(model)


def _registered(uri: str) -> tuple[str, Path]:
    found = URI.match(uri)
    if found is None:
        raise UsageError(f"--model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION.")
    from audioscore.tracking.registry import scorer_folder

    return uri, scorer_folder(home_of_model(found["name"]).tracking_uri, uri)
