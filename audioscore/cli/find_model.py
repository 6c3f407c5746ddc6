"""Which scorer a command means."""

from pathlib import Path

import typer

from audioscore.tracking.find_scorer import PREDECESSOR_MUQ as PREDECESSOR_MUQ
from audioscore.tracking.find_scorer import find_scorer


def find_model(model: str | None) -> tuple[str, Path]:
    """Name and scorer folder of a model, as `find_scorer` finds them; what a person should know goes to stderr."""
    return find_scorer(model, lambda said: typer.echo(f"note: {said}", err=True))
