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

    @property
    def tracking_uri(self) -> str:
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
    Raises UsageError where it names a store that is neither, which would otherwise be left alone in silence.
    """
    base = Path(os.environ.get("AUDIOSCORE_HOME") or ".audioscore").resolve()
    if workspace:
        return Home(base / workspace)
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith(("http://", "https://")):
        return Home(base, address)
    kind = address.partition(":")[0] if ":" in address else "file"
    if kind not in ("sqlite", "file"):  # the rest may hold a password
        raise UsageError(
            f"MLFLOW_TRACKING_URI names a store of kind {kind!r}. Runs and the registry are on an MLflow server, or in "
            f"the home's own database: start a server on that store and give its address (http:// or https://), or "
            f"unset the variable."
        )
    return Home(base)


def home_of_model(name: str) -> Home:
    """The workspace whose registry holds a model name: the demo's model lives in the demo's."""
    return home(DEMO_WORKSPACE if name == DEMO_MODEL else "")
