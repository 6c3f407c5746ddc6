"""Where state lives: `$AUDIOSCORE_HOME`, or `.audioscore/` in the working folder; runs and registry on a server too."""

import os
from dataclasses import dataclass
from pathlib import Path

from audioscore.errors import UsageError

DEMO_WORKSPACE = "demo"
MODEL = "audioscore"  # what a run registers, and scoring uses, unless told otherwise
DEMO_MODEL = "audioscore-demo"  # its own registered name, so that a demo never becomes production's champion


@dataclass(frozen=True)
class Home:
    """One workspace: MLflow's database and artifacts, the feature store, and a folder a run."""

    folder: Path
    server: str | None = None  # address of the MLflow server that has the runs and the registry instead of the database
    unusable: str | None = None  # kind of a store that was named instead, and is none

    @property
    def tracking_uri(self) -> str:
        """Where runs and the registry are. Raises UsageError where what was named for them is neither of both."""
        if self.unusable is not None:
            raise UsageError(
                f"MLFLOW_TRACKING_URI names a store of kind {self.unusable!r}. Runs and the registry are on an MLflow "
                f"server, or in the home's own database: start a server on that store and give its address (http:// or "
                f"https://), or unset the variable."
            )
        return self.server or f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.folder / "mlartifacts"

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def probes(self) -> Path:
        """What was measured of recordings, by content."""
        return self.folder / "probes.db"

    @property
    def converted(self) -> Path:
        """Scorers made of predecessor's folders that were scored with, by the content of their weights."""
        return self.folder / "converted"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"


def home(workspace: str = "") -> Home:
    """The home, or the workspace of that name inside it, which is on this machine whatever server there is.

    The server is `$MLFLOW_TRACKING_URI`, if that is an address: MLflow itself notes SQLite databases there as well.
    Any other store is not left alone in silence: whoever asks for the runs there is told.
    """
    base = Path(os.environ.get("AUDIOSCORE_HOME") or ".audioscore").resolve()
    if workspace:
        return Home(base / workspace)
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith(("http://", "https://")):
        return Home(base, address)
    kind = address.partition(":")[0] if ":" in address else "file"
    return Home(base, unusable=None if kind in ("sqlite", "file") else kind)  # the rest may hold a password


def home_of_model(name: str) -> Home:
    """The workspace whose registry holds a model name: the demo's model lives in the demo's."""
    return home(DEMO_WORKSPACE if name == DEMO_MODEL else "")
